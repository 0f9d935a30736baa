"""Figures of a study, one column wide: every one as PNG and SVG, with the numbers it shows beside it as CSV.

There is a set of figures for each page of the study: a target, at one place on all axes but the one to the right and
the one of panels. Without an axis of panels, curves are grouped by what is expected of them. Lengths are shares of the
reference, so that 1 means "as long as what is looked for". Matplotlib is imported when the first figure is drawn, and
its global state is left alone.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentpg.numerics.statistics import Interval
from latentpg.runs import FORMAT_VERSION, RunFolder, publish, write_csv
from latentpg.studies.expectations import Kind
from latentpg.studies.measures import Measured
from latentpg.studies.plots import PLOTS, X_LABELS, Plot
from latentpg.studies.run import StudyResult
from latentpg.studies.spec import PARTICLES, Cell, Line, Setting, Study
from latentpg.studies.tables import Facet, curve, expected, is_carried_out, pages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES = 3.4
"""Width of one column of a two-column paper."""

WIDE_LABEL = 25
"""Letters of a curve's name beyond which two names do not stand beside each other."""

# colour (Okabe and Ito's set, told apart with any colour vision), marker, line style: no two curves of a panel share
_STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#000000", "D", ":"),
    ("#CC79A7", "x", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "P", (0, (3, 2))),
    ("#56B4E9", "*", (0, (1, 1))),
)

_RC: Any = {
    "font.size": 7,
    "legend.fontsize": 6,
    "legend.title_fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "svg.hashsalt": "latentpg",
}

_STYLE_OF_PROPOSAL = {"prior": 0, "guide": 1, "mixture": 2}

_PANELS: Mapping[str, tuple[Kind, ...]] = {
    "expected unbiased": (Kind.UNBIASED,),
    "bias expected ∝ 1/K": (Kind.VANISHING,),
    "other": (Kind.CHAIN, Kind.BOUND, Kind.UNKNOWN),
}


@dataclass(frozen=True)
class Drawn:
    """One finished figure: its files, its caption, and its SVG text for the report."""

    plot: Plot
    facet: Facet
    png: Path
    svg: Path
    csv: Path
    caption: str
    svg_text: bytes


def draw_figures(result: StudyResult, folder: RunFolder, *, command: str) -> list[Drawn]:
    """Draw every figure of every facet; what has no error, or was not measured, has no place on one."""
    every = pages(result.study)
    chosen = [plot for plot in PLOTS if not result.study.figures or plot.name in result.study.figures]
    drawn = [
        _draw(plot, result, page, folder, command, "" if len(every) == 1 else f"{number}-")
        for number, page in enumerate(every, 1)
        for plot in chosen
    ]
    return [each for each in drawn if each is not None]


@dataclass(frozen=True)
class Panel:
    """A part of a figure: its title, the facet it shows, its curves, and what is expected of them all, if it is one."""

    title: str
    facet: Facet
    lines: Sequence[Line]
    kinds: tuple[Kind, ...] = ()


def _panels_of(plot: Plot, result: StudyResult, page: Facet) -> list[Panel]:
    """List the panels that have something to show: one a value of the axis of panels, or one an expectation."""
    study = result.study
    split = any(page.holds(cell, study.x) and cell.at(study.panels or "") is not None for cell in study.cells())
    if not split and is_carried_out(study, page):
        every = [Panel("", page, _lines_of(plot, result, page))]
    elif study.panels is None or not split:
        every = [Panel(title, page, _lines_of(plot, result, page, kinds), kinds) for title, kinds in _PANELS.items()]
    else:
        name = "K" if study.panels == PARTICLES else study.panels
        inner = [
            (value, replace(page, settings=(*page.settings, (study.panels, value))))
            for value in study.axes[study.panels]
        ]
        every = [Panel(f"{name} = {value}", facet, _lines_of(plot, result, facet)) for value, facet in inner]
    return [panel for panel in every if panel.lines]


