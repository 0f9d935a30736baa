"""Measure ratios within one run: functions called in turn, in an order shuffled every round, medians of paired ratios.

Other programs on the machine, its clock and its memory then slow all of them alike.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """Median seconds by name, the median over rounds of the ratio to the baseline, and that ratio's quartiles."""

    seconds: dict[str, float]
    ratio: dict[str, float]
    quartiles: dict[str, tuple[float, float]]
    baseline: str
    rounds: int


def compare(functions: Mapping[str, Callable[[], Any]], *, baseline: str, rounds: int, warmup: int = 3) -> Comparison:
    """Call every function once a round, in shuffled order, and pair each with the baseline of its round."""
    order, shuffle = list(functions), random.Random(SEED)
    for _ in range(warmup):
        for function in functions.values():
            function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle.shuffle(order)
            for name in order:
                start = time.perf_counter()
                functions[name]()
                taken[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    ratios = {name: [a / b for a, b in zip(taken[name], taken[baseline], strict=True)] for name in functions}
    quarters = {name: statistics.quantiles(each, n=4) for name, each in ratios.items()}
    return Comparison(
        {name: statistics.median(each) for name, each in taken.items()},
        {name: statistics.median(each) for name, each in ratios.items()},
        {name: (q[0], q[2]) for name, q in quarters.items()},
        baseline,
        rounds,
    )


@dataclass(frozen=True)
class Row:
    """One figure: the claim it measures, the target, what came, and what stands behind it."""

    claim: str
    target: str
    figure: float
    unit: str
    met: bool | None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return "-" if self.met is None else "met" if self.met else "MISSED"


def environment() -> dict[str, Any]:
    """Say on what the figures were taken."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in found.items()}
        cpu = f"{named.get('model name', cpu)} (family {named.get('cpu family')}, model {named.get('model')})"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "steady heap": "MALLOC_TRIM_THRESHOLD_" in os.environ,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "seed": SEED,
    }


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "latentpg", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(name: str, rows: list[Row]) -> Path:
    """Write the rows of one file of benchmarks, with the environment, as JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"environment": environment(), "rows": [asdict(row) | {"verdict": row.verdict} for row in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
