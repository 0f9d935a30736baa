"""Metrics of a run: a line of JSON as each is known, a CSV table at every checkpoint, and TensorBoard if installed.

Names are those that the field's tools know: ``rollout/ep_rew_mean``, ``train/approx_kl``, ``eval/mean_reward``,
``time/fps``, ``time/total_timesteps``. ``metrics.jsonl`` is the log; ``metrics.csv`` is made from it. A run that goes
on from a checkpoint forgets the lines that were written after it, and has TensorBoard forget them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentpg.errors import StudyError
from latentpg.runs import FORMAT_VERSION, publish, write_csv
from latentpg.runs.untrusted import RefusedError, read_bounded

STEPS = "time/total_timesteps"
"""The column of environment steps, which every row has."""

MAX_LOG = 2**28
"""The largest log that is read, in bytes: some millions of rows."""

Row = Mapping[str, float | int]
"""Numbers by name."""


class MetricsLog:
    """The metrics of the run in a folder; with ``steps`` it goes on with those of its earlier life up to there."""

    def __init__(self, folder: Path, *, steps: int | None = None) -> None:
        """Open the log, new or where a checkpoint at ``steps`` left it."""
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.rows: list[Row] = []
        if steps is not None:
            self.rows += [row for row in read_metrics(folder) if row[STEPS] <= steps]
        publish(self.path, "".join(map(_line, self.rows)).encode())
        self._purge_step = None if steps is None else steps + 1
        self._board: Any | None = None
        self._has_begun = False

    def add(self, row: Row) -> None:
        """Write a row; ``time/total_timesteps`` must be in it."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(_line(row))
        if not self._has_begun:  # only now: a finished run that is gone on with gets no file
            self._has_begun = True
            self._board = tensorboard_writer(self.folder / "tensorboard", purge_step=self._purge_step)
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, int(row[STEPS]))

    def write_table(self) -> Path:
        """Write ``metrics.csv``: a row an entry, and a column a name that any of them has."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        path = self.folder / "metrics.csv"
        if self.rows:
            write_csv(path, [{name: row.get(name) for name in columns} for row in self.rows])
        return path

    def close(self) -> None:
        """Write the table, and end what writes for TensorBoard."""
        self.write_table()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path) -> list[Row]:
    """Read the log of a run; a last line that a kill cut off is left out, a damaged one before it is an error."""
    path = folder / "metrics.jsonl"
    try:
        lines = read_bounded(path, limit=MAX_LOG).decode().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError, RefusedError) as error:
        raise StudyError("run folder", f"{path} cannot be read", expected="a run's metrics", got=str(error)) from error
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if entry.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another version of the format")
            rows.append({name: _number(value) for name, value in entry.items()})
            int(rows[-1][STEPS])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StudyError(
                "run folder", f"{path}, line {number}", expected="a row of metrics", got=repr(line[:80])
            ) from error
    return rows


def series(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values of the rows that have a name.

    >>> series([{STEPS: 1, "a": 2.0}, {STEPS: 2}, {STEPS: 3, "a": 4.0}], "a")
    ([1.0, 3.0], [2.0, 4.0])
    """
    found = [(float(row[STEPS]), float(row[name])) for row in rows if name in row]
    return [steps for steps, _ in found], [value for _, value in found]


def tensorboard_writer(folder: Path, *, purge_step: int | None) -> Any | None:  # noqa: ANN401 (torch's writer)
    """Return what writes for TensorBoard, or None where that is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    module = importlib.import_module("torch.utils.tensorboard")
    return module.SummaryWriter(log_dir=str(folder), purge_step=purge_step)


def _line(row: Row) -> str:
    whole = {"format_version": FORMAT_VERSION, **{name: _finite(value) for name, value in row.items()}}
    return json.dumps(whole, allow_nan=False) + "\n"


def _number(value: object) -> float | int:
    """Return a number of a log, in which NaN and infinity are text."""
    if isinstance(value, str):
        return float(value)
    if isinstance(value, float) or (type(value) is int and abs(value) < 10**18):
        return value
    raise TypeError


def _finite(value: float | int) -> float | int | str:
    return value if math.isfinite(value) else str(float(value))  # JSON has no NaN
