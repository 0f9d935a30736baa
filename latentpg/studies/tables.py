"""A study's results as tables: the tidy one for machines, and a summary with what was expected and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from latentpg.numerics.statistics import LEVEL, Interval, critical_value, log_log_slope
from latentpg.studies.catalogue import MEASURES
from latentpg.studies.expectations import Expectation, Kind, expectation_of
from latentpg.studies.measures import Measured
from latentpg.studies.procedures import Procedure
from latentpg.studies.run import StudyResult
from latentpg.studies.spec import PARTICLES, Cell, Line, Setting, Study, kind_of

ROUNDING = 1e-4
"""A bias below this share of the exact gradient is float32 arithmetic, not an estimator's."""

SLOPE_FROM = 4
"""The smallest K of a fitted slope: 1/K is a law of large K."""

SIGNIFICANCE = 0.01
"""Chance that a study in which all is as expected calls any of its lines against expectation, shared among them."""


def tidy_rows(result: StudyResult) -> list[dict[str, Any]]:
    """List one row a cell and measure; ``high`` is ``inf`` where an interval has no end."""
    return [
        {
            "study": result.study.name,
            "target": measured.cell.target,
            "estimator": measured.cell.line.estimator,
            "proposal": measured.cell.line.proposal,
            "objective": measured.cell.line.objective,
            **{axis: measured.cell.at(axis) for axis in result.study.axes},
            "measure": measured.measure,
            "unit": MEASURES[measured.measure].unit,
            "value": measured.interval.value,
            "low": measured.interval.low,
            "high": measured.interval.high,
            "exact": measured.exact,
            "num_replicates": None if measured.exact else measured.count or _repetitions(result, measured),
        }
        for measured in result.measured
    ]


def _repetitions(result: StudyResult, measured: Measured) -> int:
    timed = measured.measure in {"seconds", "ess"}
    return result.study.num_timings if timed else result.study.num_replicates


@dataclass(frozen=True)
class Facet:
    """One figure's worth of a study: a target, at one place on every axis but the one to the right."""

    target: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @property
    def label(self) -> str:
        """A name for headings and files' stems."""
        return ", ".join([self.target, *(f"{name}={value}" for name, value in self.settings)])

    def holds(self, cell: Cell, x: str) -> bool:
        """Tell whether a cell lies in it; an axis that does not concern the cell does not keep it out."""
        return cell.target == self.target and all(
            cell.at(name) in (value, None) for name, value in self.settings if name != x
        )


def facets(study: Study) -> list[Facet]:
    """List a study's facets, in the order of its targets and axes."""
    return _facets(study, (study.x,))


def pages(study: Study) -> list[Facet]:
    """List facets without the axis of panels: what is shown together in one figure."""
    return _facets(study, (study.x, study.panels))


def _facets(study: Study, left_out: Sequence[str | None]) -> list[Facet]:
    found: dict[Facet, None] = {}
    for cell in study.cells():
        settings = tuple((name, value) for name, value in cell.settings if name not in left_out)
        found[Facet(cell.target, settings)] = None

    # a cell that some axis does not concern makes a smaller facet: it is shown within the larger ones
    def within(small: Facet, large: Facet) -> bool:
        return small.target == large.target and set(small.settings) < set(large.settings)

    return [facet for facet in found if not any(within(facet, other) for other in found)]


def is_carried_out(study: Study, facet: Facet) -> bool:
    """Tell whether a facet's target is a procedure, with measures of its own."""
    return isinstance(study.targets[facet.target], Procedure)


def lines_of(result: StudyResult, facet: Facet) -> list[Line]:
    """List the lines that something was measured of in a facet."""
    there = {m.cell.line.label for m in result.measured if facet.holds(m.cell, result.study.x)}
    return [line for line in result.lines if line.label in there]


def curve(result: StudyResult, facet: Facet, line: Line, measure: str) -> list[Measured]:
    """Return one measure along one line of a facet, in the order of the axis to the right."""
    return [
        m
        for m in result.measured
        if m.measure == measure and m.cell.line == line and facet.holds(m.cell, result.study.x)
    ]


