"""Readers of other programs' layouts, on small files of each, whole and spoilt."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from latentpg.data import DataError, Demonstrations, Limits, read_demonstrations, save_npz
from latentpg.data.lerobot import read_lerobot
from latentpg.data.minari import read_minari
from latentpg.data.robomimic import read_robomimic
from tests.data.files import (
    ACTION,
    OBS,
    REWARD,
    lerobot_table,
    write_lerobot,
    write_minari,
    write_pickle,
    write_robomimic,
)

KEYS = ["first", "second"]


def assert_read(read: Demonstrations, *, swapped: bool = False) -> None:
    assert read.episode.tolist() == [0, 0, 0, 1, 1]
    assert read.obs.dtype == torch.float32
    assert read.obs.tolist() == np.concatenate(OBS)[:, :: -1 if swapped else 1].tolist()
    assert read.action.tolist() == np.concatenate(ACTION).tolist()
    assert read.reward is not None and read.reward.tolist() == np.concatenate(REWARD).tolist()


# robomimic


@pytest.fixture
def robomimic(tmp_path: Path) -> Path:
    return write_robomimic(tmp_path / "demo.hdf5")


def test_robomimic_is_read_in_the_order_of_numbers(robomimic: Path) -> None:
    assert_read(read_robomimic(robomimic, obs_keys=KEYS))
    assert_read(read_robomimic(robomimic, obs_keys=KEYS[::-1]), swapped=True)


def test_which_keys_is_a_choice(robomimic: Path) -> None:
    with pytest.raises(DataError, match=r"not told[\s\S]*camera, first, second[\s\S]*obs_keys=\['camera', 'first'\]"):
        read_robomimic(robomimic)
    with pytest.raises(DataError, match=r"`/data/demo_2/obs/frist`"):
        read_robomimic(robomimic, obs_keys=["frist"])
    with pytest.raises(DataError, match=r"cannot be a part of an observation[\s\S]*an image"):
        read_robomimic(robomimic, obs_keys=["camera"])
    with pytest.raises(DataError, match=r"no `/data/demo_2/obs/\.\./actions`"):
        read_robomimic(robomimic, obs_keys=["../actions"])


def spoil(path: Path, how: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "r+") as file:
        how(file)
    return path


def replace(name: str, **made: object) -> Callable[[h5py.File], object]:
    def how(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **made)

    return how


def link(name: str, to: object) -> Callable[[h5py.File], object]:
    def how(file: h5py.File) -> None:
        del file[name]
        file[name] = to

    return how


def virtual(file: h5py.File) -> None:
    del file["data/demo_2/actions"]
    layout = h5py.VirtualLayout(shape=(3, 1), dtype="f8")
    layout[:] = h5py.VirtualSource("secret.hdf5", "numbers", shape=(3, 1))
    file.create_virtual_dataset("data/demo_2/actions", layout)


def external(file: h5py.File) -> None:
    del file["data/demo_2/actions"]
    file.create_dataset("data/demo_2/actions", shape=(3, 1), dtype="f8", external=[("secret.bin", 0, 24)])


def wide_chunks(file: h5py.File) -> None:
    replace("data/demo_2/actions", shape=(3, 1), maxshape=(None, 1), chunks=(2**28 + 1, 1), dtype="f8")(file)


def foreign_filter(file: h5py.File) -> None:
    del file["data/demo_2/actions"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3, 1))
    plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))  # Zstandard, which would be a plugin
    space = h5py.h5s.create_simple((3, 1))
    h5py.h5d.create(file["data/demo_2"].id, b"actions", h5py.h5t.IEEE_F64LE, space, dcpl=plist)


ACTIONS = "data/demo_2/actions"
SPOILT: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "an external link": (link(ACTIONS, h5py.ExternalLink("secret.hdf5", "/numbers")), r"is a link[\s\S]*an external"),
    "a soft link": (link(ACTIONS, h5py.SoftLink("/data/demo_10/actions")), r"is a link[\s\S]*a soft"),
    "a linked group": (link("data/demo_2", h5py.ExternalLink("secret.hdf5", "/")), r"`/data/demo_2` is a link"),
    "a linked root": (link("data", h5py.ExternalLink("secret.hdf5", "/")), r"`/data` is a link"),
    "a virtual dataset": (virtual, r"lies in another file[\s\S]*a virtual dataset"),
    "external storage": (external, r"lies in another file[\s\S]*external storage"),
    "an absurd shape": (
        replace(ACTIONS, shape=(10**12, 7), dtype="f8", chunks=(1000, 7)),
        r"`/data/demo_2/actions` is larger than the limits[\s\S]*\[1000000000000, 7\]",
    ),
    "absurd chunks": (wide_chunks, r"`/data/demo_2/actions` is larger than the limits"),
    "a filter to load": (foreign_filter, r"a filter that would have to be loaded[\s\S]*32015"),
    "text": (replace(ACTIONS, data=["a", "b", "c"], dtype=h5py.string_dtype()), r"holds no numbers"),
    "opaque": (replace(ACTIONS, data=np.array([b"ab"] * 3, dtype="V2")), r"holds no numbers"),
    "no data at all": (replace(ACTIONS, data=h5py.Empty("f8")), r"holds no numbers"),
    "a group for a dataset": (lambda file: (file.pop(ACTIONS), file.create_group(ACTIONS)), r"is not a dataset"),
    "a dataset for a group": (replace("data", data=[1.0]), r"`/data` is not a group"),
    "no data group": (lambda file: file.pop("data"), r"no `/data`[\s\S]*an empty group"),
    "no demonstrations": (lambda file: [file["data"].pop(n) for n in list(file["data"])], r"no episodes in `/data`"),
    "steps cut off": (replace(ACTIONS, data=ACTION[0][:2]), r"number of steps of demo_2[\s\S]*3[\s\S]*2"),
    "demonstrations cut off": (lambda file: file.pop("data/demo_2"), r"number of steps\n[\s\S]*5, as[\s\S]*2"),
    "parts of other lengths": (replace("data/demo_2/obs/first", data=[1.0]), r"different lengths[\s\S]*`first` 1"),
    "observations of another length": (
        lambda file: [replace(f"data/demo_2/obs/{key}", data=[1.0, 2.0])(file) for key in KEYS],
        r"`obs` and `action` of episode 0 have different lengths",
    ),
    "NaN": (replace("data/demo_10/obs/first", data=[0.0, np.nan]), r"`obs` has NaN[\s\S]*episode 1, step 1"),
}


@pytest.mark.parametrize(("how", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_robomimic_file_is_refused(
    robomimic: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[h5py.File], object], message: str
) -> None:
    monkeypatch.chdir(robomimic.parent)
    with h5py.File("secret.hdf5", "w") as file:  # what links lead to is there, and still is not read
        file["numbers"] = ACTION[0]
    Path("secret.bin").write_bytes(ACTION[0].tobytes())
    with pytest.raises(DataError, match=message):
        read_robomimic(spoil(robomimic, how), obs_keys=KEYS)


def test_a_link_is_told_without_opening_what_it_leads_to(robomimic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe in the place of the other file would be waited for without end."""
    import os

    monkeypatch.chdir(robomimic.parent)
    os.mkfifo("pipe")
    with pytest.raises(DataError, match=r"an external link"):
        read_robomimic(spoil(robomimic, link(ACTIONS, h5py.ExternalLink("pipe", "/numbers"))), obs_keys=KEYS)


