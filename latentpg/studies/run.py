"""Run a study: every cell on its own random stream, one thread, inapplicable estimators named and skipped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from latentpg.errors import EstimatorError, LatentPGError, SiteError, StudyError
from latentpg.estimators import Estimator
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import Interval
from latentpg.studies.expectations import expectation_of
from latentpg.studies.measures import Measured, exact_gradient, gradient, measure_cell
from latentpg.studies.progress import Advance, silent
from latentpg.studies.spec import Cell, Line, Problem, Study, stream_seed

INAPPLICABLE = (EstimatorError, SiteError)
"""What an estimator raises when it cannot do what is asked of it; anything else is a fault and ends the study."""


@dataclass(frozen=True)
class Skipped:
    """A cell that was not run, and the first line of why."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class StudyResult:
    """Everything a study found. ``reference_norm`` is the length of the exact gradient, in nats."""

    study: Study
    reference_norm: float
    num_parameters: int
    facts: Mapping[str, float | int | str]
    measured: tuple[Measured, ...]
    skipped: tuple[Skipped, ...]
    seconds: float

    def interval(self, cell: Cell, measure: str) -> Interval | None:
        """Return what was measured in a cell, if it was."""
        found = [m.interval for m in self.measured if m.cell == cell and m.measure == measure]
        return found[0] if found else None

    def curve(self, line: Line, measure: str) -> list[Measured]:
        """Return one measure along one line, in the order of K."""
        return [m for m in self.measured if m.cell.line == line and m.measure == measure]

    @property
    def lines(self) -> list[Line]:
        """The lines of which at least one cell was run, in the study's order."""
        return [line for line in self.study.lines if any(m.cell.line == line for m in self.measured)]


def build_problem(study: Study) -> Problem:
    """Build the study's source, and refuse one whose exact gradient vanishes: no share of it could be told."""
    with one_thread():
        problem = study.source.build(study.seed)
        reference = exact_gradient(problem)
        length, rounding = float(reference.norm()), 100 * torch.finfo(reference.dtype).eps
        if not length > rounding:
            raise StudyError(
                "study source",
                "the exact gradient vanishes, so that no error can be a share of it",
                expected=f"a length above {rounding:.0e}",
                got=f"{length:.3g}",
                likely="a policy with one action only",
                fix="another environment, or more rows",
            )
    return problem


def run_study(study: Study, problem: Problem, *, advance: Advance = silent) -> StudyResult:
    """Measure every cell that applies, on the problem of :func:`build_problem`; ``advance`` hears of each when done."""
    start = time.monotonic()
    measured: list[Measured] = []
    skipped: list[Skipped] = []
    with one_thread():
        reference = exact_gradient(problem)
        for cell in study.cells():
            seed = stream_seed(study.seed, cell.key)
            reason = _why_not(cell, problem, seed)
            if reason is None:
                measured += measure_cell(
                    cell,
                    problem,
                    reference,
                    num_replicates=study.num_replicates,
                    num_timings=study.num_timings,
                    seed=seed,
                )
            else:
                skipped.append(Skipped(cell, reason))
            advance(cell.key)
    norm = float(reference.double().norm())
    seconds = time.monotonic() - start
    return StudyResult(study, norm, len(reference), problem.facts, tuple(measured), tuple(skipped), seconds)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one torch thread: for networks this small more of them contend, and times would say nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def merge_skipped(skipped: Sequence[Skipped]) -> list[tuple[str, str]]:
    """Gather skipped cells by line and reason: ``(which, why)``."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for each in skipped:
        groups.setdefault((each.cell.line.label, each.reason), []).append(each.cell)
    merged = []
    for (label, reason), cells in groups.items():
        sizes = [str(cell.num_particles) for cell in cells if cell.num_particles is not None]
        merged.append((f"{label}, K = {', '.join(sizes)}" if sizes else label, reason))
    return merged


def _why_not(cell: Cell, problem: Problem, seed: int) -> str | None:
    """Try the estimator once where errors can look at values, and return why it does not apply, if it does not."""
    try:
        estimator: Estimator = cell.build()
        recorded = problem.latents if expectation_of(cell.line.estimator).retains_recorded else None
        with seeded(seed):
            gradient(problem, estimator, recorded)
    except INAPPLICABLE as error:
        return _reason(error)
    return None


def _reason(error: LatentPGError) -> str:
    """Take the cause the message names, or else its first line."""
    lines = str(error).splitlines()
    likely = [line.partition(":")[2].strip() for line in lines if line.strip().startswith("likely:")]
    return likely[0] if likely else lines[0].partition(": ")[2]