@dataclass(frozen=True)
class Summary:
    """A table of text: a heading a column, and rows of as many entries."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summarize(result: StudyResult, facet: Facet) -> Summary:
    """Condense a facet to one row a line: bias at the first, the middle and the last x, the rest at the middle one.

    A procedure's own measures are shown at the first and the last x.
    """
    if is_carried_out(result.study, facet):
        return _summarize_procedure(result, facet)
    shown = shown_values(result.study.axes[result.study.x])
    middle, axis = shown[len(shown) // 2], _axis_name(result.study.x)
    columns = (
        "estimator",
        "expected",
        *(f"bias {axis}={value}" for value in shown),
        f"noise {axis}={middle}",
        f"SNR {axis}={middle}",
        f"cosine {axis}={middle}",
        f"ms {axis}={middle}",
    )
    lines = lines_of(result, facet)
    return Summary(columns, tuple(_summary_row(result, facet, line, shown, middle) for line in lines))


def own_measures(result: StudyResult, facet: Facet) -> list[str]:
    """List the measures that a facet has and that are neither costs nor truths, in their order."""
    found = {m.measure for m in result.measured if facet.holds(m.cell, result.study.x)}
    return [name for name in MEASURES if name in found - {"seconds"} and not name.startswith("true_")]


def _summarize_procedure(result: StudyResult, facet: Facet) -> Summary:
    study = result.study
    ends = list(dict.fromkeys([study.axes[study.x][0], study.axes[study.x][-1]]))
    axis = _axis_name(study.x)
    measures = own_measures(result, facet)
    columns = ("estimator", *(f"{MEASURES[name].label} {axis}={value}" for name in measures for value in ends))
    rows = [
        (line.label, *(_at(result, facet, line, name, value) for name in measures for value in ends))
        for line in lines_of(result, facet)
    ]
    return Summary(columns, tuple(rows))


def _at(result: StudyResult, facet: Facet, line: Line, measure: str, value: Setting) -> str:
    points = curve(result, facet, line, measure)
    found = next((m for m in points if m.cell.at(result.study.x) in (value, None)), None)
    return "–" if found is None else describe_value(found.interval)


def describe_value(interval: Interval) -> str:
    """Spell a number with its interval, or alone where it has no noise.

    >>> describe_value(Interval(0.5, 0.4, 0.6)), describe_value(Interval(0.5, 0.5, 0.5))
    ('0.5 [0.4, 0.6]', '0.5')
    """
    value, low, high = (f"{end:.3g}" for end in (interval.value, interval.low, interval.high))
    return value if interval.low == interval.high else f"{value} [{low}, {high}]"


def _axis_name(axis: str) -> str:
    return "K" if axis == PARTICLES else axis


def shown_values(values: Sequence[Setting]) -> list[Setting]:
    """Choose the first, the middle and the last value of an axis.

    >>> shown_values((1, 2, 4, 8, 16, 32, 64))
    [1, 8, 64]
    """
    return list(dict.fromkeys([values[0], values[len(values) // 2], values[-1]]))


def _summary_row(
    result: StudyResult, facet: Facet, line: Line, shown: Sequence[Setting], middle: Setting
) -> tuple[str, ...]:
    def at(value: Setting, measure: str) -> Measured | None:
        points = curve(result, facet, line, measure)
        return next((m for m in points if m.cell.at(result.study.x) in (value, None)), None)

    def text(value: Setting, measure: str, spell: Callable[[float], str]) -> str:
        found = at(value, measure)
        return "–" if found is None else spell(found.interval.value)

    biases = [at(value, "bias") for value in shown]
    variance = at(middle, "variance")
    norm = math.nan if variance is None else result.norm(variance.cell)
    return (
        line.label,
        expected(result.study, line, facet).kind.value,
        *("–" if m is None else describe_bias(m.interval, result.norm(m.cell)) for m in biases),
        "–" if variance is None or math.isnan(norm) else f"{100 * variance.interval.value**0.5 / norm:.3g} %",
        text(middle, "snr", lambda value: f"{value:.3g}"),
        text(middle, "cosine", lambda value: f"{value:.3f}"),
        text(middle, "seconds", lambda value: f"{1e3 * value:.2f}"),
    )


def expected(study: Study, line: Line, facet: Facet) -> Expectation:
    """Return the claim about a line in a facet."""
    return expectation_of(line.estimator, kind_of(study.targets[facet.target]), role=line.role)


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

    facet: Facet
    line: Line
    text: str
    agrees: bool | None


def find(result: StudyResult) -> list[Finding]:
    """Hold every line of every facet against what was expected of it."""
    every = [facet for facet in facets(result.study) if not is_carried_out(result.study, facet)]
    pairs = [(facet, line) for facet in every for line in lines_of(result, facet)]
    found = [_find(result, facet, line, SIGNIFICANCE / len(pairs)) for facet, line in pairs]
    told = [replace(each, text="; ".join([each.text, *_slope_of_snr(result, each)])) for each in found]
    carried_out = [page for page in pages(result.study) if is_carried_out(result.study, page)]
    return told + [_tell(result, page, line) for page in carried_out for line in lines_of(result, page)]


def _tell(result: StudyResult, page: Facet, line: Line) -> Finding:
    """Say where a procedure ends: at the largest x from panel to panel, or else at the smallest and the largest x."""
    study = result.study
    last = study.axes[study.x][-1]
    told = []
    for name in own_measures(result, page):
        points = curve(result, page, line, name)
        if study.panels is not None:
            axis, shown = study.panels, [m for m in points if m.cell.at(study.x) in (last, None)]
        else:
            axis, shown = study.x, [points[0], points[-1]] if len(points) > 1 else points
        ends = [f"{describe_value(m.interval)}{_where(m, axis)}" for m in shown]
        told.append(f"{MEASURES[name].label}: {', '.join(ends)}")
    end = f" (at {_axis_name(study.x)} = {last})" if study.panels is not None else ""
    return Finding(page, line, "; ".join(told) + end, None)


def _where(measured: Measured, axis: str) -> str:
    value = measured.cell.at(axis)
    return "" if value is None else f" at {_axis_name(axis)} = {value}"


def _slope_of_snr(result: StudyResult, finding: Finding) -> list[str]:
    """Say how a guide's signal-to-noise ratio changes with K, where it can be told."""
    floor = 2 * math.sqrt(2 / (math.pi * result.study.num_replicates))  # twice what chance alone shows
    points = [m for m in curve(result, finding.facet, finding.line, "coordinate_snr") if m.interval.low > floor]
    if finding.line.role != "objective" or result.study.x != PARTICLES or len(points) < 2:
        return []
    sizes = [m.cell.num_particles or 1 for m in points]
    slope = log_log_slope(sizes, [m.interval for m in points])
    return [f"SNR ∝ K^{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}] from K = {min(sizes)} to {max(sizes)}"]


