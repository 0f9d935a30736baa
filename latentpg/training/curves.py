r"""Learning curves over seeds: the interquartile mean, its bootstrap interval, and the figure.

Few runs with heavy tails are what reinforcement learning has. The interquartile mean leaves out the best and the worst
quarter of the runs, and the percentile bootstrap over runs says how surely it is known.

Source: R. Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", 2021.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from latentpg.errors import ShapeError
from latentpg.numerics.statistics import LEVEL, Interval
from latentpg.runs import publish, write_csv
from latentpg.training.log import Row, series

RESAMPLES = 2000
"""Bootstrap samples of an interval."""

COLUMN_INCHES = 3.4
"""Width of one column of a two-column paper."""

_RC: Any = {"font.size": 7, "axes.linewidth": 0.6, "legend.fontsize": 6, "svg.hashsalt": "latentpg"}
_COLOUR = "#0072B2"


def interquartile_mean(values: Float[NDArray[np.float64], "R *P"]) -> Float[NDArray[np.float64], "*P"]:
    r"""Average R runs without the lowest and the highest :math:`\lfloor R/4\rfloor` of them, along the first axis.

    With three runs or fewer that is the mean.

    >>> float(interquartile_mean(np.array([0.0, 3.0, 4.0, 5.0, 100.0])))
    4.0
    """
    if values.ndim == 0 or not len(values):
        raise ShapeError("interquartile_mean()", "`values`", expected="[R >= 1, ...]", got=str(list(values.shape)))
    cut = len(values) // 4
    return np.asarray(np.sort(values, 0)[cut : len(values) - cut].mean(0))


def bootstrap_interval(
    values: Float[NDArray[np.float64], "R *P"], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Float[NDArray[np.float64], "*P"], Float[NDArray[np.float64], "*P"]]:
    """Percentile bootstrap interval of the interquartile mean: runs are drawn whole, with replacement.

    One run has no interval: both ends are NaN. With few runs it is too narrow: of three runs every ninth resample is
    one run three times, and no interval reaches beyond the best and the worst of them.

    >>> low, high = bootstrap_interval(np.array([1.0, 1.0, 1.0]))
    >>> float(low), float(high)
    (1.0, 1.0)
    """
    if len(values) < 2:
        unknown = np.full(values.shape[1:], math.nan)
        return unknown, unknown.copy()
    draw = np.random.default_rng(seed).integers(len(values), size=(len(values), resamples))
    means = interquartile_mean(values[draw])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(low), np.asarray(high)


@dataclass(frozen=True)
class Curve:
    """A learning curve: environment steps, the value at each with its interval, and each run by its name.

    ``value_label`` and ``interval_label`` say what those are.
    """

    steps: tuple[float, ...]
    points: tuple[Interval, ...]
    runs: Mapping[str, tuple[float, ...]]
    value_label: str
    interval_label: str


def evaluation_curve(rows: Sequence[Row], name: str = "eval/mean_reward") -> Curve:
    """Return the evaluations in one run's metrics, each with the interval over its episodes."""
    steps, values = series(rows, name)
    lows, highs = series(rows, f"{name}_low")[1], series(rows, f"{name}_high")[1]
    points = tuple(Interval(*each) for each in zip(values, lows, highs, strict=True))
    return Curve(tuple(steps), points, {"run": tuple(values)}, "mean of one run's episodes", "95 % over episodes")


def learning_curve(runs: Mapping[str, tuple[Sequence[float | int], Sequence[float | int]]]) -> Curve:
    """Join runs, each steps and returns by its name, on the steps where any of them has a point.

    Between its own points a run is interpolated; steps before the first or beyond the last point of any run are left
    out.

    >>> curve = learning_curve({"a": ([0, 10], [0.0, 10.0]), "b": ([0, 5, 10], [2.0, 2.0, 4.0])})
    >>> curve.steps, [point.value for point in curve.points]
    ((0.0, 5.0, 10.0), [1.0, 3.5, 7.0])
    """
    if not runs or any(not len(steps) or len(steps) != len(values) for steps, values in runs.values()):
        raise ShapeError(
            "learning_curve()",
            "`runs`",
            expected="one or more runs, each with as many steps as returns, at least one",
            got=str({name: (len(steps), len(values)) for name, (steps, values) in runs.items()}),
        )
    first, last = max(steps[0] for steps, _ in runs.values()), min(steps[-1] for steps, _ in runs.values())
    grid = sorted({float(step) for steps, _ in runs.values() for step in steps if first <= step <= last})
    matrix = np.stack([np.interp(grid, steps, values) for steps, values in runs.values()])
    middle, (low, high) = interquartile_mean(matrix), bootstrap_interval(matrix)
    points = tuple(
        # the percentile bootstrap may leave the estimate itself out, by chance or by rounding
        Interval(float(m), min(float(lo), float(m)), max(float(hi), float(m)))
        if math.isfinite(lo)
        else Interval(float(m), math.nan, math.nan)
        for m, lo, hi in zip(middle, low, high, strict=True)
    )
    named = {name: tuple(map(float, row)) for name, row in zip(runs, matrix, strict=True)}
    label = "interquartile mean" if len(runs) > 1 else "one run"
    return Curve(tuple(grid), points, named, label, f"95 % bootstrap over {len(runs)} runs")


def draw_curve(
    curve: Curve,
    folder: Path,
    *,
    title: str,
    label: str = "mean return of an evaluation",
    stem: str = "learning_curve",
) -> list[Path]:
    """Write a figure as PNG and SVG into a folder, with its numbers as CSV, and return the three paths."""
    from matplotlib import rc_context  # half a second that a run without figures need not wait for
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{kind}" for kind in ("png", "svg", "csv")]
    with rc_context(_RC):
        figure = Figure(figsize=(COLUMN_INCHES, 2.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if len(curve.runs) > 1:
            for values in curve.runs.values():
                axes.plot(curve.steps, values, color="0.7", linewidth=0.6, zorder=1)
        low, middle, high = ([getattr(p, end) for p in curve.points] for end in ("low", "value", "high"))
        if not all(map(math.isnan, low)):
            axes.fill_between(
                curve.steps, low, high, color=_COLOUR, alpha=0.25, linewidth=0, label=curve.interval_label
            )
        axes.plot(
            curve.steps, middle, color=_COLOUR, marker="o", markersize=2.5, linewidth=1.2, label=curve.value_label
        )
        axes.xaxis.set_major_locator(MaxNLocator(4))  # numbers of six digits stand apart
        axes.set_xlabel("environment steps")
        axes.set_ylabel(label)
        axes.set_title(title, fontsize=7)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        for path in paths[:2]:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=_metadata(path))
            publish(path, buffer.getvalue())
    write_csv(paths[2], curve_rows(curve))
    return paths


def curve_rows(curve: Curve) -> list[dict[str, float | None]]:
    """Return what a figure shows, a row a step."""
    return [
        {
            "step": step,
            "value": point.value,
            "low": None if math.isnan(point.low) else point.low,
            "high": None if math.isnan(point.high) else point.high,
            **{name: values[place] for name, values in curve.runs.items()},
        }
        for place, (step, point) in enumerate(zip(curve.steps, curve.points, strict=True))
    ]


def _metadata(path: Path) -> dict[str, Any]:
    return {"Date": None} if path.suffix == ".svg" else {}  # the same numbers give the same file
