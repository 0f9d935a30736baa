"""Interquartile mean, its bootstrap interval, and learning curves, against written-out arithmetic."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from latentpg.errors import ShapeError
from latentpg.training.curves import (
    bootstrap_interval,
    curve_rows,
    draw_curve,
    evaluation_curve,
    interquartile_mean,
    learning_curve,
)
from latentpg.training.log import STEPS


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 6.0], 3.0),  # nothing to cut: the mean
        ([9.0, 1.0, 2.0, 4.0], 3.0),  # one off each end: 2 and 4
        ([5.0, -100.0, 3.0, 100.0, 4.0], 4.0),  # 3, 4, 5
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4.5),  # 3, 4, 5, 6
    ],
)
def test_interquartile_mean(values: list[float], expected: float) -> None:
    assert float(interquartile_mean(np.array(values))) == expected


def test_interquartile_mean_takes_each_column_by_itself() -> None:
    values = np.array([[1.0, 40.0], [2.0, 30.0], [3.0, 20.0], [4.0, 10.0]])
    assert interquartile_mean(values).tolist() == [2.5, 25.0]


def test_no_runs_have_no_mean() -> None:
    with pytest.raises(ShapeError, match="R >= 1"):
        interquartile_mean(np.zeros((0, 3)))


def test_the_bootstrap_has_the_law_of_resampled_runs() -> None:
    """Two runs 0 and 1: resamples have the means 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so 40 % lie at 1/2."""
    for level, ends in ((0.4, [0.5, 0.5]), (0.9, [0.0, 1.0])):
        found = bootstrap_interval(np.array([0.0, 1.0]), level=level, resamples=10_000)
        assert [float(end) for end in found] == ends


def test_the_bootstrap_against_all_resamples() -> None:
    """Every resample of four runs, 4^4 of them: the quantiles at 10 % and 90 % of their interquartile means."""
    runs = np.array([1.0, 2.0, 4.0, 9.0])
    every = interquartile_mean(np.array(list(itertools.product(runs, repeat=4))).T)
    low, high = bootstrap_interval(runs, level=0.8, resamples=50_000)
    assert (float(low), float(high)) == tuple(np.quantile(every, [0.1, 0.9])) == (1.5, 6.5)


def test_one_run_has_no_interval() -> None:
    assert all(math.isnan(float(end)) for end in bootstrap_interval(np.array([3.0])))
    point = learning_curve({"a": ([0.0], [3.0])}).points[0]
    assert point.value == 3.0 and math.isnan(point.low) and math.isnan(point.high)


def test_runs_are_joined_where_all_of_them_have_points() -> None:
    curve = learning_curve({"a": ([0, 10, 20], [0.0, 10.0, 0.0]), "b": ([5, 15], [1.0, 3.0])})
    assert curve.steps == (5.0, 10.0, 15.0)
    assert curve.runs == {"a": (5.0, 10.0, 5.0), "b": (1.0, 2.0, 3.0)}
    assert [point.value for point in curve.points] == [3.0, 6.0, 4.0]
    assert all(point.low <= point.value <= point.high for point in curve.points)


@pytest.mark.parametrize("runs", [{}, {"a": ([], [])}, {"a": ([1.0], [1.0, 2.0])}])
def test_runs_without_points_are_refused(runs: dict[str, tuple[list[float], list[float]]]) -> None:
    with pytest.raises(ShapeError, match="one or more runs"):
        learning_curve(runs)


def test_a_figure_its_drawing_and_its_numbers(tmp_path: Path) -> None:
    runs = {f"seed-{seed}": ([0.0, 10.0], [float(seed), 2.0 * seed]) for seed in range(5)}
    curve = learning_curve(runs)
    png, svg, table = draw_curve(curve, tmp_path / "figures", title="a title")
    assert png.read_bytes().startswith(b"\x89PNG") and b"</svg>" in svg.read_bytes()
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["value"]) for row in rows] == [2.0, 4.0]  # of 1, 2, 3, and of 2, 4, 6
    assert rows[1]["seed-3"] == "6.0"
    first = svg.read_bytes()
    draw_curve(curve, tmp_path / "figures", title="a title")
    assert svg.read_bytes() == first


def test_one_run_is_drawn_with_the_intervals_of_its_evaluations(tmp_path: Path) -> None:
    named = ("eval/mean_reward", "eval/mean_reward_low", "eval/mean_reward_high")
    rows = [{STEPS: 0, **dict(zip(named, (2.0, 1.0, 3.0), strict=True))}, {STEPS: 5, "train/loss": 1.0}]
    curve = evaluation_curve(rows)
    assert curve_rows(curve) == [{"step": 0.0, "value": 2.0, "low": 1.0, "high": 3.0, "run": 2.0}]
    assert all(path.is_file() for path in draw_curve(curve, tmp_path, title="one"))