def _find(result: StudyResult, facet: Facet, line: Line, significance: float) -> Finding:
    biases = curve(result, facet, line, "bias")
    if not biases:
        return Finding(facet, line, "no reference, so that no bias can be told", None)
    shares = [m.interval.scaled(1 / result.norm(m.cell)) for m in biases]
    kind = expected(result.study, line, facet).kind
    match kind:
        case Kind.EXACT:
            worst = max(share.value for share in shares)
            text = (
                f"differs from the reference by {worst:.1e} of its length"
                if worst
                else "equal to the reference in every digit"
            )
            return Finding(facet, line, text, worst < ROUNDING)
        case Kind.UNBIASED:
            contain = sum(share.low == 0 for share in shares)
            bound = max(share.high for share in shares)
            text = f"{contain} of {len(shares)} intervals reach zero bias; no upper end above {100 * bound:.2g} %"
            agrees = _chance_of_misses(len(shares) - contain, len(shares)) >= significance
            return Finding(facet, line, text, agrees)
        case Kind.VANISHING | Kind.CHAIN | Kind.UNKNOWN:
            slope = bias_slope(biases) if result.study.x == PARTICLES else None
            if result.study.x != PARTICLES:
                ends = [describe_bias(share, 1.0) for share in (shares[0], shares[-1])]
                text = f"bias {ends[0]} at the smallest {result.study.x}, {ends[1]} at the largest"
                return Finding(facet, line, text, None)
            if slope is None:
                return Finding(facet, line, "too few biases stand out of the noise to fit a slope", None)
            text = f"bias ∝ K^{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}] from K = {SLOPE_FROM} on"
            return Finding(facet, line, text, slope.high < 0 if kind is Kind.VANISHING else None)
        case Kind.BOUND:
            ends = [describe_bias(share, 1.0) for share in (shares[0], shares[-1])]
            flat = _chance_of_difference(shares[0], shares[-1]) >= significance
            where = _axis_name(result.study.x)
            text = f"bias {ends[0]} at the smallest {where}, {ends[1]} at the largest"
            return Finding(facet, line, text, flat if result.study.x == PARTICLES else None)


def _chance_of_difference(one: Interval, other: Interval) -> float:
    """Return the probability that independent estimates of one number lie so far apart, taking both for normal."""
    errors = [(each.high - each.low) / (2 * critical_value(10**6)) for each in (one, other)]
    spread = math.hypot(*errors)
    return 1.0 if spread == 0 else 2 * (1 - NormalDist().cdf(abs(one.value - other.value) / spread))


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
