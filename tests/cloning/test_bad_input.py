"""Demonstrations that are no good, through the command: one message each, and nothing left behind."""

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from latentpg.cli import main
from tests.cloning.runs import file_of_steps, words


def nan(path: Path) -> Path:
    with np.load(file_of_steps(path)) as arrays:
        obs = arrays["obs"].copy()
    obs[7, 1] = np.nan
    return file_of_steps(path, obs=obs)


def ragged(path: Path) -> Path:
    return file_of_steps(path, action=np.zeros((59, 2), np.float32))


def out_of_order(path: Path) -> Path:
    return file_of_steps(path, episode=np.arange(60) // 5 * 2)


def outside(path: Path) -> Path:
    return file_of_steps(path, action=np.full((60, 2), 1.5, np.float32))


def another_size(path: Path) -> Path:
    return file_of_steps(path, obs=np.zeros((60, 3), np.float32))


def another_size_of_actions(path: Path) -> Path:
    return file_of_steps(path, action=np.zeros((60, 3), np.float32))


def integers(path: Path) -> Path:
    return file_of_steps(path, action=np.zeros((60, 2), np.int64))


def few_episodes(path: Path) -> Path:
    return file_of_steps(path, episodes=2)


def one_in_the_test(path: Path) -> Path:
    return file_of_steps(path, episodes=6)


def objects(path: Path) -> Path:
    return file_of_steps(path, obs=np.array([[Opened(), 0.0]] * 60, dtype=object))


def pickled(path: Path) -> Path:
    path = path.with_suffix(".pkl")
    path.write_bytes(pickle.dumps(Opened()))
    return path


def pickled_npz(path: Path) -> Path:
    path.write_bytes(pickle.dumps(Opened()))
    return path


def cut_short(path: Path) -> Path:
    whole = file_of_steps(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def cut_hdf5(path: Path) -> Path:
    path = path.with_suffix(".hdf5")
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["obs/place"] = np.zeros((5, 2)), np.zeros((5, 2))
    path.write_bytes(path.read_bytes()[:1500])
    return path


def absent(path: Path) -> Path:
    return path.with_name("nowhere.npz")


class Opened:
    """A pickle of this leaves a file behind when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("was_executed", "w")


BAD: dict[Callable[[Path], Path], str] = {
    nan: "`obs` has NaN or infinite entries",
    ragged: "59",
    out_of_order: "skips a number or goes back",
    outside: "outside",
    another_size: "observations of another size than the environment's",
    another_size_of_actions: "actions that are none of Box",
    integers: "actions that are none of Box",
    few_episodes: "part would be empty",
    one_in_the_test: "the test part has one episode",
    objects: "object",
    pickled: "a pickle, which is never loaded",
    pickled_npz: "npz",
    cut_short: "shown.npz",
    cut_hdf5: "shown.hdf5",
    absent: "no such file",
}
"""What makes a bad file, and what the message says."""


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_demonstrations_are_told_once(
    spoil: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = spoil(tmp_path / "shown.npz")
    folder = tmp_path / "run"
    asked = words(data=str(file), env="latentpg/Routes-v0", split=[0.5, 0.25, 0.25])
    if spoil is one_in_the_test:
        asked = words(data=str(file), env="latentpg/Routes-v0", split=[0.5, 0.34, 0.16])
    monkeypatch.setattr(sys, "argv", ["latentpg", "imitate", *asked, "--out", str(folder)])
    assert main() == 2
    out, err = capsys.readouterr()
    assert out == "" and BAD[spoil] in err and err.count("Error in ") == 1 and "Traceback" not in err
    assert not folder.exists() and not (tmp_path / "was_executed").exists()


def test_a_script_that_shows_every_mode_as_often_is_asked_for_so_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = words(data="scripted:latentpg/Avoiding-v0", num_demonstrations=100)
    monkeypatch.setattr(sys, "argv", ["latentpg", "imitate", *asked, "--out", str(tmp_path / "run")])
    assert main() == 2
    assert "`--num-demonstrations`" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["latentpg", "imitate", "--data", "scripted:latentpg/Rutes-v0"])
    assert main() == 2
    assert "Routes-v0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "gaussian", "objective": "iwae", "guide": "vimco", "num_particles": 1}, "num_particles"),
        ({"policy": "mixture", "objective": "iwae"}, "pathwise"),
        ({"policy": "gaussian", "match_prior_every": 2}, "sets a mixture prior to the posteriors of whole episodes"),
        ({"policy": "mixture", "acting": "ensembled"}, "temporal ensembling"),
        ({"policy": "mixture", "objective": "exact", "per_datum": True}, "per_datum"),
    ],
)
def test_parts_that_do_not_fit_leave_nothing_behind(
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["latentpg", "imitate", *words(**changes), "--out", str(tmp_path / "run")])
    assert main() == 2
    err = capsys.readouterr().err
    assert err.count("Error in ") == 1 and not (tmp_path / "run").exists()
    assert message in err, err


def test_a_run_without_a_checkpoint_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text('data = "x.npz"\nobjective = "exact"\npolicy = "plain"\n', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["latentpg", "resume", str(folder)])
    assert main() == 2
    assert capsys.readouterr().err.count("Error in ") == 1
