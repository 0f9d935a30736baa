"""Files of demonstrations that somebody changed: read, or refused as data, whatever the reader's own library says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentpg.data import Demonstrations, read_demonstrations, save_npz
from latentpg.errors import LatentPGError
from tests.data.files import ACTION, OBS, REWARD, write_lerobot, write_minari, write_robomimic
from tests.fuzz.values import examples, mutated

pytestmark = pytest.mark.production  # what is fed here is of the wrong type on purpose


def write_own(folder: Path) -> Path:
    path = folder / "demos.npz"
    save_npz(path, Demonstrations.from_episodes(OBS, ACTION, mode=[1, 0], reward=REWARD))
    return path


def write_plain(folder: Path) -> Path:
    path = folder / "plain.npz"
    np.savez(path, obs=np.ones((5, 2)), action=np.zeros((5, 1)), episode=np.array([0, 0, 0, 1, 1]))
    return path


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "ours": (write_own, "demos.npz"),
    "npz": (write_plain, "plain.npz"),
    "robomimic": (lambda folder: write_robomimic(folder / "demo.hdf5"), "demo.hdf5"),
    "minari": (lambda folder: write_minari(folder / "minari"), "minari/data/main_data.hdf5"),
    "minari's metadata": (lambda folder: write_minari(folder / "minari"), "minari/data/metadata.json"),
    "lerobot": (
        lambda folder: write_lerobot(folder / "lerobot", one_file=True),
        "lerobot/data/chunk-000/file-000.parquet",
    ),
    "lerobot's metadata": (lambda folder: write_lerobot(folder / "lerobot"), "lerobot/meta/info.json"),
}
"""What writes a dataset and returns its path, and the file of it that is changed."""


@pytest.mark.parametrize("layout", LAYOUTS)
@examples(20)
@given(data=st.data())
def test_a_changed_file_is_read_or_refused(layout: str, data: st.DataObject, tmp_path: Path) -> None:
    write, name = LAYOUTS[layout]
    file = tmp_path / name
    if not (tmp_path / "whole").exists():
        (tmp_path / "source").write_text(str(write(tmp_path)), encoding="utf-8")
        (tmp_path / "whole").write_bytes(file.read_bytes())
    file.write_bytes(data.draw(mutated((tmp_path / "whole").read_bytes())))
    try:
        read = read_demonstrations((tmp_path / "source").read_text(encoding="utf-8"))
    except LatentPGError:
        return
    assert bool(read.obs.isfinite().all()) and len(read.obs) == len(read.action) == len(read.episode)
