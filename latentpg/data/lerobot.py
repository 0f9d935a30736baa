"""Demonstrations in the layout of LeRobot datasets: Parquet files of steps beside ``meta/info.json``.

Every row of ``data/**/*.parquet`` is a step with ``episode_index``, ``frame_index``, ``observation.state`` and
``action``, and sometimes ``next.reward``; there is a file for each episode (version 2 of the layout) or one for many
(version 3). ``meta/info.json`` tells the frames a second and how many episodes and frames there are. Images and videos
are left alone. Paths that the metadata name are not used, so they lead nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import Budget, DataError, Limits, check_file, check_total, read_json
from latentpg.data.robomimic import check_equal_lengths

KIND = "a Parquet file of steps"
"""What is expected, in messages."""

REWARD = "next.reward"
"""The column of rewards, read where it is there."""


def read_lerobot(
    path: Path | str,
    *,
    obs_keys: Sequence[str] = ("observation.state",),
    dtype: torch.dtype = torch.float32,
    limits: Limits | None = None,
) -> Demonstrations:
    """Read all episodes of a dataset's folder, with the named columns of the observation side by side."""
    folder, limits = Path(path), limits or Limits()
    told = read_json(folder / "meta" / "info.json", kind="the meta/info.json of a LeRobot dataset", limits=limits)
    files = sorted((folder / "data").rglob("*.parquet"))
    limits.check_episodes(folder, len(files))
    if not files:
        raise DataError(str(folder), "no steps", expected=f"{folder.name}/data/**/*.parquet", got="no such file")
    wanted = [*obs_keys, "action", "episode_index", "frame_index", REWARD]
    budget = Budget(folder, limits)
    tables = [_read(file, wanted, budget) for file in files]
    columns = {name: _joined(folder, name, tables) for name in wanted if name != REWARD or REWARD in tables[0]}
    order = _order(folder, columns["episode_index"], columns["frame_index"])
    episode = columns["episode_index"][order, 0].astype(np.int64)
    ends = np.flatnonzero(np.diff(episode)) + 1
    check_total(folder, "episodes", told.get("total_episodes"), len(ends) + 1)
    check_total(folder, "frames", told.get("total_frames"), len(order))
    obs = np.concatenate([_floating(folder, key, columns[key]) for key in obs_keys], 1)
    fps = told.get("fps")
    known = isinstance(fps, int | float) and not isinstance(fps, bool) and fps > 0
    return Demonstrations.from_episodes(
        np.split(obs[order], ends),
        np.split(columns["action"][order], ends),
        reward=np.split(columns[REWARD][order, 0].astype(np.float64), ends) if REWARD in columns else None,
        dt=[1.0 / float(fps)] * (len(ends) + 1) if known and fps is not None else None,
        dtype=dtype,
        source=str(folder),
    )


def _read(path: Path, wanted: Sequence[str], budget: Budget) -> dict[str, np.ndarray]:
    """Return the wanted columns of one file as ``[M, n]``; sizes are checked in its own directory first."""
    real = check_file(path, kind=KIND, limits=budget.limits)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            str(path), "pyarrow is not installed", expected=KIND, fix="pip install 'latentpg[data]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(real) as file:
            present = _check_columns(path, file, wanted, budget)
            table = file.read(columns=present, use_threads=False)
            return {name: _numbers(path, name, table.column(name).combine_chunks()) for name in present}
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            str(path),
            "cannot be read",
            expected=KIND,
            got=str(error) or type(error).__name__,
            likely="a file cut short, or one of another kind",
        ) from error


def _check_columns(path: Path, file: Any, wanted: Sequence[str], budget: Budget) -> list[str]:  # noqa: ANN401 (an untyped library's)
    names = list(file.schema_arrow.names)
    missing = [name for name in wanted if name not in names and name != REWARD]
    if missing:
        raise DataError(
            str(path),
            f"no column {', '.join(f'`{name}`' for name in missing)}",
            expected=", ".join(wanted[:-1]),
            got=", ".join(names[:16]),
            fix="obs_keys=(...)" if missing[0] not in ("action", "episode_index", "frame_index") else None,
        )
    present = [name for name in wanted if name in names]
    for name in present:
        _check_type(path, name, file.schema_arrow.field(name).type)
    held = file.metadata
    if held.num_rows > budget.limits.max_rows:
        raise budget.limits.too_large(path, "the file", f"{held.num_rows:,} steps")
    for group in range(held.num_row_groups):
        for column in range(held.num_columns):
            part = held.row_group(group).column(column)
            if any(part.path_in_schema == name or part.path_in_schema.startswith(f"{name}.") for name in present):
                size = max(8 * part.num_values, part.total_uncompressed_size, 0)
                budget.spend(f"{path.name}:{part.path_in_schema}", (1, size), 1)
    return present


def _check_type(path: Path, name: str, kind: Any) -> None:  # noqa: ANN401 (see above)
    import pyarrow

    inner = kind.value_type if _is_list(kind) else kind
    if not (pyarrow.types.is_floating(inner) or pyarrow.types.is_integer(inner)):
        raise DataError(str(path), f"`{name}` holds no numbers", expected="numbers, or lists of numbers", got=str(kind))


def _is_list(kind: Any) -> bool:  # noqa: ANN401 (see above)
    import pyarrow

    types = pyarrow.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _numbers(path: Path, name: str, column: Any) -> np.ndarray:  # noqa: ANN401 (an untyped library's)
    """Return numbers, or lists of equally many numbers, as ``[M, n]``."""
    rows, is_list = len(column), _is_list(column.type)
    inner = column.flatten() if is_list else column
    if column.null_count or inner.null_count:
        raise DataError(str(path), f"`{name}` has missing entries", expected="a number everywhere", got="null")
    if is_list:
        sizes = (
            np.asarray(column.value_lengths())
            if hasattr(column, "value_lengths")
            else np.full(rows, column.type.list_size)
        )
        if rows and (sizes != sizes[0]).any():
            bad = int((sizes != sizes[0]).argmax())
            raise DataError(
                str(path), f"`{name}` is ragged", expected=f"{sizes[0]} numbers a row", got=f"{sizes[bad]} in row {bad}"
            )
    return inner.to_numpy(zero_copy_only=False).reshape(rows, -1 if rows else 1)


def _joined(folder: Path, name: str, tables: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    shapes = {(table[name].shape[1], table[name].dtype.kind) if name in table else None for table in tables}
    if len(shapes) != 1:
        raise DataError(
            str(folder), f"`{name}` is not alike in all files", expected="numbers of one kind and size", got=str(shapes)
        )
    return np.concatenate([table[name] for table in tables])


def _order(folder: Path, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Return the rows by episode and frame; every episode must have the frames 0, 1, ... once."""
    check_equal_lengths(folder, "data", ["episode_index", "frame_index"], [episode, frame])
    order = np.lexsort((frame[:, 0], episode[:, 0]))
    episodes, frames = episode[order, 0], frame[order, 0]
    first = np.r_[True, episodes[1:] != episodes[:-1]]
    start = np.flatnonzero(first)
    expected = np.arange(len(order)) - start[np.cumsum(first) - 1]
    if (frames != expected).any():
        bad = int((frames != expected).argmax())
        raise DataError(
            str(folder),
            "frames are missing, or there twice",
            expected=f"frame {expected[bad]} of episode {episodes[bad]}",
            got=f"frame {frames[bad]}",
        )
    return order


def _floating(folder: Path, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f":
        raise DataError(
            str(folder), f"`{name}` is not floating-point", expected="floating-point numbers", got=str(values.dtype)
        )
    return values
