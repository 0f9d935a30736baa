"""How much quicker two workers of ``torchrun`` train than one process: environment steps a second, and the ratio.

PPO on CartPole-v1 with the options that ``benchmarks/test_training.py`` takes from rl-baselines3-zoo, and with four
times their environments: the same minibatches are shared by two workers. Seconds are those of updates, as a run's own
``result.json`` has them. Two cores that nobody else uses are needed for the figure to mean anything.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.measure import Row
from benchmarks.workers import seconds_an_iteration

NUM_STEPS = 32
OPTIONS = (
    f"--env CartPole-v1 --no-tuned --num-steps {NUM_STEPS} --num-epochs 20 --eval-episodes 4 --estimator conditional-is"
)
SETTINGS = {8: 256, 32: 1024}
"""Environments, and rows of a minibatch."""


def steps_a_second(num_envs: int, batch_size: int, workers: int) -> float:
    """Train in a launch of so many workers, and return how quick it was."""
    seconds = seconds_an_iteration(OPTIONS, num_envs=num_envs, batch_size=batch_size, workers=workers)
    return NUM_STEPS * num_envs / seconds


@pytest.mark.parametrize("num_envs", SETTINGS)
def test_two_workers(benchmark, record: Callable[[Row], None], num_envs: int) -> None:  # noqa: ANN001 (a fixture)
    rounds = [
        [steps_a_second(num_envs, SETTINGS[num_envs], workers) for workers in (1, 2)] for _ in range(3)
    ]  # in turn, so that whatever else the machine does slows both alike
    ratios = sorted(two / one for one, two in rounds)
    record(
        Row(
            f"two workers over one process, {num_envs} environments, minibatches of {SETTINGS[num_envs]}",
            "-",
            ratios[1],
            "x as quick",
            None,
            {"steps a second (1, 2)": rounds, "ratios": ratios},
        )
    )
    benchmark.extra_info["ratio"] = ratios[1]
    benchmark.pedantic(lambda: None, rounds=1)
