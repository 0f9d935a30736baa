"""Archives: ours bit by bit, others' in each form, and nothing run, oversized or half-read."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentpg.data import DataError, Demonstrations, Limits, load_npz, read_npz, save_npz
from tests.data.files import ACTION, OBS, REWARD, write_pickle

JOINED: dict[str, Any] = {"obs": np.concatenate(OBS), "action": np.concatenate(ACTION)}
FIXTURE = Path(__file__).parent / "demonstrations-1.npz"


def whole(dtype: torch.dtype = torch.float32) -> Demonstrations:
    return Demonstrations.from_episodes(
        [each + 0.1 for each in OBS],
        ACTION,
        mode=[1, 0],
        reward=REWARD,
        dt=[0.1, 0.3],
        mode_names=("left", "rîght"),
        dtype=dtype,
    )


def assert_same(first: Demonstrations, second: Demonstrations) -> None:
    for name in ("obs", "action", "episode", "mode", "reward", "dt"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None), name
        assert one is None or (one.dtype == other.dtype and torch.equal(one, other)), name
    assert first.mode_names == second.mode_names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_is_loaded_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    save_npz(tmp_path / "d.npz", whole(dtype))
    assert_same(load_npz(tmp_path / "d.npz"), whole(dtype))


def test_what_is_not_there_stays_away(tmp_path: Path) -> None:
    few = Demonstrations.from_episodes(OBS, [np.array([0, 1, 0]), np.array([2, 1])])
    save_npz(tmp_path / "d.npz", few)
    assert_same(load_npz(tmp_path / "d.npz"), few)


def test_a_file_of_the_first_version_still_loads() -> None:
    assert_same(load_npz(FIXTURE), whole())


def test_other_versions_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", format_version=np.int64(99), episode=[0, 0, 0, 1, 1], **JOINED)
    with pytest.raises(DataError, match=r"expected: +format_version 1[\s\S]*99"):
        load_npz(tmp_path / "other.npz")
    np.savez(tmp_path / "none.npz", episode=[0, 0, 0, 1, 1], **JOINED)
    with pytest.raises(DataError, match=r"fix: +read_npz"):
        load_npz(tmp_path / "none.npz")


PADDED: dict[str, Any] = {
    name: np.stack([np.concatenate([e, np.full((3 - len(e), e.shape[1]), np.nan)]) for e in each])
    for name, each in (("obs", OBS), ("action", ACTION))
}
FORMS: dict[str, dict[str, Any]] = {
    "episode": JOINED | {"episode": np.array([0, 0, 0, 1, 1])},
    "lengths": JOINED | {"lengths": np.array([3, 2])},
    "ends": JOINED | {"episode_ends": np.array([3, 5]), "note": np.arange(2)},
    "padded, mask": PADDED | {"mask": np.array([[1, 1, 1], [1, 1, 0]])},
    "padded, lengths": PADDED | {"lengths": np.array([3, 2])},
}


@pytest.mark.parametrize("arrays", FORMS.values(), ids=FORMS.keys())
def test_every_form_is_read(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "d.npz", mode=[1, 0], **arrays)
    read = read_npz(tmp_path / "d.npz")
    assert_same(read, Demonstrations.from_episodes(OBS, ACTION, mode=[1, 0], dtype=torch.float64))
    assert read.source == str(tmp_path / "d.npz")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no actions": ({"obs": JOINED["obs"]}, r"no array `action`"),
    "no ends": (dict(JOINED), r"where episodes end is not told[\s\S]*only obs, action"),
    "two ends": (FORMS["episode"] | FORMS["lengths"], r"told twice[\s\S]*`episode` and `lengths`"),
    "an empty episode": (JOINED | {"lengths": [3, 0, 2]}, r"episode 1 is empty"),
    "ends that go back": (JOINED | {"episode_ends": [3, 2, 5]}, r"episode 1 is empty"),
    "an episode skipped": (JOINED | {"episode": [0, 0, 0, 2, 2]}, r"2 in row 3"),
    "too few rows": (JOINED | {"lengths": [3, 3]}, r"6 rows in each"),
    "floating-point ends": (JOINED | {"lengths": [3.0, 2.0]}, r"`lengths`[\s\S]*integers"),
    "huge ends": (JOINED | {"episode_ends": np.array([3, 2**63], np.uint64)}, r"`episode_ends`[\s\S]*counts"),
    "negative": (JOINED | {"lengths": [6, -1]}, r"counts >= 0"),
    "holes": (PADDED | {"mask": np.array([[1, 0, 1], [1, 1, 0]])}, r"`mask` has holes[\s\S]*episode 0"),
    "another mask": (PADDED | {"mask": np.ones((2, 2))}, r"padded arrays that do not fit"),
    "NaN": (PADDED | {"lengths": [3, 3]}, r"NaN or infinite[\s\S]*episode 1, step 2"),
    "text": (FORMS["episode"] | {"note": np.array(["a"])}, r"`note` holds no numbers"),
    "a mode too many": (FORMS["episode"] | {"mode": [0, 1, 2]}, r"`mode`[\s\S]*\[E=2\]"),
}


@pytest.mark.production
@pytest.mark.parametrize(("arrays", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_npz(tmp_path / "d.npz")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path = write_pickle(tmp_path / "d.npz", tmp_path / "sprung", protocol)
    with pytest.raises(DataError, match=r"it is a pickle|not a zip file"):
        read_npz(path)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_within_an_archive_is_refused_and_not_run(tmp_path: Path) -> None:
    inside = write_pickle(tmp_path / "p", tmp_path / "sprung").read_bytes()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("obs.npy", header.getvalue() + inside)
    with pytest.raises(DataError, match=r"`obs` holds objects, which are pickled and were not loaded"):
        read_npz(tmp_path / "d.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, part: float) -> None:
    save_npz(tmp_path / "d.npz", whole())
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*cut short"):
        load_npz(tmp_path / "d.npz")


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **FORMS["episode"])
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"CRC|header|cannot be read"):
        read_npz(tmp_path / "d.npz")


def lying(path: Path, shape: tuple[int, ...]) -> Path:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("obs.npy", header.getvalue() + bytes(80))
    return path


def test_absurd_shapes_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`obs` is larger than the limits[\s\S]*\[1000000000000, 10\]"):
        read_npz(lying(tmp_path / "a.npz", (10**12, 10)))
    with pytest.raises(DataError, match=r"not as large as its header says[\s\S]*88 bytes[\s\S]*80 bytes"):
        read_npz(lying(tmp_path / "b.npz", (11,)))
    with pytest.raises(DataError, match=r"larger than the limits|not a numpy array|not as large"):
        read_npz(lying(tmp_path / "c.npz", (-1, 10)))


def test_limits_hold(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", obs=np.zeros((10**5, 2)), action=np.zeros(10**5), episode=np.zeros(10**5))
    assert (tmp_path / "d.npz").stat().st_size < 10**4
    with pytest.raises(DataError, match=r"the archive is larger than the limits[\s\S]*bytes when unpacked"):
        read_npz(tmp_path / "d.npz", limits=Limits(max_bytes=10**5))
    with pytest.raises(DataError, match=r"at most [\d,]+ bytes, 1,000 steps"):
        read_npz(tmp_path / "d.npz", limits=Limits(max_rows=1000))
    np.savez(tmp_path / "many.npz", lengths=np.ones(5, int), **JOINED)
    with pytest.raises(DataError, match=r"5 episodes"):
        read_npz(tmp_path / "many.npz", limits=Limits(max_episodes=4))
    with pytest.raises(DataError, match=r"the file is larger than the limits"):
        read_npz(tmp_path / "many.npz", limits=Limits(max_bytes=100))


def test_no_such_file_and_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file"):
        read_npz(tmp_path / "d.npz")
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*(directory|regular)"):
        read_npz(tmp_path)


def test_a_link_that_the_caller_names_is_followed(tmp_path: Path) -> None:
    save_npz(tmp_path / "d.npz", whole())
    (tmp_path / "link.npz").symlink_to(tmp_path / "d.npz")
    assert load_npz(tmp_path / "link.npz").num_rows == 5
