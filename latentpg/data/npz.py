"""Demonstrations as ``.npz``: our own files, and those that others write.

Others' files hold ``obs`` and ``action`` and say in one of these ways where episodes end:

``episode [M]``
    the number of each row's episode, beside ``obs [M, S]``;
``lengths [E]`` or ``episode_ends [E]``
    steps of each episode, or the row after each one's last;
``mask [E, T]`` or ``lengths [E]``
    beside padded ``obs [E, T, S]`` and ``action [E, T, ...]``: which steps there are, the first ones of each episode.

``reward``, shaped as rows are, and ``mode [E]`` and ``dt [E]`` may be there too; other names are left alone.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from latentpg.data.archive import KIND, read_arrays
from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError, Limits
from latentpg.runs.files import publish

FORMAT_VERSION = 1
"""Version of what :func:`save_npz` writes; it rises when an older reader would misread a newer file."""


def save_npz(path: Path | str, demonstrations: Demonstrations) -> None:
    """Write demonstrations to a file, whole or not at all; :func:`load_npz` gives the same back, bit by bit."""
    arrays = {
        name: values.numpy()
        for name in ("obs", "action", "episode", "mode", "reward", "dt")
        if (values := getattr(demonstrations, name)) is not None
    }
    if demonstrations.mode_names:  # text as bytes of JSON: an archive of numbers has no other place for it
        arrays["mode_names"] = np.frombuffer(json.dumps(demonstrations.mode_names).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, format_version=np.int64(FORMAT_VERSION), **arrays)
    publish(Path(path), buffer.getvalue())


def load_npz(path: Path | str, *, limits: Limits | None = None) -> Demonstrations:
    """Read what :func:`save_npz` wrote."""
    path, limits = Path(path), limits or Limits()
    arrays = read_arrays(path, limits=limits)
    version = arrays.get("format_version")
    if version is None or version.shape != () or int(version) != FORMAT_VERSION:
        raise DataError(
            str(path),
            "not a file of save_npz(), or of another version",
            expected=f"format_version {FORMAT_VERSION}",
            got="none" if version is None else str(version),
            fix="read_npz(path) for a file that somebody else wrote" if version is None else None,
        )
    names = arrays.get("mode_names")
    found = _demonstrations(path, arrays, limits)
    return found if names is None else replace(found, mode_names=_names(path, names))


def read_npz(path: Path | str, *, limits: Limits | None = None) -> Demonstrations:
    """Read an archive that somebody else wrote, in one of the forms above.

    Floating-point numbers stay float64 if all of them are, and become float32 otherwise.
    """
    path, limits = Path(path), limits or Limits()
    return _demonstrations(path, read_arrays(path, limits=limits), limits)


def _demonstrations(path: Path, arrays: dict[str, np.ndarray], limits: Limits) -> Demonstrations:
    missing = [name for name in ("obs", "action") if name not in arrays]
    if missing:
        raise DataError(
            str(path),
            f"no array {' and '.join(f'`{name}`' for name in missing)}",
            expected="`obs`, `action`, and `episode` or another way to tell where episodes end",
            got=", ".join(arrays) or "an empty archive",
            fix="np.savez(path, obs=..., action=..., episode=...)",
        )
    per_row: dict[str, np.ndarray] = {name: arrays[name] for name in ("obs", "action", "reward") if name in arrays}
    if arrays["obs"].ndim == 3:
        per_row, lengths = _unpadded(path, per_row, arrays)
    else:
        lengths = _lengths(path, arrays)
    limits.check_episodes(path, len(lengths))
    _check_lengths(path, per_row, lengths)
    doubles = all(values.dtype == np.float64 for values in per_row.values() if values.dtype.kind == "f")
    ends = np.cumsum(lengths)[:-1]
    episodes = {name: np.split(values, ends) for name, values in per_row.items()}
    return Demonstrations.from_episodes(
        episodes["obs"],
        episodes["action"],
        mode=_integers(path, "mode", arrays["mode"]).tolist() if "mode" in arrays else None,
        reward=[each.astype(np.float64) for each in episodes["reward"]] if "reward" in episodes else None,
        dt=arrays["dt"].astype(np.float64).reshape(-1).tolist() if "dt" in arrays else None,
        dtype=torch.float64 if doubles else torch.float32,
        source=str(path),
    )


def _lengths(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Return steps of each episode from whichever of the three names is there."""
    told = [name for name in ("episode", "lengths", "episode_ends") if name in arrays]
    if len(told) != 1:
        raise DataError(
            str(path),
            "where episodes end is not told, or told twice",
            expected="one of `episode` [M], `lengths` [E], `episode_ends` [E]",
            got=" and ".join(f"`{name}`" for name in told) or f"only {', '.join(arrays)}",
        )
    values = _integers(path, told[0], arrays[told[0]])
    if told[0] == "lengths":
        return values
    if told[0] == "episode_ends":
        return np.diff(values, prepend=0)
    steps = np.diff(values)
    if len(values) == 0 or values[0] != 0 or ((steps != 0) & (steps != 1)).any():
        row = int(((steps != 0) & (steps != 1)).argmax()) + 1 if len(values) and values[0] == 0 else 0
        raise DataError(
            str(path),
            "`episode` skips a number or goes back",
            expected="0 for the first row, then the same or one more from row to row",
            got=f"{values[row]} in row {row}" if len(values) else "no rows",
        )
    return np.bincount(values)


