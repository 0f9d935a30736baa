"""Training by ``latentpg train`` in one process or several of ``torchrun``, timed by what the run's own result says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT

UPDATES = 40
"""Iterations that are timed."""


def seconds_an_iteration(options: str, *, num_envs: int, batch_size: int, workers: int) -> float:
    """Train for :data:`UPDATES` iterations in a launch of so many workers; ``options`` say what.

    Seconds are those of updates: evaluations, checkpoints and the start of processes are not in them.
    """
    words = options.split()
    total = UPDATES * int(words[words.index("--num-steps") + 1]) * num_envs
    words += ["--num-envs", str(num_envs), "--batch-size", str(batch_size)]
    words += ["--total-timesteps", str(total), "--eval-every", str(total), "--checkpoint-every", str(total)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m", "latentpg"]
        start = ["-m", "latentpg"] if workers == 1 else launch
        command = [sys.executable, *start, "train", *words, "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return float(result["seconds"]) / UPDATES
