"""Claim: a gradient of B = 8192 rows and K = 64 particles peaks under 150 MB above its start, with the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import ROOT, Row
from latentpg.programs.blocks import DEFAULT_BLOCK


def measure(block: int, path: Path) -> tuple[dict[str, float], np.ndarray]:
    command = [sys.executable, "-m", "benchmarks.peak_memory", str(block), str(path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # as users run
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
    return json.loads(told.stdout), np.frombuffer(path.read_bytes(), dtype=np.float32)


def test_large_batch(tmp_path: Path, benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    runs = [(measure(DEFAULT_BLOCK, tmp_path / "blocks"), measure(10**9, tmp_path / "whole")) for _ in range(3)]
    (blocks, in_blocks), (whole, in_one_piece) = runs[0]
    rows = int(whole["values"])
    values = float(np.abs(in_blocks[:rows] - in_one_piece[:rows]).max())
    gradient = float(np.abs(in_blocks[rows:] - in_one_piece[rows:]).max())
    assert values < 1e-5, values
    assert gradient < 1e-5, gradient
    rise = max(each["rise in MB"] for (each, _), _ in runs)
    seconds = [sorted(run[i][0]["seconds"] for run in runs)[1] for i in (0, 1)]
    details = {
        "in one piece": whole,
        "in blocks": blocks,
        "median seconds (blocks, one piece)": seconds,
        "largest difference": {"value": values, "gradient": gradient},
    }
    record(Row("B=8192, K=64 gradient in blocks, peak over start", "< 150", rise, "MB", rise < 150, details))
    record(Row("the same in one piece", "-", whole["rise in MB"], "MB", None))
    record(Row("seconds, blocks over one piece", "-", seconds[0] / seconds[1], "x", None))
    benchmark.extra_info.update(details)
    benchmark.pedantic(measure, args=(DEFAULT_BLOCK, tmp_path / "blocks"), rounds=1)
