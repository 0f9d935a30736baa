"""Figures of a study, one column wide: every one as PNG and SVG, with the numbers it shows beside it as CSV.

Curves are grouped into panels by what is expected of them. Lengths are shares of the exact gradient, so that 1 means
"as long as what is looked for". Matplotlib is imported when the first figure is drawn, and its global state is left
alone.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentpg.numerics.statistics import Interval
from latentpg.runs import FORMAT_VERSION, RunFolder, publish, write_csv
from latentpg.studies.expectations import Kind, expectation_of
from latentpg.studies.run import StudyResult
from latentpg.studies.spec import Cell, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_INCHES = 3.4
"""Width of one column of a two-column paper."""

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
    "recorded latent kept: expected unbiased": (Kind.UNBIASED,),
    "fresh particles: bias expected ∝ 1/K": (Kind.VANISHING,),
    "short chain; bound": (Kind.CHAIN, Kind.BOUND, Kind.UNKNOWN),
}


@dataclass(frozen=True)
class Plot:
    """What one figure shows: a measure against K, or against what ``cost`` names.

    It is drawn in units of the exact gradient's length to the ``power``.
    """

    name: str
    measure: str
    label: str
    power: int
    cost: str | None = None
    cost_label: str = "particles K"
    slope: float | None = None
    is_log: bool = True


PLOTS = (
    Plot("bias", "bias", "bias / ‖∇ log π‖", 1, slope=-1.0),
    Plot("variance", "variance", "variance / ‖∇ log π‖²", 2, slope=-1.0),
    Plot("mse", "mse", "mean squared error / ‖∇ log π‖²", 2, slope=-1.0),
    Plot("snr", "snr", "signal-to-noise ratio", 0, slope=0.5),
    Plot("cosine", "cosine", "cosine to the exact gradient", 0, is_log=False),
    Plot("mse_seconds", "mse", "mean squared error / ‖∇ log π‖²", 2, "seconds", "time of one gradient (s)"),
    Plot(
        "mse_evaluations",
        "mse",
        "mean squared error / ‖∇ log π‖²",
        2,
        "likelihood_evaluations",
        "likelihood evaluations a row",
    ),
)
"""Every figure of a study, in the order of the report."""


@dataclass(frozen=True)
class Drawn:
    """One finished figure: its files, its caption, and its SVG text for the report."""

    plot: Plot
    png: Path
    svg: Path
    csv: Path
    caption: str
    svg_text: bytes


def draw_figures(result: StudyResult, folder: RunFolder, *, command: str) -> list[Drawn]:
    """Draw every figure into a run folder; estimators that are exact have no place on one, so there may be none."""
    drawn = [_draw(plot, result, folder, command) for plot in PLOTS]
    return [each for each in drawn if each is not None]


def caption_of(plot: Plot, result: StudyResult, *, command: str) -> str:
    """Write what a reader must know to judge the figure."""
    study = result.study
    mark = " Open triangle: upper end of an interval that reaches zero." if plot.name == "bias" else ""
    bars = "Bars: 95 % intervals" + (" of both axes" if plot.cost == "seconds" else "")
    return (
        f"{study.source.describe()}; {study.num_replicates} replicates, seed {study.seed}. {bars}.{mark} "
        f"‖∇ log π‖ = {result.reference_norm:.3g} nats. Command: {command}"
    )


def _draw(plot: Plot, result: StudyResult, folder: RunFolder, command: str) -> Drawn | None:
    import matplotlib
    from matplotlib.figure import Figure

    caption = caption_of(plot, result, command=command)
    panels = {title: lines for title in _PANELS if (lines := _lines_of(result, title))}
    if not panels:
        return None
    rows: list[dict[str, Any]] = []
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(COLUMN_INCHES, 0.7 + 2.1 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0].tolist()
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            rows += _draw_panel(axis, plot, result, title, lines)
        _finish(figure, axes, plot, result, caption)
        described = {"Title": plot.label, "Description": f"{caption} (format_version {FORMAT_VERSION})"}
        png, svg = (_render(figure, kind, described) for kind in ("png", "svg"))
    files = [folder.file(f"{plot.name}.{kind}") for kind in ("png", "svg", "csv")]
    publish(files[0], png)
    publish(files[1], svg)
    write_csv(files[2], rows)
    return Drawn(plot, files[0], files[1], files[2], caption, svg)


def _lines_of(result: StudyResult, title: str) -> list[Line]:
    """List a panel's lines, those with a proposal first."""
    lines = [line for line in result.lines if expectation_of(line.estimator).kind in _PANELS[title]]
    return sorted(lines, key=lambda line: line.proposal is None)


