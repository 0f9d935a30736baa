"""Claim: a study of 1,000 cells keeps two processes busy, at least 85 % of the ideal speed-up against one process.

Cells are like a study's: replicate gradients of a small policy on one thread, 0.05 to 0.3 s each, the larger K the
longer. Starting the processes, and what each builds for itself once, count as they do in a study. An idle machine with
two cores is needed for the figure to mean anything; the load at the time is written beside it. It takes four minutes.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from gymnasium import spaces

from benchmarks.cases import OBSERVATION
from benchmarks.measure import Row
from latentpg.estimators import PosteriorIS, Prior, replicate_gradients
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import LatentPolicy, act
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore, fingerprint_of

NUM_CELLS = 1000
NUM_ROWS = 64
NUM_REPLICATES = 400
SIZES = (2, 4, 8, 16)


@cache
def problem() -> tuple[LatentPolicy, torch.Tensor, torch.Tensor]:
    """Build what all cells share, once in each process."""
    with seeded(0):
        policy = MixturePolicy(OBSERVATION, spaces.Discrete(4), num_components=4, hidden=(16, 16))
        obs = torch.randn(NUM_ROWS, *OBSERVATION.shape)
        return policy, obs, act(policy, obs).action


def measure(key: str) -> list[dict[str, str | int | float | bool | None]]:
    """Measure one cell; K is in its key."""
    policy, obs, action = problem()
    size = int(key.rpartition("=")[2])
    with seeded(zlib.crc32(key.encode())):
        gradients, _ = replicate_gradients(
            policy, PosteriorIS(size, Prior()), obs, action, num_replicates=NUM_REPLICATES
        )
    return [{"cell": key, "measure": "variance", "value": float(gradients.var(0).sum())}]


def run(keys: list[str], num_workers: int) -> tuple[float, list[float], list[str]]:
    """Return seconds of the whole, seconds of every cell, and the rows."""
    with tempfile.TemporaryDirectory() as folder:
        store = CellStore(Path(folder), fingerprint_of({"cells": len(keys)}))
        start = time.perf_counter()
        run_cells(keys, measure, store, num_workers=num_workers)
        seconds = time.perf_counter() - start
        cells = [store.read(key) for key in keys]
    return seconds, [cell.seconds for cell in cells], [repr(cell.rows) for cell in cells]


def test_two_processes(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    keys = [f"cell {index}, K={SIZES[index % len(SIZES)]}" for index in range(NUM_CELLS)]
    one, own_one, rows_one = run(keys, 1)
    two, own_two, rows_two = run(keys, 2)
    assert rows_one == rows_two
    share = one / two / 2
    record(
        Row(
            f"speed-up of 2 processes over 1, {NUM_CELLS} cells, share of the ideal",
            ">= 85 %",
            100 * share,
            "%",
            share >= 0.85,
            {"seconds (1, 2)": (one, two), "seconds in cells (1, 2)": (sum(own_one), sum(own_two)), "K": SIZES},
        )
    )
    benchmark.extra_info["share of the ideal"] = share
    benchmark.pedantic(lambda: measure(keys[0]), rounds=3)
