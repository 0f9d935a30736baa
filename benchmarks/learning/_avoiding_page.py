"""Tables and figures of the study of cloning on the avoiding task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from benchmarks.learning._demonstrated import demonstrations
from benchmarks.learning.exploration import COLOURS, save, styled
from benchmarks.learning.store import Results
from latentpg.envs.avoiding import ROD_RADIUS, START, Avoiding, gates_of_mode
from latentpg.envs.rendering import draw_shapes

BLUE, RED, GREEN, PINK, YELLOW, SKY, GREY = COLOURS


@dataclass(frozen=True)
class Contender:
    """A row of the table: its cell, the part of the result it is in, its name, and how it is drawn."""

    cell: str
    name: str
    colour: str
    marker: str
    part: str | None = None


CONTENDERS = (
    Contender("told", "told the mode", "black", "*"),
    Contender("episode-matched", "z an episode, matched prior", BLUE, "o"),
    Contender("episode-clean", "the same without jitter", BLUE, "v"),
    Contender("episode-learned", "z an episode, prior by gradient", RED, "o"),
    Contender("episode-learned", "the same decoder, z of the posteriors", RED, "^", "posterior"),
    Contender("episode-codes", "24 codes an episode, by gradient", GREEN, "o"),
    Contender("episode-em", "24 codes an episode, by EM", GREEN, "s"),
    Contender("chunk-codes", "24 codes a chunk", YELLOW, "o"),
    Contender("cvae-learned", "CVAE a chunk, learnt prior", PINK, "s"),
    Contender("cvae-standard", "CVAE a chunk, N(0, I)", PINK, "o"),
    Contender("cvae-l1", "CVAE a chunk, L1 + 10 KL", PINK, "X"),
    Contender("plain", "Gaussian, no latent", GREY, "D"),
)

Runs = Sequence[Mapping[str, Any]]
"""What the seeds of a contender came to."""


def runs(results: Results) -> Iterator[tuple[Contender, list[int], Runs]]:
    """Go through contenders of which there are results, with their seeds."""
    for contender in CONTENDERS:
        found = results.get(contender.cell, {})
        part = contender.part
        kept = {seed: each if part is None else each[part] for seed, each in sorted(found.items())}
        if kept:
            yield contender, list(kept), list(kept.values())


def table(results: Results) -> list[str]:
    """Return a row a contender, then the seeds one by one, then what latents say of themselves."""
    return [*_summary(results), "", *_by_seed(results), "", *_latents(results)]


def _summary(results: Results) -> list[str]:
    lines = [
        "| policy | seeds | success | mode entropy | modes reached | held-out log-likelihood, nats a dimension | "
        "CPU seconds of the fit |",
        "|---|--:|---|---|--:|---|--:|",
    ]
    for contender, seeds, each in runs(results):
        behaviour = [run["behaviour"] for run in each]
        lines.append(
            f"| {contender.name} | {len(seeds)} | {_range([b['success'][0] for b in behaviour])} | "
            f"{_range([b['entropy'][0] for b in behaviour])} | {24 * _mean([b['coverage'] for b in behaviour]):.1f} | "
            f"{_likelihood(each)} | {_seconds(each)} |"
        )
    return lines


def _by_seed(results: Results) -> list[str]:
    lines = ["| policy | seed | success (95 %) | mode entropy (95 %) |", "|---|--:|---|---|"]
    for contender, seeds, each in runs(results):
        for seed, run in zip(seeds, each, strict=True):
            both = [_interval(run["behaviour"][name]) for name in ("success", "entropy")]
            lines.append(f"| {contender.name} | {seed} | {both[0]} | {both[1]} |")
    return lines


def _latents(results: Results) -> list[str]:
    lines = [
        "| policy | KL of guide and prior, nats a row | nearest neighbour of the same mode | purity of codes | "
        "codes used |",
        "|---|---|---|---|---|",
    ]
    for contender, _, each in runs(results):
        if contender.part is not None or contender.cell == "chunk-codes":
            continue  # the guide of codes is asked neither for the likelihood nor to act
        told = [_over(each, name, digits) for name, digits in zip(_LATENT, (2, 3, 2, 1), strict=True)]
        if any(told):
            lines.append(f"| {contender.name} | {' | '.join(told)} |")
    return lines


_LATENT = ("kl", "neighbours", "purity", "codes_used")


def _over(each: Runs, name: str, digits: int) -> str:
    values = [run[name] for run in each if name in run]
    return _range(values, digits=digits) if values else ""


def _likelihood(each: Runs) -> str:
    told = [run["likelihood"] for run in each if "likelihood" in run]
    if not told:
        return "none"
    sign = "" if told[0]["kind"] == "exact" else "≥ "
    return sign + _range([one["per_dimension"][0] for one in told])


def _seconds(each: Runs) -> str:
    values = [run["fit_cpu_seconds"] for run in each if "fit_cpu_seconds" in run]
    return f"{_mean(values):.0f}" if values else "as above"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _range(values: Sequence[float | None], *, digits: int = 3) -> str:
    """Write a mean with the lowest and highest; what is not a number has no say.

    >>> _range([0.5, None, 1.0], digits=2), _range([None])
    ('0.75 (0.50 to 1.00), of 2', 'no success')
    """
    there = [value for value in values if value is not None]
    if not there:
        return "no success"
    text = f"{_mean(there):.{digits}f} ({min(there):.{digits}f} to {max(there):.{digits}f})"
    return text if len(there) == len(values) else f"{text}, of {len(there)}"


def _interval(values: Sequence[float | None]) -> str:
    value, low, high = values
    return "no success" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw success against entropy, roll-outs over demonstrations, and latents by mode."""
    with styled():
        return [
            *_draw_success(results, folder),
            *_draw_rollouts(results, folder),
            *_draw_latents(results, folder),
        ]