def _styles_of(lines: Sequence[Line]) -> list[int]:
    """Give each curve of a panel its own style; a proposal keeps the same one in all panels for its first curve."""
    chosen: list[int] = []
    free = iter(range(len(_STYLE_OF_PROPOSAL), 10**6))
    for line in lines:
        own = _STYLE_OF_PROPOSAL.get(line.proposal or "")
        chosen.append(next(free) if own is None or own in chosen else own)
    return chosen


def _draw_panel(axis: Axes, plot: Plot, result: StudyResult, title: str, lines: Sequence[Line]) -> list[dict[str, Any]]:
    rows = []
    styles = _styles_of(lines)
    for place, line in enumerate(lines):
        color, marker, dashes = _STYLES[styles[place] % len(_STYLES)]
        # curves of equal law would hide each other: shift them sideways a little, by less than a marker's width apart
        shift = 1.0 if plot.cost else 1.06 ** (place - (len(lines) - 1) / 2)
        points = _points(plot, result, line)
        rows += [{"panel": title, "curve": line.label, **point} for point in points]
        finite = [point for point in points if math.isfinite(point["value"])]
        seen = [point for point in finite if point["low"] > 0 or not plot.is_log]
        style: dict[str, Any] = {"color": color, "markersize": 3.2, "linewidth": 1.0, "linestyle": dashes}
        if len(points) == 1 and plot.cost is None and points[0]["num_particles"] is None:
            _draw_level(axis, points[0], line.label, plot, style)
            continue
        axis.errorbar(
            [point["x"] * shift for point in seen],
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
            [point["x"] * shift for point in hidden],
            [point["high"] for point in hidden],
            marker="v",
            markerfacecolor="none",
            markeredgewidth=0.7,
            **{**style, "linestyle": "none", "markersize": 4.2},
        )
    if plot.name == "bias":
        rows += _draw_floor(axis, plot, result, title, lines)
    if plot.slope is not None and _PANELS[title] == (Kind.VANISHING,):
        _draw_slope(axis, plot, result, lines)
    if plot.cost is not None:
        _draw_exact_cost(axis, plot, result)
    axis.set_label(title)
    return rows


