"""A study's results as tables: the tidy one for machines, and a summary with what was expected and what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentpg.numerics.statistics import LEVEL, Interval, log_log_slope
from latentpg.studies.expectations import Kind, expectation_of
from latentpg.studies.measures import MEASURES, Measured
from latentpg.studies.run import StudyResult
from latentpg.studies.spec import Cell, Line

ROUNDING = 1e-4
"""A bias below this share of the exact gradient is float32 arithmetic, not an estimator's."""

SLOPE_FROM = 4
"""The smallest K of a fitted slope: 1/K is a law of large K."""

SIGNIFICANCE = 0.01
"""Intervals that miss zero more often than chance would with this probability speak against an unbiased estimator."""


def tidy_rows(result: StudyResult) -> list[dict[str, Any]]:
    """List one row a cell and measure; ``high`` is ``inf`` where an interval has no end."""
    return [
        {
            "study": result.study.name,
            "target": "gradient of log pi",
            "estimator": measured.cell.line.estimator,
            "proposal": measured.cell.line.proposal,
            "num_particles": measured.cell.num_particles,
            "measure": measured.measure,
            "unit": MEASURES[measured.measure].unit,
            "value": measured.interval.value,
            "low": measured.interval.low,
            "high": measured.interval.high,
            "exact": measured.exact,
            "num_replicates": None if measured.exact else _repetitions(result, measured),
        }
        for measured in result.measured
    ]


def _repetitions(result: StudyResult, measured: Measured) -> int:
    timed = measured.measure in {"seconds", "ess"}
    return result.study.num_timings if timed else result.study.num_replicates


@dataclass(frozen=True)
class Summary:
    """A table of text: a heading a column, and rows of as many entries."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summarize(result: StudyResult) -> Summary:
    """Condense a study to one row a line: bias at the first, the middle and the last K, the rest at the middle one."""
    sizes = shown_particles(result.study.num_particles)
    middle = sizes[len(sizes) // 2]
    columns = (
        "estimator",
        "expected",
        *(f"bias K={size}" for size in sizes),
        f"noise K={middle}",
        f"cosine K={middle}",
        f"ms K={middle}",
    )
    return Summary(columns, tuple(_summary_row(result, line, sizes, middle) for line in result.lines))


def shown_particles(sizes: Sequence[int]) -> list[int]:
    """Choose the first, the middle and the last K of a grid.

    >>> shown_particles((1, 2, 4, 8, 16, 32, 64))
    [1, 8, 64]
    """
    ordered = sorted(set(sizes))
    return sorted({ordered[0], ordered[len(ordered) // 2], ordered[-1]})


def _summary_row(result: StudyResult, line: Line, sizes: Sequence[int], middle: int) -> tuple[str, ...]:
    def at(size: int, measure: str) -> Interval | None:
        alone = result.interval(Cell(line, None), measure)
        return alone if alone is not None else result.interval(Cell(line, size), measure)

    norm = result.reference_norm
    variance, cosine, seconds = (at(middle, name) for name in ("variance", "cosine", "seconds"))
    return (
        line.label,
        expectation_of(line.estimator).kind.value,
        *(describe_bias(at(size, "bias"), norm) for size in sizes),
        "–" if variance is None else f"{100 * variance.value**0.5 / norm:.3g} %",
        "–" if cosine is None else f"{cosine.value:.3f}",
        "–" if seconds is None else f"{1e3 * seconds.value:.2f}",
    )


def describe_bias(bias: Interval | None, norm: float) -> str:
    """Say a bias as a share of the exact gradient; ``≤`` its interval's upper end where the interval reaches zero.

    >>> describe_bias(Interval(0.2, 0.1, 0.3), 1.0), describe_bias(Interval(0.0, 0.0, 0.3), 1.0)
    ('20 %', '≤ 30 %')
    """
    if bias is None:
        return "–"
    if bias.high < ROUNDING * norm:
        return "0"
    return f"≤ {100 * bias.high / norm:.2g} %" if bias.low == 0 else f"{100 * bias.value / norm:.3g} %"


@dataclass(frozen=True)
class Finding:
    """What was seen of one line; ``agrees`` is None where there is no claim to hold it against."""

    line: Line
    text: str
    agrees: bool | None


def find(result: StudyResult) -> list[Finding]:
    """Hold every line against what was expected of it."""
    return [_find(result, line) for line in result.lines]


def _find(result: StudyResult, line: Line) -> Finding:
    biases = result.curve(line, "bias")
    kind = expectation_of(line.estimator).kind
    norm = result.reference_norm
    match kind:
        case Kind.EXACT:
            worst = max(measured.interval.value for measured in biases) / norm
            text = (
                f"differs from the reference by {worst:.1e} of its length"
                if worst
                else "equal to the reference in every digit"
            )
            return Finding(line, text, worst < ROUNDING)
        case Kind.UNBIASED:
            contain = sum(measured.interval.low == 0 for measured in biases)
            bound = max(measured.interval.high for measured in biases) / norm
            text = f"{contain} of {len(biases)} intervals reach zero bias; no upper end above {100 * bound:.2g} %"
            return Finding(line, text, _chance_of_misses(len(biases) - contain, len(biases)) >= SIGNIFICANCE)
        case Kind.VANISHING | Kind.CHAIN | Kind.UNKNOWN:
            slope = bias_slope(biases)
            if slope is None:
                return Finding(line, "too few biases stand out of the noise to fit a slope", None)
            text = f"bias ∝ K^{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}] from K = {SLOPE_FROM} on"
            return Finding(line, text, slope.high < 0 if kind is Kind.VANISHING else None)
        case Kind.BOUND:
            ends = [describe_bias(measured.interval, norm) for measured in (biases[0], biases[-1])]
            first, last = biases[0].interval, biases[-1].interval
            flat = first.low <= last.high and last.low <= first.high
            return Finding(line, f"bias {ends[0]} at the smallest K, {ends[1]} at the largest", flat)


def _chance_of_misses(misses: int, total: int) -> float:
    """Return the probability that so many or more of ``total`` honest intervals miss the truth."""
    miss = 1 - LEVEL
    return sum(math.comb(total, k) * miss**k * LEVEL ** (total - k) for k in range(misses, total + 1))


def bias_slope(biases: Sequence[Measured]) -> Interval | None:
    """Fit the log-log slope of a bias in K over the cells that stand out of the noise; None with fewer than two."""
    resolved = [m for m in biases if m.interval.low > 0 and (m.cell.num_particles or 0) >= SLOPE_FROM]
    if len(resolved) < 2:
        return None
    return log_log_slope([float(m.cell.num_particles or 0) for m in resolved], [m.interval for m in resolved])