def _draw_success(results: Results, folder: Path) -> list[Path]:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(6.6, 3.3), layout="constrained")
    axes = figure.subplots()
    near = axes.inset_axes((0.52, 0.12, 0.46, 0.5))
    for panel in (axes, near):
        panel.add_patch(Rectangle((0.9, 0.93), 0.2, 0.2, facecolor="0.92", edgecolor="none", zorder=0))
        for contender, _, each in runs(results):
            _mark(panel, contender, each)
    axes.set(xlabel="success", ylabel="mode entropy over successes (share of log 24)", xlim=(-0.02, 1.03))
    axes.set(ylim=(-0.02, 1.03))
    axes.spines[["top", "right"]].set_visible(False)
    near.set(xlim=(0.87, 1.005), ylim=(0.92, 1.005), xticks=(0.9, 0.95, 1.0), yticks=(0.95, 1.0))
    near.tick_params(labelsize=5.5, length=2)
    near.set_title("the upper right corner; shaded: aimed at", fontsize=5.5)
    axes.indicate_inset_zoom(near, edgecolor="0.6", linewidth=0.5)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return save(figure, folder / "cloning-avoiding")


def _mark(axes: Any, contender: Contender, each: Runs) -> None:  # noqa: ANN401 (matplotlib is imported late)
    points = [(run["behaviour"]["success"], run["behaviour"]["entropy"]) for run in each]
    x = np.array([success for success, _ in points])
    # without a success there are no modes: drawn at 0, as open marks
    y = np.array([[0.0] * 3 if entropy[0] is None else entropy for _, entropy in points])
    lines: Any = {"fmt": "none", "ecolor": contender.colour, "elinewidth": 0.5, "alpha": 0.6}
    axes.errorbar(x[:, 0], y[:, 0], xerr=_bars(x), yerr=_bars(y), **lines)
    face = "none" if all(entropy[0] is None for _, entropy in points) else contender.colour
    style: Any = {"marker": contender.marker, "s": 22, "linewidths": 0.8, "zorder": 3}
    axes.scatter(x[:, 0], y[:, 0], facecolors=face, edgecolors=contender.colour, label=contender.name, **style)