def _points(plot: Plot, result: StudyResult, line: Line) -> list[dict[str, Any]]:
    """Collect the numbers of one curve as they are drawn."""
    unit = result.reference_norm**-plot.power
    points = []
    for measured in result.curve(line, plot.measure):
        cell, interval = measured.cell, measured.interval.scaled(unit)
        at = _abscissa(plot, result, cell)
        if at is not None:
            points.append(
                {
                    "num_particles": cell.num_particles,
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
    size = float(cell.num_particles or 1)
    return Interval(size, size, size)


def _reaches(points: Sequence[Mapping[str, Any]], value: str, low: str, high: str) -> list[list[float]]:
    upper = [p[high] if math.isfinite(p[high]) else p[value] for p in points]
    return [[p[value] - p[low] for p in points], [end - p[value] for end, p in zip(upper, points, strict=True)]]


def _draw_open_ends(axis: Axes, points: Sequence[Mapping[str, Any]], shift: float, color: str) -> None:
    """Carry bars without an upper end beyond the figure, leaving its limits to the others."""
    from matplotlib.lines import Line2D

    for point in points:
        if not math.isfinite(point["high"]):
            x = point["x"] * shift
            axis.add_artist(Line2D([x, x], [point["value"], 1e100], color=color, linewidth=0.7))


def _draw_level(axis: Axes, point: Mapping[str, Any], label: str, plot: Plot, style: Mapping[str, Any]) -> None:
    """Draw an estimator without K as a level, or its upper end where the interval reaches zero."""
    hidden = plot.is_log and point["low"] <= 0
    axis.axhline(
        point["high"] if hidden else point["value"],
        label=f"{label} (no K{'; upper end' if hidden else ''})",
        color=style["color"],
        linewidth=0.9,
        linestyle=style["linestyle"],
    )


def _draw_floor(axis: Axes, plot: Plot, result: StudyResult, title: str, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Shade from the lowest to the highest noise floor of a panel's curves at each K."""
    floors: dict[int, list[float]] = {}
    for line in lines:
        for measured in result.curve(line, "noise_floor"):
            if measured.cell.num_particles is not None:
                share = measured.interval.value / result.reference_norm
                floors.setdefault(measured.cell.num_particles, []).append(share)
    sizes = sorted(floors)
    low, high = [min(floors[k]) for k in sizes], [max(floors[k]) for k in sizes]
    axis.fill_between(sizes, low, high, color="0.75", alpha=0.6, linewidth=0.8, zorder=0, label="noise floor √(var/R)")
    return [
        {
            "panel": title,
            "curve": "noise floor, lowest and highest",
            "num_particles": k,
            "x": float(k),
            "x_low": float(k),
            "x_high": float(k),
            "value": (a * b) ** 0.5,
            "low": a,
            "high": b,
        }
        for k, a, b in zip(sizes, low, high, strict=True)
    ]


def _draw_slope(axis: Axes, plot: Plot, result: StudyResult, lines: Sequence[Line]) -> None:
    """Draw a straight line of the expected slope, a little off the first curve."""
    points = [p for p in _points(plot, result, lines[0]) if p["value"] > 0]
    if len(points) < 2 or plot.slope is None:
        return
    first, last = points[0]["x"], points[-1]["x"]
    anchor = points[-1]["value"] * (1.8 if plot.slope < 0 else 1 / 1.4)
    axis.plot(
        [first, last],
        [anchor * (first / last) ** plot.slope, anchor],
        color="0.45",
        linewidth=0.8,
        linestyle=(0, (1, 2)),
        label=f"slope {plot.slope:+g}".replace("-", "−"),
        zorder=0,
    )


def _draw_exact_cost(axis: Axes, plot: Plot, result: StudyResult) -> None:
    """Mark what the exact gradient costs: it has no error, and so no place on a logarithmic axis."""
    for line in result.lines:
        cost = result.interval(Cell(line, None), plot.cost or "")
        if line.estimator == "exact" and cost is not None:
            axis.axvline(
                cost.value, color="0.45", linewidth=0.8, linestyle=(0, (1, 2)), label="cost of exact", zorder=0
            )


def _finish(figure: Figure, axes: Sequence[Axes], plot: Plot, result: StudyResult, caption: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for axis in axes:
        axis.set_xscale("log", base=10 if plot.cost == "seconds" else 2)
        if plot.is_log:
            axis.set_yscale("log")
        if plot.cost != "seconds":
            sizes = result.study.num_particles
            axis.xaxis.set_major_locator(FixedLocator(sizes) if plot.cost is None else axis.xaxis.get_major_locator())
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(True, which="major", linewidth=0.3, color="0.85")
        axis.spines[["top", "right"]].set_visible(False)
        entries = list(zip(*axis.get_legend_handles_labels(), strict=True))
        curves = {line.label for line in result.lines}
        entries.sort(
            key=lambda entry: entry[1].partition(" (")[0] not in curves
        )  # what is measured before what it is held to
        legend = axis.legend(
            *zip(*entries, strict=True),
            title=axis.get_label(),
            loc="lower left",
            bbox_to_anchor=(-0.03, 0.98),
            alignment="left",
            ncols=2,
            frameon=False,
            handlelength=2.8,
            labelspacing=0.3,
            columnspacing=1.2,
        )
        legend.get_title().set_fontweight("bold")
    axes[-1].set_xlabel(plot.cost_label)
    figure.supylabel(plot.label, fontsize=7.5)
    figure.supxlabel("\n".join(textwrap.wrap(caption, 84)), fontsize=5.2, color="0.25", ha="left", x=0.02)


def _render(figure: Figure, kind: str, described: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    # no date: the same results give the same bytes
    metadata: dict[str, Any] = {**described, "Date": None} if kind == "svg" else dict(described)
    figure.savefig(buffer, format=kind, dpi=220, metadata=metadata)
    figure.set_layout_engine("none")  # the layout is settled; to find it again would take as long as the drawing
    return buffer.getvalue()
