"""Which reader a path is for."""

from __future__ import annotations

from pathlib import Path

from latentpg.data.archive import read_arrays
from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError, Limits
from latentpg.data.lasa import read_lasa
from latentpg.data.lerobot import read_lerobot
from latentpg.data.minari import read_minari
from latentpg.data.npz import load_npz, read_npz
from latentpg.data.robomimic import read_robomimic

KNOWN = "NAME.npz, NAME.hdf5 of robomimic, a folder of Minari or LeRobot, or lasa"
"""What :func:`read_demonstrations` knows, in messages."""


def read_demonstrations(source: Path | str, *, limits: Limits | None = None) -> Demonstrations:
    """Read demonstrations from whatever there is at a path, by the reader its name or its folder tells.

    ``"lasa"`` is the handwriting data. Readers with choices to make, such as observation keys, are called themselves.
    """
    path = Path(source)
    if str(source) == "lasa":
        return read_lasa()
    if (path / "meta" / "info.json").is_file():
        return read_lerobot(path, limits=limits)
    if (path / "data" / "main_data.hdf5").is_file() or (path / "main_data.hdf5").is_file():
        return read_minari(path, limits=limits)
    if path.suffix in (".hdf5", ".h5"):
        return read_robomimic(path, limits=limits)
    if path.suffix == ".npz":
        ours = "format_version" in read_arrays(path, limits=limits or Limits())
        return load_npz(path, limits=limits) if ours else read_npz(path, limits=limits)
    raise DataError(
        str(source),
        "no dataset that is known here" if path.exists() else "no such file",
        expected=KNOWN,
        got=repr(str(source)),
        likely="a pickle, which is never loaded" if path.suffix in (".pkl", ".pickle", ".pt", ".pth") else None,
        fix="np.savez(path, obs=..., action=..., episode=...)",
    )