def _unpadded(
    path: Path, per_row: dict[str, np.ndarray], arrays: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Take the steps there are out of ``[E, T, ...]``."""
    episodes, longest = arrays["obs"].shape[:2]
    if "mask" in arrays:
        mask = arrays["mask"] != 0
    elif "lengths" in arrays:
        mask = np.arange(longest) < _integers(path, "lengths", arrays["lengths"])[:, None]
    else:
        mask = np.ones((episodes, longest), dtype=bool)
    sizes = {name: list(values.shape) for name, values in (per_row | {"mask": mask}).items()}
    if any(tuple(shape[:2]) != (episodes, longest) for shape in sizes.values()):
        raise DataError(
            str(path),
            "padded arrays that do not fit each other",
            expected=f"[E={episodes}, T={longest}, ...], as `obs` is",
            got=", ".join(f"`{name}` {shape}" for name, shape in sizes.items()),
        )
    if (np.diff(mask.astype(np.int8), axis=1) > 0).any():
        bad = int((np.diff(mask.astype(np.int8), axis=1) > 0).any(1).argmax())
        raise DataError(str(path), "`mask` has holes", expected="the first steps of each episode", got=f"episode {bad}")
    return {name: values[mask] for name, values in per_row.items()}, mask.sum(1)


def _check_lengths(path: Path, per_row: dict[str, np.ndarray], lengths: np.ndarray) -> None:
    if len(lengths) and lengths.min() < 1:
        bad = int(lengths.argmin())
        raise DataError(
            str(path), f"episode {bad} is empty", expected="one step or more in each episode", got=str(lengths[bad])
        )
    rows = {name: len(values) if values.ndim else 0 for name, values in per_row.items()}
    if set(rows.values()) != {int(lengths.sum())}:
        raise DataError(
            str(path),
            "arrays of different lengths",
            expected=f"{int(lengths.sum())} rows in each, the steps of {len(lengths)} episodes",
            got=", ".join(f"`{name}` {list(per_row[name].shape)}" for name in rows),
        )


def _integers(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(str(path), f"`{name}`", expected="integers [E], or [M]", got=f"{values.dtype} {values.shape}")
    if values.size and (int(values.max()) > 2**62 or int(values.min()) < 0):
        raise DataError(str(path), f"`{name}`", expected="counts >= 0", got=f"{values.min()} to {values.max()}")
    return values.astype(np.int64)


def _names(path: Path, encoded: np.ndarray) -> tuple[str, ...]:
    try:
        names = json.loads(encoded.astype(np.uint8).tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), "`mode_names` cannot be read", expected=KIND, got=str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(str(path), "`mode_names`", expected="a list of texts", got=repr(names)[:80])
    return tuple(names)