def test_all_datasets_together_stay_within_the_limits(robomimic: Path) -> None:
    with pytest.raises(DataError, match=r"the dataset is larger than the limits[\s\S]*more than"):
        read_robomimic(
            spoil(robomimic, replace("data/demo_10/rewards", data=np.zeros(10**5), compression="gzip")),
            obs_keys=KEYS,
            limits=Limits(max_bytes=800_050),
        )


# Minari


@pytest.mark.parametrize("nested", [False, True])
def test_minari_is_read_and_its_environment_left_alone(tmp_path: Path, nested: bool) -> None:
    """The environment named there cannot be imported, so looking for it would fail."""
    folder = write_minari(tmp_path / "set-v0", nested=nested)
    # parts in the order of their names: `a` is the second number
    assert_read(read_minari(folder), swapped=nested)
    assert_read(read_minari(folder / "data"), swapped=nested)


def test_spoilt_minari_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"number of episodes[\s\S]*3[\s\S]*2[\s\S]*files missing"):
        read_minari(write_minari(tmp_path / "a", total_episodes=3))
    with pytest.raises(DataError, match=r"number of steps"):
        read_minari(write_minari(tmp_path / "b", total_steps=6))
    with pytest.raises(DataError, match=r'data_format "hdf5"[\s\S]*arrow'):
        read_minari(write_minari(tmp_path / "c", data_format="arrow"))
    folder = write_minari(tmp_path / "d")
    spoil(folder / "data" / "main_data.hdf5", replace("episode_1/observations", data=OBS[1]))
    with pytest.raises(DataError, match=r"`episode_1` has 2 observations and 2 actions"):
        read_minari(folder)
    folder = write_minari(tmp_path / "e")
    (folder / "data" / "metadata.json").write_text('{"total_episodes": 2')
    with pytest.raises(DataError, match=r"its metadata cannot be read[\s\S]*not JSON"):
        read_minari(folder)
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(DataError, match=r"no such file[\s\S]*metadata.json of a Minari dataset"):
        read_minari(folder)
    folder = write_minari(tmp_path / "f")
    spoil(folder / "data" / "main_data.hdf5", replace("episode_0/observations", data=np.arange(4)))
    with pytest.raises(DataError, match=r"cannot be a part of an observation[\s\S]*categories"):
        read_minari(folder)
    folder = write_minari(tmp_path / "g")
    spoil(folder / "data" / "main_data.hdf5", replace("episode_1/actions", data=[[0.0], [np.nan]]))
    with pytest.raises(DataError, match=r"`action` has NaN[\s\S]*episode 1, step 1"):
        read_minari(folder)
    folder = write_minari(tmp_path / "h")
    spoil(folder / "data" / "main_data.hdf5", replace("episode_0/actions", data=ACTION[0][:2]))
    with pytest.raises(DataError, match=r"`episode_0` has 4 observations and 2 actions"):
        read_minari(folder)


