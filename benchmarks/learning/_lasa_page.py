"""Table and figures of the study of the LASA motions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning._drawing import THINNED, from_text, judge, motions, paths
from benchmarks.learning.exploration import COLOURS, save, spelled, styled
from benchmarks.learning.store import Results
from latentpg.evaluation import clustered_interval
from latentpg.numerics.statistics import Interval

NAMES: Mapping[str, str] = {
    "exact": "exact likelihood, 60 codes",
    "em": "EM, 60 codes",
    "elbo": "ELBO",
    "iwae": "IWAE, K = 8",
    "reweighted-wake-sleep": "reweighted wake-sleep (both phases), K = 8",
    "wake-sleep": "wake-sleep",
    "score-climbing": "score climbing, K = 8",
    "plain": "Gaussian, no latent",
    "told": "Gaussian, told the shape",
}
"""What tables and figures call a contender."""

PRIORS: Mapping[str, str] = {"own": "learnt", "matched": "matched"}
"""What they call a prior, where there are two."""

SHOWN = (("elbo", "matched"), ("exact", "own"))
"""Whose samples are drawn, where there are results."""

Runs = Mapping[int, Mapping[str, Any]]


def rows(results: Results) -> Iterable[tuple[str, str, str]]:
    """Yield contender, prior and the name of both."""
    for name, label in NAMES.items():
        for prior in next(iter(results[name].values()))["priors"] if name in results else ():
            two = len(next(iter(results[name].values()))["priors"]) > 1
            yield name, prior, f"{label}; prior {PRIORS[prior]}" if two else label


def likelihood(runs: Runs, prior: str) -> Interval:
    """Join the test motions of all seeds, nats a dimension, with an interval between shapes.

    Motions of one shape are alike, and seeds may hold out the same one: the shape is the unit.
    """
    found = [run["priors"][prior] for run in runs.values()]
    values, sizes, shapes = (
        torch.tensor([number for each in found for number in each[key]]) for key in ("log_prob", "dimensions", "shapes")
    )
    return clustered_interval(values.double(), shapes, size=sizes.double())


def over_runs(runs: Runs, prior: str, how: str, what: str) -> list[float]:
    """Return a measure of the samples, a number a seed."""
    found = [run["priors"][prior]["samples"][how][what] for run in runs.values()]
    return [float(len(each)) if isinstance(each, list) else each for each in found]


def ranged(values: list[float], digits: int, unit: float = 1.0) -> str:
    """Write a mean, and the least and the most.

    >>> ranged([1.0, 2.0, 4.5], 1)
    '2.5 (1.0 to 4.5)'
    """
    low, mean, high = (unit * value for value in (min(values), float(np.mean(values)), max(values)))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


SHAPES = (
    "Angle",
    "BendedLine",
    "CShape",
    "DoubleBendedLine",
    "GShape",
    "JShape",
    "JShape_2",
    "Khamesh",
    "LShape",
    "Leaf_1",
    "Leaf_2",
    "Line",
    "Multi_Models_1",
    "Multi_Models_2",
    "Multi_Models_3",
    "Multi_Models_4",
    "NShape",
    "PShape",
    "RShape",
    "Saeghe",
    "Sharpc",
    "Sine",
    "Snake",
    "Spoon",
    "Sshape",
    "Trapezoid",
    "WShape",
    "Worm",
    "Zshape",
    "heee",
)
"""The shapes, in the order of their numbers; reading the page needs no data."""


def table(results: Results) -> list[str]:
    """Return a row a contender and prior."""
    lines = [
        "| contender | seeds | nats a dimension (95 %) | shapes drawn, of 30 | samples that count, % | as it acts, % | "
        "sample to nearest demonstration, mm | held-out motion to nearest sample, mm | σ, mm |",
        "|---|--:|---|---|---|---|---|---|--:|",
    ]
    for name, prior, label in rows(results):
        runs = results[name]
        exact = next(iter(runs.values()))["priors"][prior]["kind"] == "exact"
        sigma = [float(np.mean(run["sigma"])) for run in runs.values()]
        lines.append(
            f"| {label} | {len(runs)} | {'' if exact else '≥ '}{spelled(likelihood(runs, prior), digits=2)} "
            f"| {ranged(over_runs(runs, prior, 'steady', 'shapes'), 1)} "
            f"| {ranged(over_runs(runs, prior, 'steady', 'counting'), 0, 100)} "
            f"| {ranged(over_runs(runs, prior, 'drawn', 'counting'), 0, 100)} "
            f"| {ranged(over_runs(runs, prior, 'steady', 'precision_mm'), 1)} "
            f"| {ranged(over_runs(runs, prior, 'steady', 'coverage_mm'), 1)} | {np.mean(sigma):.2f} |"
        )
    return [*lines, "", *per_shape(results)]


def per_shape(results: Results) -> list[str]:
    """Return how many of all seeds' samples count as each shape, for the contenders that are drawn."""
    chosen = [(name, prior) for name, prior in SHOWN if name in results]
    if not chosen:
        return []
    labels = {(name, prior): label for name, prior, label in rows(results)}
    lines = [
        "Steady samples that count as each shape, of all seeds together (of each, 150 samples a seed):",
        "",
        f"| shape | {' | '.join(labels[key] for key in chosen)} |",
        f"|---|{'---|' * len(chosen)}",
    ]
    counts = {
        (name, prior): np.sum(
            [run["priors"][prior]["samples"]["steady"]["of_shape"] for run in results[name].values()], axis=0
        )
        for name, prior in chosen
    }
    for place, shape in enumerate(SHAPES):
        lines.append(f"| {shape} | {' | '.join(str(int(counts[key][place])) for key in chosen)} |")
    return lines


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the likelihoods, and the samples over the demonstrations of all shapes."""
    drawn = [*draw_likelihood(results, folder)]
    for name, prior in SHOWN:
        if name in results and 0 in results[name]:
            drawn += draw_samples(results[name][0]["priors"][prior], folder / f"cloning-lasa-{name}")
    return drawn


def draw_likelihood(results: Results, folder: Path) -> list[Path]:
    """Draw a bar a contender and prior, with its interval."""
    from matplotlib.figure import Figure

    listed = [*rows(results)][::-1]
    with styled():
        figure = Figure(figsize=(6.6, 0.24 * len(listed) + 0.7), layout="constrained")
        axes = figure.subplots()
        for place, (name, prior, _) in enumerate(listed):
            found = likelihood(results[name], prior)
            colour = COLOURS[0] if prior == "own" else COLOURS[1]
            axes.barh(place, found.value, color=colour, height=0.7, alpha=0.7)
            reach = [[found.value - found.low], [found.high - found.value]]
            axes.errorbar(found.value, place, xerr=reach, color="0.2", capsize=2, elinewidth=0.8)
        axes.set_yticks(range(len(listed)), [label for *_, label in listed])
        axes.set_xlabel("held-out log-likelihood, nats a dimension of a displacement in mm; the right is better")
        axes.spines[["top", "right"]].set_visible(False)
        return save(figure, folder / "cloning-lasa-likelihood")


def draw_samples(found: Mapping[str, Any], stem: Path) -> list[Path]:
    """Draw every sample over the demonstrations of the shape it is nearest to: those that count, and the others."""
    from matplotlib.figure import Figure

    every = motions()
    assert every.mode is not None
    shown, mode = paths(every)[:, ::THINNED], every.mode.numpy()
    samples = from_text(found["samples"]["steady"]["paths"])
    judged = judge(samples, every)
    with styled():
        figure = Figure(figsize=(6.9, 6.2), layout="constrained")
        for place, (axes, name) in enumerate(zip(figure.subplots(5, 6).flat, every.mode_names, strict=True)):
            for path in shown[mode == place]:
                axes.plot(*path.T, color="0.75", linewidth=2.0)
            for counts, colour in ((False, COLOURS[1]), (True, COLOURS[0])):
                for path in samples[(judged.shape == place) & (judged.counts == counts)]:
                    axes.plot(*path.T, color=colour, linewidth=0.6, alpha=0.8)
            axes.set_title(name, fontsize=6, pad=2)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_xticks([])
            axes.set_yticks([])
        names = ("demonstrations", "samples that count as the shape", "samples nearest to it that do not")
        handles = [axes.plot([], [], color=colour)[0] for colour in ("0.75", COLOURS[0], COLOURS[1])]
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        return save(figure, stem)