def caption_of(plot: Plot, result: StudyResult, facet: Facet, *, command: str) -> str:
    """Write what a reader must know to judge the figure."""
    study = result.study
    bars = "Bars: 95 % intervals" + (" of both axes" if plot.cost == "seconds" else "")
    repeated = f"{study.num_replicates} replicates"
    shown = [m for m in result.measured if m.measure == plot.measure and facet.holds(m.cell, study.x)]
    open_ended = plot.is_log and any(m.interval.low <= 0 < m.interval.high for m in shown)
    mark = " Open triangle: upper end of an interval that reaches zero." if open_ended else ""
    if is_carried_out(study, facet) and all(m.exact for m in shown):
        repeated, bars = "nothing is drawn", "Exact sums"
    norms = sorted({result.norm(m.cell) for m in result.measured if facet.holds(m.cell, study.x)} - {math.nan})
    finite = [norm for norm in norms if math.isfinite(norm)]
    length = "" if not finite or not plot.power else f" ‖reference‖ = {_span(finite)}."
    varied = [axis for axis in (study.x, study.panels) if axis is not None and hasattr(study.source, axis)]
    rows = f"{study.source_at(facet.settings).describe()}{'; varied: ' + ', '.join(varied) if varied else ''}"
    return f"Target: {facet.label}. {rows}; {repeated}, seed {study.seed}. {bars}.{mark}{length} Command: {command}"


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _draw(plot: Plot, result: StudyResult, facet: Facet, folder: RunFolder, command: str, stem: str) -> Drawn | None:
    import matplotlib
    from matplotlib.figure import Figure

    caption = caption_of(plot, result, facet, command=command)
    panels = _panels_of(plot, result, facet)
    if not panels:
        return None
    rows: list[dict[str, Any]] = []
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(COLUMN_INCHES, 0.7 + 2.1 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0].tolist()
        for axis, panel in zip(axes, panels, strict=True):
            rows += _draw_panel(axis, plot, result, panel)
        _finish(figure, axes, plot, result, caption)
        described = {"Title": plot.label, "Description": f"{caption} (format_version {FORMAT_VERSION})"}
        png, svg = (_render(figure, kind, described) for kind in ("png", "svg"))
    files = [folder.file(f"{stem}{plot.name}.{kind}") for kind in ("png", "svg", "csv")]
    publish(files[0], png)
    publish(files[1], svg)
    write_csv(files[2], rows)
    return Drawn(plot, facet, files[0], files[1], files[2], caption, svg)


def _lines_of(plot: Plot, result: StudyResult, facet: Facet, kinds: tuple[Kind, ...] | None = None) -> list[Line]:
    """List a panel's lines that have something to show, those with a proposal first."""
    lines = [
        line
        for line in result.lines
        if (kinds is None or expected(result.study, line, facet).kind in kinds)
        and any(_is_drawable(plot, point) for point in _points(plot, result, facet, line))
    ]
    return sorted(lines, key=lambda line: line.proposal is None)


def _is_drawable(plot: Plot, point: Mapping[str, Any]) -> bool:
    """Tell whether a point or its upper end has a place: few replicates can leave an interval without ends."""
    ends = point["low"] > 0 or 0 < point["high"] < math.inf
    return math.isfinite(point["value"]) and (ends or not plot.is_log)


def _styles_of(lines: Sequence[Line]) -> list[int]:
    """Give each curve of a panel its own style; a proposal keeps the same one in all panels for its first curve."""
    chosen: list[int] = []
    free = iter(range(len(_STYLE_OF_PROPOSAL), 10**6))
    for line in lines:
        own = _STYLE_OF_PROPOSAL.get(line.proposal or "")
        chosen.append(next(free) if own is None or own in chosen else own)
    return chosen


def _draw_panel(axis: Axes, plot: Plot, result: StudyResult, panel: Panel) -> list[dict[str, Any]]:
    facet, title, lines = panel.facet, panel.title, panel.lines
    rows: list[dict[str, Any]] = []
    styles = _styles_of(lines)
    for place, line in enumerate(lines):
        color, marker, dashes = _STYLES[styles[place] % len(_STYLES)]
        # curves of equal law would hide each other: shift them sideways a little, by less than a marker's width apart
        shift = _shift(plot, result.study, place - (len(lines) - 1) / 2)
        points = _points(plot, result, facet, line)
        rows += [{"panel": title, "curve": line.label, **point} for point in points]
        finite = [point for point in points if math.isfinite(point["value"])]
        seen = [point for point in finite if point["low"] > 0 or not plot.is_log]
        style: dict[str, Any] = {"color": color, "markersize": 3.2, "linewidth": 1.0, "linestyle": dashes}
        if plot.cost is None and all(point["at"] is None for point in points):
            without = "K" if result.study.x == PARTICLES else result.study.x
            _draw_level(axis, points[0], f"{line.label} (no {without}", plot, style)
            continue
        axis.errorbar(
            [shift(point["x"]) for point in seen],
            [point["value"] for point in seen],
            yerr=_reaches(seen, "value", "low", "high"),
            xerr=_reaches(seen, "x", "x_low", "x_high") if plot.cost == "seconds" else None,
            marker=marker,
            label=line.label,
            elinewidth=0.7,
            **style,
        )
        _draw_open_ends(axis, seen, shift, color)
        hidden = [point for point in finite if point not in seen and math.isfinite(point["high"])]
        axis.plot(
            [shift(point["x"]) for point in hidden],
            [point["high"] for point in hidden],
            marker="v",
            markerfacecolor="none",
            markeredgewidth=0.7,
            **{**style, "linestyle": "none", "markersize": 4.2},
        )
    if plot.name == "bias":
        rows += _draw_floor(axis, result, facet, title, lines)
    of_guides = lines[0].role == "objective" and plot.measure in ("snr", "coordinate_snr")
    if plot.slope is not None and result.study.x == PARTICLES and (panel.kinds == (Kind.VANISHING,) or of_guides):
        _draw_slope(axis, plot, result, facet, lines)
    if plot.cost is not None:
        _draw_exact_cost(axis, plot, result, facet)
    if plot.level is not None:
        _draw_truth(axis, curve(result, facet, lines[0], plot.level))
    axis.set_label(title)
    return rows