def test_a_group_that_contains_itself_ends(tmp_path: Path) -> None:
    folder = write_minari(tmp_path / "set", nested=True)

    def how(file: h5py.File) -> None:
        group = file["episode_0/observations"]
        for name in ("c", "d", "e"):
            group[name] = group

    with pytest.raises(DataError, match=r"too many parts|contains itself"):
        read_minari(spoil(folder / "data" / "main_data.hdf5", how).parent)


# LeRobot


@pytest.mark.parametrize("one_file", [False, True])
def test_lerobot_is_read(tmp_path: Path, one_file: bool) -> None:
    read = read_lerobot(write_lerobot(tmp_path / "set", one_file=one_file))
    assert_read(read)
    assert read.dt is not None and read.dt.tolist() == pytest.approx([0.1, 0.1])


def test_lerobot_columns_side_by_side(tmp_path: Path) -> None:
    read = read_lerobot(write_lerobot(tmp_path / "set"), obs_keys=["observation.state", "next.reward"])
    assert read.obs[:, 2].tolist() == np.concatenate(REWARD).tolist()


def lists(*rows: list[float | None]) -> pyarrow.Array:
    return pyarrow.array(rows, pyarrow.list_(pyarrow.float32()))


COLUMNS: dict[str, tuple[dict[str, pyarrow.Array], str]] = {
    "ragged": ({"action": lists([0.0], [1.0, 2.0], [3.0])}, r"`action` is ragged[\s\S]*2 in row 1"),
    "missing numbers": ({"action": lists([0.0], [None], [3.0])}, r"`action` has missing entries"),
    "missing rows": ({"action": pyarrow.array([[0.0], None, [3.0]])}, r"`action` has missing entries"),
    "text": ({"action": pyarrow.array(["a", "b", "c"])}, r"`action` holds no numbers[\s\S]*string"),
    "another size": ({"action": lists([0.0, 1.0], [1.0, 2.0], [3.0, 4.0])}, r"`action` is not alike in all files"),
    "frames twice": ({"frame_index": pyarrow.array([0, 1, 1])}, r"frame 2 of episode 0[\s\S]*frame 1"),
    "integers": (
        {"observation.state": pyarrow.array([[1], [2], [3]])},
        r"`observation.state` is not (alike|floating-point)",
    ),
    "NaN": ({"action": lists([0.0], [np.nan], [3.0])}, r"`action` has NaN[\s\S]*episode 0, step 1"),
}


@pytest.mark.parametrize(("columns", "message"), COLUMNS.values(), ids=COLUMNS.keys())
def test_spoilt_lerobot_columns_are_refused(tmp_path: Path, columns: dict[str, pyarrow.Array], message: str) -> None:
    folder = write_lerobot(tmp_path / "set")
    pyarrow.parquet.write_table(lerobot_table(0, **columns), folder / "data" / "chunk-000" / "episode_000000.parquet")
    with pytest.raises(DataError, match=message):
        read_lerobot(folder)


