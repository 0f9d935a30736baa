"""The figures of a run of cloning: each as PNG and SVG, with the numbers that it shows beside it as CSV.

Matplotlib is imported when the first figure is drawn, and its global state is left alone. The same numbers give the
same files.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentpg.cloning.latents import Codes, latents_by_mode
from latentpg.cloning.measures import Measured
from latentpg.cloning.outcomes import demonstrated_modes
from latentpg.cloning.paths import Paths, actions_of, demonstrated_paths, played_paths
from latentpg.cloning.places import PLACES, Place
from latentpg.cloning.preparing import Prepared
from latentpg.envs.rendering import draw_shapes
from latentpg.evaluation import EXACT, wilson_interval
from latentpg.runs import publish, write_csv
from latentpg.training.curves import COLUMN_INCHES
from latentpg.training.log import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RC: Any = {"font.size": 7, "axes.linewidth": 0.6, "legend.fontsize": 6, "svg.hashsalt": "latentpg"}
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.75"
_FEW = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class DrawnFigure:
    """One finished figure: its name, its files, what it shows in words, its SVG text, and whether it is a broad one."""

    name: str
    png: Path
    svg: Path
    csv: Path
    caption: str
    svg_text: bytes = field(repr=False)
    is_broad: bool


def draw_figures(built: Prepared, measured: Measured, rows: Sequence[Row], folder: Path) -> list[DrawnFigure]:
    """Draw what there is to draw: the fit, samples over demonstrations, modes, the latent space, likelihood against K.

    Which of them there are hangs on what is known: a map of modes needs modes, and samples an environment.
    """
    from matplotlib import rc_context  # half a second that a run without figures need not wait for

    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC):
        found = [
            _draw_samples(built, measured, folder),
            _draw_modes(built, measured, folder),
            _draw_fit(rows, folder),
            _draw_latents(built, folder),
            _draw_bounds(measured, folder),
        ]
    return [each for each in found if each is not None]


def colours_of(number: int) -> list[Any]:
    """Return a colour for each of some modes: told apart with any colour vision where they are few."""
    if number <= len(_FEW):
        return [*_FEW[:number]]
    from matplotlib import colormaps

    return [colormaps["turbo"](0.03 + 0.94 * place / (number - 1)) for place in range(number)]


def _draw_fit(rows: Sequence[Row], folder: Path) -> DrawnFigure:
    figure, axes = _panels(1, 2.4)
    kept: dict[str, list[tuple[float, float]]] = {}
    styles: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
        ("train/log_prob", "training, as it went", {"color": _BLUE, "linewidth": 0.9}),
        ("valid/log_prob", "validation", {"color": _ORANGE, "marker": "o", "markersize": 2.0, "linewidth": 1.1}),
    )
    for name, label, style in styles:
        kept[name] = [(float(row["epoch"]), float(row[name])) for row in rows if name in row and "epoch" in row]
        if kept[name]:
            axes[0].plot(*zip(*kept[name], strict=True), label=label, **style)
    values = [value for points in kept.values() for _, value in points]
    if len(values) > 8:  # the first epochs fall far below the rest, which is to be seen
        low, high = float(np.quantile(values, 0.1)), max(values)
        axes[0].set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    _whole_numbers(axes[0], "x")
    axes[0].set(xlabel="epoch", ylabel="log π(a|s) or its bound (nats a row)")
    axes[0].legend(frameon=False, loc="lower right")
    table = [
        {"epoch": row["epoch"], **{name: row.get(name) for name in kept}, "valid/kl": row.get("valid/kl")}
        for row in rows
        if "epoch" in row
    ]
    caption = "The fit: what the objective estimates on the training part, and the measure on the validation part."
    return _finish(figure, folder, "training", table, caption)


def _draw_samples(built: Prepared, measured: Measured, folder: Path) -> DrawnFigure:
    if measured.outcome is None:
        return _draw_actions(built, folder)
    place = PLACES.get(built.config.selection.env or "")
    shown = demonstrated_paths(built, place)
    played = played_paths(measured.outcome, place)
    figure, axes = _panels(2, 2.9)
    number = max([0, *shown.mode, *played.mode]) + 1
    for each, paths, title in ((axes[0], shown, "demonstrations"), (axes[1], played, _count(played, place))):
        _scenery(each, place, [*shown.paths, *played.paths])
        if paths is played:
            for path in shown.paths:
                each.plot(path[:, 0], path[:, 1], color=_GREY, linewidth=0.4, zorder=1.5)
        _paths(each, paths, number)
        each.set_title(title, fontsize=7)
    axes[0].set(xlabel="x" if place else "observation 0", ylabel="y" if place else "observation 1")
    axes[1].set(xlabel="x" if place else "observation 0")
    ways = "; a colour a way, failures black and dotted" if place else ""
    caption = f"Demonstrations learnt from, and roll-outs over them{ways}."
    return _finish(figure, folder, "samples", [*shown.rows("demonstration"), *played.rows("roll-out")], caption)


def _draw_actions(built: Prepared, folder: Path) -> DrawnFigure:
    """Draw actions of the test part and of the policy at the same observations, where nothing can be played."""
    theirs, ours = actions_of(built)
    figure, axes = _panels(1, 2.6)
    table: list[dict[str, Any]] = []
    for values, name, colour in ((theirs, "demonstration", _GREY), (ours, "policy", _BLUE)):
        if values.shape[1] > 1 and built.split.train.action.is_floating_point():
            axes[0].scatter(values[:, 0], values[:, 1], s=3, color=colour, label=name, linewidth=0, alpha=0.7)
        else:
            axes[0].hist(values[:, 0], bins=30, histtype="step", color=colour, label=name)
        table += [{"whose": name, "action 0": row[0], "action 1": row[1] if len(row) > 1 else None} for row in values]
    axes[0].set(xlabel="action 0", ylabel="action 1" if theirs.shape[1] > 1 else "rows")
    axes[0].legend(frameon=False)
    caption = "Actions of the test part, and those of the policy at the same observations, in the policy's coordinates."
    return _finish(figure, folder, "samples", table, caption)


def _draw_modes(built: Prepared, measured: Measured, folder: Path) -> DrawnFigure | None:
    outcome, place = measured.outcome, PLACES.get(built.config.selection.env or "")
    shown = demonstrated_modes(built)
    if outcome is None or outcome.behaviour is None or shown is None or place is None:
        return None
    counts = outcome.behaviour.counts
    total, tried = int(counts.sum()), len(outcome.played.returns)
    figure, axes = _panels(1, 2.2, width=2 * COLUMN_INCHES if len(shown) > len(_FEW) else COLUMN_INCHES)
    at, share = np.arange(len(shown)), (shown / shown.sum()).numpy()
    ends = [wilson_interval(int(count), max(total, 1)) for count in counts]
    values = np.array([each.value for each in ends])
    reach = np.array([[e.value - e.low for e in ends], [e.high - e.value for e in ends]])
    axes[0].bar(at, values, width=0.8, color=colours_of(len(shown)), alpha=0.85, zorder=2)
    axes[0].errorbar(at, values, reach, fmt="none", ecolor="0.25", elinewidth=0.6, zorder=3)
    edges, steps = [-0.5, *(at + 0.5)], [share[0], *share]
    axes[0].step(edges, steps, where="pre", color="black", linewidth=1, zorder=4, label="demonstrations")
    axes[0].legend(frameon=False)
    axes[0].set_xticks(at, place.names, rotation=90 if len(shown) > len(_FEW) else 0)
    axes[0].set(xlabel="way", ylabel="share of the successes", xlim=(-0.6, len(shown) - 0.4))
    table = [
        {"mode": m, "name": place.names[m], "demonstrated": float(shown[m]), "successes": int(counts[m])}
        | {"share": ends[m].value, "low": ends[m].low, "high": ends[m].high}
        for m in range(len(shown))
    ]
    caption = (
        f"Ways that {total} successes of {tried} roll-outs took (bars, 95 %), and the share of each among the "
        "demonstrations (line)."
    )
    return _finish(figure, folder, "modes", table, caption)


def _draw_latents(built: Prepared, folder: Path) -> DrawnFigure | None:
    found = latents_by_mode(built)
    if found is None:
        return None
    if isinstance(found, Codes):
        return _draw_codes(found, folder)
    points, share, mode = found.points, found.share, found.mode
    figure, axes = _panels(1, 2.7)
    number = int(mode.max()) + 1 if len(mode) and int(mode.max()) >= 0 else 1
    colours = np.array([colours_of(max(number, 1))[max(each, 0)] for each in mode.tolist()], dtype=object)
    axes[0].scatter(points[:, 0], points[:, 1], s=5, c=list(colours), linewidth=0)
    axes[0].set(xlabel=f"axis 1 ({100 * share[0]:.0f} % of the variance)")
    axes[0].set(ylabel=f"axis 2 ({100 * share[1]:.0f} %)")
    table = [
        {"axis 1": x, "axis 2": y, "mode": int(m)} for (x, y), m in zip(points.tolist(), mode.tolist(), strict=True)
    ]
    which = "a colour a way" if number > 1 else "ways are not known"
    caption = f"The guide's means for what was learnt from, on their first two principal axes; {which}."
    return _finish(figure, folder, "latents", table, caption)


def _draw_codes(found: Codes, folder: Path) -> DrawnFigure:
    figure, axes = _panels(1, 2.6)
    image = axes[0].imshow(found.share, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set(xlabel="value of the latent", ylabel="way" if len(found.share) > 1 else "all rows")
    _whole_numbers(axes[0], "x")
    _whole_numbers(axes[0], "y")
    figure.colorbar(image, ax=axes[0], label="share", fraction=0.05)
    table = [
        {"mode": m, "value": c, "share": float(found.share[m, c])}
        for m in range(found.share.shape[0])
        for c in range(found.share.shape[1])
    ]
    return _finish(figure, folder, "latents", table, "Which value of the latent the guide gives to rows of which way.")


def _draw_bounds(measured: Measured, folder: Path) -> DrawnFigure | None:
    if measured.curve is None:
        return None
    figure, axes = _panels(1, 2.4)
    points = measured.curve.points
    sizes = [point.num_particles for point in points]
    values = [point.bound.value for point in points]
    reach = [[p.noise.value - p.noise.low for p in points], [p.noise.high - p.noise.value for p in points]]
    axes[0].errorbar(sizes, values, reach, color=_BLUE, marker="o", markersize=3, linewidth=1, label="K particles")
    found = measured.likelihood
    level = found.likelihood if found.likelihood.kind == EXACT else found.annealed
    if level is not None:
        label = "exact" if level.kind == EXACT else "annealed importance sampling"
        axes[0].axhline(level.per_row.value, color=_ORANGE, linewidth=1, linestyle="--", label=label)
    axes[0].set(xscale="log", xlabel="particles K", ylabel="bound of log π(a|s) (nats a row)")
    axes[0].set_xticks(sizes, [str(size) for size in sizes])
    axes[0].minorticks_off()
    axes[0].legend(frameon=False, loc="lower right")
    table: list[dict[str, Any]] = [
        {"num_particles": p.num_particles, "bound": p.bound.value, "noise_low": p.noise.low, "noise_high": p.noise.high}
        | {"low": p.bound.low, "high": p.bound.high, "bias": p.bias}
        for p in points
    ]
    if level is not None:
        one = level.per_row
        found_by = {"num_particles": None, "bound": one.value, "low": one.low, "high": one.high}
        table.append({name: found_by.get(name) for name in table[0]})
    caption = "Held-out likelihood against particles, bars for the particles' noise alone (95 %)."
    return _finish(figure, folder, "likelihood", table, caption)


def _whole_numbers(axes: Axes, which: str) -> None:
    from matplotlib.ticker import MaxNLocator

    getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(6, integer=True))


def _panels(number: int, height: float, width: float | None = None) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(number * COLUMN_INCHES if width is None else width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, number, place + 1) for place in range(number)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scenery(axes: Axes, place: Place | None, paths: Sequence[NDArray[np.floating[Any]]]) -> None:
    if place is not None:
        view = place.dynamics.view
        draw_shapes(axes, view, place.dynamics.scenery())
        return
    whole = np.concatenate(paths)
    low, high = whole.min(0), whole.max(0)
    margin = np.maximum(0.05 * (high - low), 1e-6)
    axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))


def _paths(axes: Axes, paths: Paths, number: int) -> None:
    colours = colours_of(max(number, 1))
    for path, mode, succeeded in zip(paths.paths, paths.mode, paths.succeeded, strict=True):
        style: Mapping[str, Any] = {"color": colours[max(mode, 0)], "linewidth": 0.6, "alpha": 0.8}
        if not succeeded:
            style = {"color": "black", "linewidth": 0.7, "linestyle": ":"}
        axes.plot(path[:, 0], path[:, 1], zorder=2, **style)


def _count(played: Paths, place: Place | None) -> str:
    if place is None:
        return f"{len(played.paths)} roll-outs"
    return f"{sum(played.succeeded)} successes of {len(played.paths)} roll-outs"


def _finish(figure: Figure, folder: Path, name: str, table: Sequence[Mapping[str, Any]], caption: str) -> DrawnFigure:
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg", "csv")]
    texts = []
    for path in paths[:2]:
        buffer = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
        publish(path, buffer.getvalue())
        texts.append(buffer.getvalue())
    if table:
        write_csv(paths[2], [{key: _plain(value) for key, value in row.items()} for row in table])
    return DrawnFigure(
        name, paths[0], paths[1], paths[2], caption, texts[1], bool(figure.get_figwidth() > COLUMN_INCHES)
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 (a number, a text or nothing)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic | Tensor) else value
