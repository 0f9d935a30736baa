"""Run the cells of a study that its store does not have yet, in parallel processes, so that any interruption resumes.

A cell is a key, and ``work(key)`` its rows. Each cell seeds itself, so its rows depend neither on the order nor on the
number of workers. Workers hand finished cells to the parent one at a time, and the parent alone writes the store: a
kill at any moment loses only the cells in flight (and, where cells are quicker than the disk takes a file of each,
which is 1 to 10 ms, those that wait for it). Sending a cell to a process and its rows back takes about 0.2 ms, so
cells travel singly; ``work`` travels with each, so it should be small (a configuration) and keep what it builds.
"""

from __future__ import annotations

import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from latentpg import errors
from latentpg.errors import LatentPGError, OptionError, StudyError, did_you_mean
from latentpg.studies.cellfile import Row, checked_rows
from latentpg.studies.progress import Advance, silent
from latentpg.studies.store import CellStore
from latentpg.studies.workers import BACKENDS, Backend, has_ended, import_ray, one_thread, prepare_worker, workers

Work = Callable[[str], Sequence[Row]]
"""Computes the rows of a cell from its key. It is sent to other processes, so it must be picklable."""

_AGAIN = "run the same command again: finished cells are kept"


@dataclass(frozen=True)
class _Failure:
    """What ``work`` raised, as text: an exception itself may not survive the way between processes.

    ``family`` names a class of :mod:`latentpg.errors`, or is None for any other exception.
    """

    family: str | None
    text: str
    place: str
    trace: str


@dataclass(frozen=True)
class _Outcome:
    """What became of a cell: rows, or a failure."""

    key: str
    rows: tuple[Row, ...]
    seconds: float
    failure: _Failure | None = None


def run_cells(
    keys: Sequence[str],
    work: Work,
    store: CellStore,
    *,
    num_workers: int = 1,
    backend: Backend = "process",
    advance: Advance = silent,
    say: Callable[[str], None] = warnings.warn,
) -> None:
    """Compute and store the cells of ``keys`` that ``store`` has not; read them back from there.

    ``advance`` hears of each cell that is computed now, ``say`` of each damaged file, whose cell counts as missing.
    With one worker, or one cell left, all happens in this process. An error of this library's that ``work`` raises
    arrives as itself with the cell named; any other exception, and a worker that dies, become a
    :class:`~latentpg.errors.StudyError`. However it ends, no worker is left running and finished cells stay.
    """
    check_workers(num_workers, backend)
    _check_distinct(keys)
    with store.held():
        survey = store.survey()
        for name, why in survey.damaged.items():
            say(f"{store.cells / name} is damaged ({why}); its cell counts as missing")
        missing = [key for key in keys if key not in survey.finished]
        with closing(_outcomes(missing, work, min(num_workers, len(missing)), backend)) as outcomes:
            for outcome in outcomes:
                if outcome.failure is not None:
                    raise _rebuilt(outcome.key, outcome.failure)
                store.write(outcome.key, outcome.rows, outcome.seconds)
                advance(outcome.key)


def check_workers(num_workers: int, backend: str) -> None:
    """Refuse a number of workers or a backend that cannot be, before anything is written."""
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 1:
        raise OptionError("run_cells()", "`num_workers`", expected="an integer >= 1", got=repr(num_workers))
    if backend not in BACKENDS:
        expected, fix = f"one of {', '.join(BACKENDS)}", did_you_mean(backend, BACKENDS)
        raise OptionError("run_cells()", "`backend`", expected=expected, got=repr(backend), fix=fix)
    if backend == "ray":
        import_ray()


def _check_distinct(keys: Sequence[str]) -> None:
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if list(keys).count(key) > 1)
        raise StudyError("run_cells()", "`keys`", expected="distinct keys", got=f"{twice!r} twice")


def _outcomes(keys: Sequence[str], work: Work, num_workers: int, backend: Backend) -> Generator[_Outcome, None, None]:
    """Yield what becomes of each cell, as soon as it is known."""
    if num_workers <= 1 or backend == "serial":
        with one_thread():
            yield from (_attempt(work, key) for key in keys)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latentpg-")))
        start = stack.enter_context(workers(backend, num_workers))
        results = stack.enter_context(closing(start(_Task(work, folder, os.getpid()), keys)))
        pending = dict.fromkeys(keys)
        while pending:
            try:
                outcome = next(results)
            except Exception as error:  # a task returns what `work` raises, so it is the machinery that failed
                raise _broken(error, _in_flight(folder) or list(pending)[: 2 * num_workers]) from error
            del pending[outcome.key]
            yield outcome


@dataclass(frozen=True)
class _Task:
    """Runs in a worker: one cell on one thread, its key left in ``folder`` meanwhile, so that a death can be named."""

    work: Work
    folder: Path
    parent: int

    def __call__(self, key: str) -> _Outcome:
        prepare_worker(self.parent)
        mark = self.folder / f"{os.getpid()}.txt"
        with suppress(OSError):  # a worker on another machine has no such folder
            mark.write_text(key, encoding="utf-8")
        outcome = _attempt(self.work, key)
        with suppress(OSError):
            mark.unlink(missing_ok=True)
        return outcome


def _attempt(work: Work, key: str) -> _Outcome:
    start = time.perf_counter()
    try:
        rows = checked_rows(work(key))
    except (Exception, SystemExit) as error:
        return _Outcome(key, (), time.perf_counter() - start, _describe(error))
    return _Outcome(key, rows, time.perf_counter() - start)


def _describe(error: BaseException) -> _Failure:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    family = next((c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__), None)
    text = str(error) if family else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    return _Failure(family, text, f"{frame.filename}:{frame.lineno}, in {frame.name}", trace)


def _rebuilt(key: str, failure: _Failure) -> LatentPGError:
    """Make the error of the same class and text, with the cell as one line more, and the worker's trace as a note."""
    if failure.family is None:
        place = f"raised at {failure.place}"
        error: LatentPGError = StudyError(
            "study", f"cell {key!r} failed", got=failure.text, likely=place, fix=f"mend it and {_AGAIN}"
        )
    else:
        family: type[LatentPGError] = getattr(errors, failure.family)
        error = family.__new__(family)
        error.args = (f"{failure.text}\n  {'cell:':<9} {key}",)
    error.add_note(f"raised in the cell by:\n{failure.trace}")
    return error


def _broken(error: Exception, keys: Sequence[str]) -> StudyError:
    """Name the cells in flight: which of them took its worker down cannot be told once all workers are gone."""
    named = ", ".join(map(repr, keys))
    return StudyError(
        "study",
        f"a worker process failed at {'one of the cells' if len(keys) > 1 else 'cell'} {named}",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        likely="it was killed (out of memory?)" if has_ended(error) else None,
        fix=f"{_AGAIN}; fewer workers, if memory ran out",
    )


def _in_flight(folder: Path) -> list[str]:
    return sorted(path.read_text(encoding="utf-8") for path in folder.glob("*.txt"))
