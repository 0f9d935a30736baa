"""How much quicker two workers of ``torchrun`` train than one process: environment steps a second, and the ratio.

PPO on CartPole-v1 with the options that ``benchmarks/test_training.py`` takes from rl-baselines3-zoo, and with four
times their environments: the same minibatches are shared by two workers. Seconds are those of updates, as a run's own
``result.json`` has them. Two cores that nobody else uses are needed for the figure to mean anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.measure import ROOT, Row

OPTIONS = "--env CartPole-v1 --no-tuned --num-steps 32 --num-epochs 20 --eval-episodes 4 --estimator conditional-is"
SETTINGS = {8: 256, 32: 1024}
"""Environments, and rows of a minibatch."""


def steps_a_second(num_envs: int, batch_size: int, workers: int) -> float:
    """Train for 40 updates in a launch of so many workers, and return what its result says."""
    total = 40 * 32 * num_envs
    words = [*OPTIONS.split(), "--num-envs", str(num_envs), "--batch-size", str(batch_size)]
    words += ["--total-timesteps", str(total), "--eval-every", str(total), "--checkpoint-every", str(total)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m", "latentpg"]
        start = ["-m", "latentpg"] if workers == 1 else launch
        command = [sys.executable, *start, "train", *words, "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return float(result["timesteps"] / result["seconds"])


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
