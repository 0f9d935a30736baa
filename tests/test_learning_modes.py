"""What the studies of modes and of mixing count, held against arithmetic written out; nothing is trained."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.learning import mixing, modes
from benchmarks.learning._shared_modes import GAIN, LOG_STD, POLICIES, spread_out
from latentpg.envs.mixing_goals import GOALS
from latentpg.numerics.rng import seeded
from latentpg.training import prepared, resolve
from latentpg.training.policies import SMALL_GAIN


def test_effective_modes_of_even_successes() -> None:
    found = modes.measure(np.array([0] * 4 + [1] * 4 + [-1] * 2), 3)
    assert found["counts"] == [4, 4, 0]
    assert found["success"] == 0.8
    assert found["effective_modes"] == pytest.approx(2 * math.exp(1 / 16), rel=1e-12)  # (2 - 1) / (2 * 8) nats


def test_effective_modes_are_no_more_than_there_are_and_none_without_a_success() -> None:
    assert modes.measure(np.array([0, 1, 2]), 3)["effective_modes"] == 3.0  # Miller's correction would go beyond
    assert modes.measure(np.array([1, 1, 1]), 3)["effective_modes"] == 1.0
    assert modes.measure(np.array([-1, -1]), 3) == {"counts": [0, 0, 0], "success": 0.0, "effective_modes": None}


def test_peaks_count_where_they_pay_half() -> None:
    half = 0.1 * math.sqrt(2 * math.log(2))  # exp(-x^2 / 0.02) = 1/2
    inside, outside = 0.6 - half + 1e-6, 0.6 - half - 1e-6
    assert modes.paid_peak(np.array([inside, outside, -inside, 0.0])).tolist() == [2, -1, 0, 1]


def test_mixing_is_counted_goal_by_goal() -> None:
    action = np.array([*GOALS, *GOALS, [0.0, 0.0], [1.0, 1.0]])
    found = mixing.measure(action)
    assert found["chances"] == [0.2] * 4
    # the first four steps have 0, 1, 2 and 3 steps behind them, the other 28 have 3
    expected = 4 * 0.2 * (1 + 0.8 + 0.8**2 + 29 * 0.8**3)
    assert found["expected_return"] == pytest.approx(expected, rel=1e-12)
    assert found["effective_modes"] == 4.0


def test_nothing_reached_has_no_modes() -> None:
    found = mixing.measure(np.zeros((3, 2)))
    assert (found["expected_return"], found["effective_modes"]) == (0.0, None)


def _run(coefficient: float, modes_found: float | None, mean_return: float) -> dict[str, Any]:
    return {
        "coefficient": coefficient,
        "effective_modes": modes_found,
        "mean_return": mean_return,
        "success": 0.0 if modes_found is None else 1.0,
    }


def _cell() -> dict[int, dict[str, Any]]:
    """Two seeds that are alike: nearly optimal with 1 and 2 modes, then 3 modes at a poor return, then no success."""
    runs = [_run(0.0, 1.0, 1.0), _run(0.01, 2.0, 0.96), _run(0.03, 3.0, 0.5), _run(0.1, None, 0.0)]
    return {seed: {"runs": runs} for seed in (0, 1)}


def test_the_best_point_is_nearly_optimal() -> None:
    found = modes.points(_cell())
    top = modes.best(found, 1.0)
    assert top is not None and top.coefficient == 0.01
    assert modes.best(found, 3.0) is None
    assert found[3].modes is None and found[3].success == 0.0


def test_tables_say_what_was_found() -> None:
    lines = modes.table({"peaks-mixture": _cell()})
    assert lines[2] == "| PeaksBandit | mixture of 8 | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) | 0.01 |"
    assert lines[-1] == "| PeaksBandit | mixture of 8 | 0.1 | no success | 0.000 (0.000 to 0.000) | 0 % |"
    one = {"mean_return": 14.0, "expected_return": 14.5, "effective_modes": 4.0}
    assert mixing.table({"mixture": {0: one, 1: one}})[2] == (
        "| mixture of 8 | 14.00 (14.00 to 14.00) | 14.50 (14.50 to 14.50) | 14.50, 14.50 | 4.00 (4.00 to 4.00) |"
    )


def test_figures_are_drawn(tmp_path: Path) -> None:
    paths = modes.draw({"peaks-mixture": _cell()}, tmp_path)
    run = {
        "mean_return": 14.0,
        "expected_return": 14.5,
        "effective_modes": 4.0,
        "curve": [[100, 1.0], [200, 2.0]],
        "actions": [[0.7, 0.0], [0.0, 0.7]],
    }
    paths += mixing.draw({policy: {0: run, 1: run} for policy in POLICIES}, tmp_path)
    names = ["learning-modes.svg", "learning-modes.png", "learning-mixing.svg", "learning-mixing.png"]
    assert [path.name for path in paths] == names and all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_start_is_the_same_for_all(policy: str) -> None:
    config = resolve({"env": "latentpg/MultiGoal-v0", "hidden": (8,), **POLICIES[policy]})
    with prepared(config) as built:
        whole = built.policy
        assert isinstance(whole, nn.Module)
        with seeded(0):
            spread_out(whole)
        network: Any = whole.network if policy == "plain" else whole.decoder.network.rest  # type: ignore[union-attr]
        weight = network.layers[-1].weight
        head: Any = whole.head if policy == "plain" else whole.decoder.head  # type: ignore[union-attr]
        torch.testing.assert_close(weight @ weight.T, GAIN**2 * torch.eye(2))  # orthogonal rows of that length
        assert head.log_std.tolist() == [LOG_STD, LOG_STD] and SMALL_GAIN < GAIN