def _bars(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]]))


SHOWN = ("episode-matched", "episode-learned", "chunk-codes", "cvae-standard")
"""Cells whose roll-outs are drawn."""


def _draw_rollouts(results: Results, folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    shown = [each for each in runs(results) if each[0].cell in SHOWN and each[0].part is None]
    figure = Figure(figsize=(6.9, 2.45), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, max(1, len(shown)), sharey=True))
    train = demonstrations(0).train
    behind = [path.numpy() for path in train.obs[:, 2:].split(train.lengths.tolist())]
    task = Avoiding()
    line, *obstacles = task.scenery()
    wide = [replace(each, radius=each.radius + ROD_RADIUS) for each in obstacles]
    for axes, (contender, _, each) in zip(panels, shown, strict=True):
        draw_shapes(axes, task.view, [line, *wide])
        for path in behind:
            axes.plot(path[:, 0], path[:, 1], color="0.8", linewidth=0.4)
        behaviour = each[0]["behaviour"]
        for path, arrived in zip(behaviour["paths"], behaviour["arrived"], strict=True):
            x, y = np.array(path).T / 1000
            axes.plot(x, y, color=BLUE if arrived else RED, linewidth=0.5, alpha=0.8, zorder=2 + (not arrived))
            if not arrived:
                axes.plot(x[-1:], y[-1:], "x", color=RED, markersize=2.5, markeredgewidth=0.7, zorder=4)
        axes.plot(*START, "ko", markersize=2.5)
        axes.set_title(f"{contender.name}\n{100 * behaviour['success'][0]:.0f} % arrive", fontsize=6.5)
        axes.set(xlabel="x (m)")
    panels[0].set_ylabel("y (m)")
    return save(figure, folder / "cloning-avoiding-rollouts")


def _draw_latents(results: Results, folder: Path) -> list[Path]:
    from matplotlib.figure import Figure

    cells = [cell for cell in ("episode-matched", "episode-learned") if 0 in results.get(cell, {})]
    names = {"episode-matched": "matched prior", "episode-learned": "prior of 32, by gradient"}
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, max(1, len(cells))))
    for axes, cell in zip(panels, cells, strict=True):
        run = results[cell][0]
        means, drawn = np.array(run["posterior_means"]), np.array(run["prior_draws"])
        flat, others = principal(means, drawn)
        axes.scatter(*others.T, color="0.75", s=3, linewidths=0, label="drawn from the prior")
        for mode in sorted(set(run["modes"])):
            first, second, third = gates_of_mode(mode)
            colour = (BLUE, YELLOW, GREEN, RED)[third]
            marker = (("<", "v"), ("o", "s"), (">", "^"))[second][first]
            here = flat[np.array(run["modes"]) == mode]
            axes.scatter(*here.T, color=colour, marker=marker, s=14, linewidths=0.3, edgecolors="white")
        axes.set(title=names[cell], xlabel="first principal direction of z")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("second")
    handles, labels = panels[0].get_legend_handles_labels()
    for place, colour in enumerate((BLUE, YELLOW, GREEN, RED)):
        handles.append(panels[0].scatter([], [], color=colour, s=14))
        labels.append(f"last row, gate {place + 1}")
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return save(figure, folder / "cloning-avoiding-latents")


def principal(
    points: Float[NDArray[np.float64], "N Z"], others: Float[NDArray[np.float64], "M Z"]
) -> tuple[Float[NDArray[np.float64], "N 2"], Float[NDArray[np.float64], "M 2"]]:
    """Return both sets in the two directions in which the first varies most, from its mean."""
    centre = points.mean(0)
    ways = np.linalg.svd(points - centre, full_matrices=False)[2][:2]
    return (points - centre) @ ways.T, (others - centre) @ ways.T