def _points(plot: Plot, result: StudyResult, facet: Facet, line: Line) -> list[dict[str, Any]]:
    """Collect the numbers of one curve as they are drawn; ``at`` is the place on the axis to the right."""
    points = []
    for measured in curve(result, facet, line, plot.measure):
        norm = result.norm(measured.cell)
        at = _abscissa(plot, result, measured.cell)
        if at is None or (plot.cost and not at.value > 0) or (plot.power and not norm > 0):
            continue
        interval = measured.interval.scaled(norm**-plot.power) if plot.power else measured.interval
        points.append(
            {
                "at": measured.cell.at(result.study.x),
                "x": at.value,
                "x_low": at.low,
                "x_high": at.high,
                "value": interval.value,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return points


def _abscissa(plot: Plot, result: StudyResult, cell: Cell) -> Interval | None:
    if plot.cost is not None:
        return result.interval(cell, plot.cost)
    place = position(result.study, cell.at(result.study.x))
    return Interval(place, place, place)


def position(study: Study, value: Setting | None) -> float:
    """Place a value on the axis to the right: numbers where they are, words in their order from 1 on."""
    values = study.axes[study.x]
    if value is None:
        return float(values[0]) if not isinstance(values[0], str) else 1.0
    return float(values.index(value) + 1) if any(isinstance(each, str) for each in values) else float(value)


def _reaches(points: Sequence[Mapping[str, Any]], value: str, low: str, high: str) -> list[list[float]]:
    upper = [p[high] if math.isfinite(p[high]) else p[value] for p in points]
    return [[p[value] - p[low] for p in points], [end - p[value] for end, p in zip(upper, points, strict=True)]]


def _shift(plot: Plot, study: Study, steps: float) -> Callable[[float], float]:
    """Move a curve sideways by so many steps, on the scale of the axis; where x is measured it stays."""
    if plot.cost is not None:
        return lambda x: x
    if _is_log_x(study):
        return lambda x: x * 1.06**steps
    places = [position(study, value) for value in study.axes[study.x]]
    width = 0.012 * (max(places) - min(places))
    return lambda x: x + width * steps


def _is_log_x(study: Study) -> bool:
    values = study.axes[study.x]
    return not any(isinstance(value, str) or float(value) <= 0 for value in values)


def _draw_open_ends(
    axis: Axes, points: Sequence[Mapping[str, Any]], shift: Callable[[float], float], color: str
) -> None:
    """Carry bars without an upper end beyond the figure, leaving its limits to the others."""
    from matplotlib.lines import Line2D

    for point in points:
        if not math.isfinite(point["high"]):
            x = shift(point["x"])
            axis.add_artist(Line2D([x, x], [point["value"], 1e100], color=color, linewidth=0.7))


def _draw_level(axis: Axes, point: Mapping[str, Any], label: str, plot: Plot, style: Mapping[str, Any]) -> None:
    """Draw an estimator without K as a level, or its upper end where the interval reaches zero."""
    hidden = plot.is_log and point["low"] <= 0
    axis.axhline(
        point["high"] if hidden else point["value"],
        label=f"{label}{'; upper end' if hidden else ''})",
        color=style["color"],
        linewidth=0.9,
        linestyle=style["linestyle"],
    )


def _draw_floor(
    axis: Axes, result: StudyResult, facet: Facet, title: str, lines: Sequence[Line]
) -> list[dict[str, Any]]:
    """Shade from the lowest to the highest noise floor of a panel's curves at each place."""
    floors: dict[float, list[float]] = {}
    for line in lines:
        for measured in curve(result, facet, line, "noise_floor"):
            at = measured.cell.at(result.study.x)
            if at is not None and result.norm(measured.cell) > 0:
                share = measured.interval.value / result.norm(measured.cell)
                floors.setdefault(position(result.study, at), []).append(share)
    places = sorted(floors)
    low, high = [min(floors[x]) for x in places], [max(floors[x]) for x in places]
    axis.fill_between(places, low, high, color="0.75", alpha=0.6, linewidth=0.8, zorder=0, label="noise floor √(var/R)")
    return [
        {
            "panel": title,
            "curve": "noise floor, lowest and highest",
            "at": x,
            "x": x,
            "x_low": x,
            "x_high": x,
            "value": (a * b) ** 0.5,
            "low": a,
            "high": b,
        }
        for x, a, b in zip(places, low, high, strict=True)
    ]


def _draw_slope(axis: Axes, plot: Plot, result: StudyResult, facet: Facet, lines: Sequence[Line]) -> None:
    """Draw a straight line of the expected slope, a little off the first curve."""
    points = [p for p in _points(plot, result, facet, lines[0]) if p["value"] > 0]
    if len(points) < 2 or plot.slope is None:
        return
    # the importance-weighted bound's own gradient in psi is the one whose ratio falls (Rainforth et al., 2018)
    slope = -plot.slope if lines[0].role == "objective" and lines[0].estimator == "iwae" else plot.slope
    first, last = points[0]["x"], points[-1]["x"]
    anchor = points[-1]["value"] * (1.8 if slope < 0 else 1 / 1.4)
    axis.plot(
        [first, last],
        [anchor * (first / last) ** slope, anchor],
        color="0.45",
        linewidth=0.8,
        linestyle=(0, (1, 2)),
        label=f"slope {slope:+g}".replace("-", "−"),
        zorder=0,
    )


def _draw_exact_cost(axis: Axes, plot: Plot, result: StudyResult, facet: Facet) -> None:
    """Mark what the exact answer costs: it has no error, and so no place on a logarithmic axis."""
    for line in result.lines:
        if line.estimator == "exact" and (costs := curve(result, facet, line, plot.cost or "")):
            axis.axvline(
                costs[0].interval.value,
                color="0.45",
                linewidth=0.8,
                linestyle=(0, (1, 2)),
                label="cost of exact",
                zorder=0,
            )


def _draw_truth(axis: Axes, points: Sequence[Measured]) -> None:
    for measured in points[:1]:
        truth = measured.interval.value
        axis.axhline(truth, color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), label=f"truth, {truth:.4g}", zorder=0)


def _finish(figure: Figure, axes: Sequence[Axes], plot: Plot, result: StudyResult, caption: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

    values = result.study.axes[result.study.x]
    shown: list[str] = []
    for axis in axes:
        if plot.cost is not None or _is_log_x(result.study):
            axis.set_xscale("log", base=10 if plot.cost == "seconds" or result.study.x != PARTICLES else 2)
        if plot.is_log:
            axis.set_yscale("log")
        if plot.cost is None:
            places = [position(result.study, value) for value in values]
            labels = [value if isinstance(value, str) else f"{value:g}" for value in values]
            axis.xaxis.set_major_locator(FixedLocator(places))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FixedFormatter(labels))
        elif plot.cost != "seconds":
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(True, which="major", linewidth=0.3, color="0.85")
        axis.spines[["top", "right"]].set_visible(False)
        entries = list(zip(*axis.get_legend_handles_labels(), strict=True))
        curves = {line.label for line in result.lines}
        entries.sort(
            key=lambda entry: entry[1].partition(" (")[0] not in curves
        )  # what is measured before what it is held to
        known = [label for _, label in entries]
        if known == shown:  # the same curves as above: their names once are enough
            axis.set_title(str(axis.get_label()), loc="left", fontsize=6.5, fontweight="bold", pad=3)
            continue
        shown = known
        legend = axis.legend(
            *zip(*entries, strict=True),
            title=axis.get_label(),
            loc="lower left",
            bbox_to_anchor=(-0.03, 0.98),
            alignment="left",
            ncols=2 if max(map(len, known)) <= WIDE_LABEL else 1,
            frameon=False,
            handlelength=2.8,
            labelspacing=0.3,
            columnspacing=1.2,
        )
        legend.get_title().set_fontweight("bold")
    axes[-1].set_xlabel(plot.cost_label or X_LABELS.get(result.study.x, result.study.x))
    figure.supylabel(plot.label, fontsize=7.5)
    figure.supxlabel("\n".join(textwrap.wrap(caption, 84)), fontsize=5.2, color="0.25", ha="left", x=0.02)


def _render(figure: Figure, kind: str, described: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    # no date: the same results give the same bytes
    metadata: dict[str, Any] = {**described, "Date": None} if kind == "svg" else dict(described)
    figure.savefig(buffer, format=kind, dpi=220, metadata=metadata)
    figure.set_layout_engine("none")  # the layout is settled; to find it again would take as long as the drawing
    return buffer.getvalue()
