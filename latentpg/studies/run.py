"""Run a study: every cell on its own random stream and one thread, here or in other processes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, cast

from latentpg.errors import EstimatorError, LatentPGError, RecordedLatentError, SiteError, StudyError
from latentpg.numerics.devices import checked_device, made_on
from latentpg.numerics.rng import stream_seed
from latentpg.numerics.statistics import Interval
from latentpg.studies.measures import Measured, carry_out, measure_cell
from latentpg.studies.problem import Problem, Source
from latentpg.studies.procedures import STEP, Procedure
from latentpg.studies.progress import Advance, silent
from latentpg.studies.spec import Cell, Line, Study
from latentpg.studies.workers import one_thread

INAPPLICABLE = (EstimatorError, SiteError, RecordedLatentError)
"""What an estimator raises when it cannot do what is asked of it; anything else is a fault and ends the study."""

Rows = list[dict[str, Any]]
"""A cell's results as flat mappings, as they are kept: a row a measure, or one row that says why it was skipped."""


@dataclass(frozen=True)
class Skipped:
    """A cell that was not run, and the first line of why."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class StudyResult:
    """Everything a study found; ``facts`` are those of its source as it is written, off all axes."""

    study: Study
    facts: Mapping[str, float | int | str]
    measured: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    seconds: float

    def interval(self, cell: Cell, measure: str) -> Interval | None:
        """Return what was measured in a cell, if it was."""
        return next((m.interval for m in self.measured if m.cell == cell and m.measure == measure), None)

    def norm(self, cell: Cell) -> float:
        """Return the length of a cell's reference, or NaN where there is none."""
        found = self.interval(cell, "reference_norm")
        return math.nan if found is None else found.value

    @property
    def lines(self) -> list[Line]:
        """The lines of which at least one cell was run, in the study's order."""
        return [line for line in self.study.lines if any(m.cell.line == line for m in self.measured)]


def build_problem(study: Study) -> Problem:
    """Build the study's source as it is written, so that a mistake in it is told before anything is run."""
    with one_thread():
        return _problem(study.source, study.seed)


def run_study(
    study: Study,
    *,
    execute: Callable[[Sequence[str], Callable[[str], Rows]], Mapping[str, Rows]] | None = None,
    advance: Advance = silent,
    device: str = "cpu",
) -> StudyResult:
    """Measure every cell; ``execute`` runs the work for all keys and returns what each gave, here one after another.

    Unless the study skips what is invalid, an estimator that does not fit the source ends it with an error. On another
    ``device`` its random streams are others, and so are the numbers.
    """
    start = time.monotonic()
    problem, jobs = build_problem(study), study.jobs()
    work = partial(measure_key, study, device=device)
    keys = list(jobs)
    found = _in_turn(keys, work, advance) if execute is None else execute(keys, work)
    measured: list[Measured] = []
    skipped: list[Skipped] = []
    for key, cells in jobs.items():
        for row in found[key]:
            if row["measure"] == SKIPPED:
                skipped.append(Skipped(cells[0], str(row["reason"])))
            else:
                cell = next((cell for cell in cells if cell.at(STEP) == row.get(STEP)), cells[0])
                interval = Interval(float(row["value"]), float(row["low"]), float(row["high"]))
                measured.append(Measured(cell, str(row["measure"]), interval, bool(row["exact"]), row.get("count")))
    return StudyResult(study, problem.facts, tuple(measured), tuple(skipped), time.monotonic() - start)


SKIPPED = "skipped"
"""Stands for a measure in the one row of a cell that was not run."""


def measure_key(study: Study, key: str, *, device: str = "cpu") -> Rows:
    """Measure what a key stands for; the result hangs on study, key and device, whoever runs it and when."""
    cells = study.job(key)
    cell, seed = cells[0], stream_seed(study.seed, key)
    target = study.target_of(cell)
    with one_thread(), made_on(checked_device(device)):
        problem = _problem(study.source_of(cell), study.seed, device)
        try:
            if isinstance(target, Procedure):
                measured = carry_out(cells, target, problem, num_replicates=study.num_replicates, seed=seed)
            else:
                measured = measure_cell(
                    cell,
                    target,
                    problem,
                    num_replicates=study.num_replicates,
                    num_timings=study.num_timings,
                    seed=seed,
                )
        except INAPPLICABLE as error:
            if study.skip_invalid:
                return [{"measure": SKIPPED, "reason": _reason(error)}]
            raise StudyError(
                f"study {study.name}",
                f"cell `{key}` cannot be measured on this source",
                expected="estimators that fit the source",
                got=_reason(error),
                fix="leave the line out, or skip what does not fit by --skip-invalid",
            ) from error
    return [
        {
            "measure": m.measure,
            "value": m.interval.value,
            "low": m.interval.low,
            "high": m.interval.high,
            "exact": m.exact,
            **({} if m.count is None else {"count": m.count}),
            **({} if m.cell.at(STEP) is None else {STEP: m.cell.at(STEP)}),
        }
        for m in measured
    ]


def merge_skipped(skipped: Sequence[Skipped]) -> list[tuple[str, str]]:
    """Gather skipped cells by line and reason: ``(which, why)``."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for each in skipped:
        groups.setdefault((each.cell.line.label, each.reason), []).append(each.cell)
    merged = []
    for (label, reason), cells in groups.items():
        sizes = list(dict.fromkeys(str(cell.num_particles) for cell in cells if cell.num_particles is not None))
        merged.append((f"{label}, K = {', '.join(sizes)}" if sizes else label, reason))
    return merged


def _in_turn(keys: Sequence[str], work: Callable[[str], Rows], advance: Advance) -> dict[str, Rows]:
    found = {}
    for key in keys:
        found[key] = work(key)
        advance(key)
    return found


def _problem(source: Source, seed: int, device: str = "cpu") -> Problem:
    """Build a problem once a process: neighbouring cells share it."""
    return _built(cast(Hashable, source), seed, device)


@lru_cache(maxsize=4)
def _built(source: Hashable, seed: int, device: str) -> Problem:
    return replace(cast(Source, source).build(seed), seed=seed)  # here, so that no source can forget it


def _reason(error: LatentPGError) -> str:
    """Take the cause the message names, or else its first line."""
    lines = str(error).splitlines()
    likely = [line.partition(":")[2].strip() for line in lines if line.strip().startswith("likely:")]
    return likely[0] if likely else lines[0].partition(": ")[2]