def test_spoilt_lerobot_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"number of episodes[\s\S]*files missing"):
        read_lerobot(write_lerobot(tmp_path / "a", total_episodes=3))
    with pytest.raises(DataError, match=r"number of frames"):
        read_lerobot(write_lerobot(tmp_path / "b", total_frames=6))
    folder = write_lerobot(tmp_path / "c")
    with pytest.raises(DataError, match=r"no column `observation.positions`[\s\S]*obs_keys"):
        read_lerobot(folder, obs_keys=["observation.positions"])
    with pytest.raises(DataError, match=r"larger than the limits[\s\S]*3 steps"):
        read_lerobot(folder, limits=Limits(max_rows=2))
    shutil.rmtree(folder / "data")
    with pytest.raises(DataError, match=r"no steps[\s\S]*no such file"):
        read_lerobot(folder)


def test_small_parquet_files_of_many_numbers_stay_within_the_limits(tmp_path: Path) -> None:
    folder, rows = write_lerobot(tmp_path / "set", one_file=True), 50_000
    zeros = pyarrow.array(np.zeros(rows))
    names = ["observation.state", "action", "episode_index", "frame_index"]
    holding = folder / "data" / "chunk-000" / "file-000.parquet"
    pyarrow.parquet.write_table(pyarrow.table([zeros] * 4, names), holding)
    assert holding.stat().st_size < 10**4
    with pytest.raises(DataError, match=r"`file-000.parquet:action` is larger|more than 800,000 bytes, at `file-000"):
        read_lerobot(folder, limits=Limits(max_bytes=rows * 8 * 2 - 1))


# Every layout


def main_file(layout: str, folder: Path) -> tuple[Path, Path, Callable[[Path], Demonstrations]]:
    """Write a dataset; return what is read, the file that holds the numbers, and the reader."""
    if layout == "robomimic":
        path = write_robomimic(folder / "demo.hdf5")
        return path, path, lambda given: read_robomimic(given, obs_keys=KEYS)
    if layout == "minari":
        path = write_minari(folder / "set")
        return path, path / "data" / "main_data.hdf5", read_minari
    path = write_lerobot(folder / "set")
    return path, path / "data" / "chunk-000" / "episode_000000.parquet", read_lerobot


@pytest.mark.parametrize("layout", ["robomimic", "minari", "lerobot"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, layout: str) -> None:
    given, holding, read = main_file(layout, tmp_path)
    write_pickle(holding, tmp_path / "sprung")
    with pytest.raises(DataError, match=r"it is a pickle, which runs code when it is loaded, so it was not loaded"):
        read(given)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("layout", ["robomimic", "minari", "lerobot"])
def test_a_file_cut_short_is_refused(tmp_path: Path, layout: str, part: float) -> None:
    given, holding, read = main_file(layout, tmp_path)
    content = holding.read_bytes()
    holding.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*a file cut short"):
        read(given)


@pytest.mark.parametrize(
    ("layout", "missing", "module"),
    [("robomimic", "h5py", "h5py"), ("lerobot", "pyarrow", "pyarrow")],
)
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, missing: str, module: str
) -> None:
    given, _, read = main_file(layout, tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(DataError, match=rf"{missing} is not installed[\s\S]*latentpg\[data\]"):
        read(given)


def test_the_reader_is_chosen_by_what_lies_there(tmp_path: Path) -> None:
    assert_read(read_demonstrations(write_minari(tmp_path / "minari")))
    assert_read(read_demonstrations(write_lerobot(tmp_path / "lerobot")))
    with pytest.raises(DataError, match=r"obs_keys"):  # robomimic's own question
        read_demonstrations(write_robomimic(tmp_path / "demo.hdf5"))
    saved = Demonstrations.from_episodes(OBS, ACTION, mode=[0, 1], mode_names=("a", "b"))
    save_npz(tmp_path / "ours.npz", saved)
    assert read_demonstrations(tmp_path / "ours.npz").mode_names == ("a", "b")
    np.savez(tmp_path / "theirs.npz", obs=np.concatenate(OBS), action=np.concatenate(ACTION), lengths=[3, 2])
    assert read_demonstrations(tmp_path / "theirs.npz").num_episodes == 2
    with pytest.raises(DataError, match=r"no such file"):
        read_demonstrations(tmp_path / "nothing")
    write_pickle(tmp_path / "d.pkl", tmp_path / "sprung")
    with pytest.raises(DataError, match=r"no dataset that is known here[\s\S]*a pickle, which is never loaded"):
        read_demonstrations(tmp_path / "d.pkl")
    assert not (tmp_path / "sprung").exists()
