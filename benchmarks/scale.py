"""What large runs cost, from small ones: ``python -m benchmarks.scale`` measures, and writes docs/scale.md's tables.

Costs of a cell in the store (bytes, files, seconds of this process's own work) are measured at 10,000 and at 100,000
cells, those of a worker on a short run, and those of an all-reduce between two processes; seconds of a PPO iteration
are those of ``benchmarks/results/training.json``. ``python -m benchmarks.scale page`` writes the tables alone.

Work is in seconds of the processor, which neighbours on the machine do not stretch as they do the clock's; an
all-reduce is the quickest of many, for the same reason. Iterations of two workers are by the clock, and want a machine
that nobody else uses. It takes some five minutes and 600 MB under /tmp.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import RESULTS, ROOT, environment
from benchmarks.workers import seconds_an_iteration
from latentpg.numerics.rng import seeded
from latentpg.studies import make_study
from latentpg.studies.cellfile import Row, StoredCell, encode
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore, fingerprint_of

PAGE = ROOT / "docs" / "scale.md"
MARK = "<!-- what follows is written by `python -m benchmarks.scale` -->"
SIZES = (10_000, 100_000)
PUBLISHED = 1_000
WORKERS, CELLS = 64, 1_000_000

CELL_ROWS: list[Row] = [
    {"measure": name, "value": 0.12757422741030716, "low": 0.101171451852678, "high": 0.15, "exact": False}
    for name in ("reference_norm", "bias", "noise_floor", "variance", "snr", "cosine", "ess", "seconds")
]
"""Rows of the size that a cell of the shipped studies has."""


# Measuring.


def bytes_of(mark: str) -> int:
    """Read the memory that this process has (VmRSS) or had at most (VmHWM), which a child does not inherit here."""
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(next(line.split()[1] for line in file if line.startswith(f"{mark}:")))


def work() -> float:
    return time.process_time()


def store_costs(size: int) -> dict[str, float]:
    """Look through so many cells as a resumed study does, and read them back as its tables do.

    Files are put there as the store would, but without waiting for the disk at each; how long a run waits for it is
    measured on the first :data:`PUBLISHED` alone, through :func:`run_cells`.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = CellStore(Path(folder), fingerprint_of({"cells": size}))
        keys = [f"gradient | conditional-is, guide | num_particles={index}" for index in range(size)]
        start, clock = work(), time.perf_counter()
        run_cells(keys[:PUBLISHED], lambda key: CELL_ROWS, store, backend="serial")
        written, took = work() - start, time.perf_counter() - clock
        for key in keys[PUBLISHED:]:
            cell = StoredCell(store.fingerprint, key, tuple(CELL_ROWS), 1.5)
            store.path(key).write_bytes(encode(cell))
        files = list(os.scandir(store.cells))
        start = work()
        found = store.survey()
        surveyed = work() - start
        assert len(found.finished) == size == len(files)
        start = work()
        for key in keys:
            _ = [dict(row) for row in store.read(key).rows]
        read = work() - start
        return {
            "cells": size,
            "bytes a cell": sum(entry.stat().st_size for entry in files) / size,
            "bytes on disk a cell": sum(entry.stat().st_blocks * 512 for entry in files) / size,
            "write, work in s a cell": written / PUBLISHED,
            "write, clock in s a cell": took / PUBLISHED,
            "survey, work in s a cell": surveyed / size,
            "read, work in s a cell": read / size,
        }


HOLD = """
from benchmarks.scale import CELL_ROWS, bytes_of
before = bytes_of("VmRSS")
keys = [f"gradient | conditional-is, guide | num_particles={index}" for index in range(20_000)]
held = {key: [dict(row) for row in CELL_ROWS] for key in keys}
print((bytes_of("VmRSS") - before) / 20_000)
"""

SEND = """
import sys, tempfile, time
from pathlib import Path
from benchmarks.scale import nothing
from latentpg.studies.execute import run_cells
from latentpg.studies.store import CellStore, fingerprint_of

def costs(size):
    with tempfile.TemporaryDirectory() as folder:
        store = CellStore(Path(folder), fingerprint_of({"cells": size}))
        start = time.process_time()
        run_cells([f"cell {i}" for i in range(size)], nothing, store, num_workers=2, backend=sys.argv[1])
        return time.process_time() - start

if __name__ == "__main__":
    few, many = costs(200), costs(2200)
    print((many - few) / 2000)
"""

TRAIN = """
import json, sys, time
from benchmarks.scale import bytes_of
from latentpg.training import build, resolve
from latentpg.runs.tensors import encode_tensors
start = time.process_time()
options = {"env": sys.argv[1], "num_envs": 8, "num_steps": int(sys.argv[2]), "batch_size": int(sys.argv[3])}
built = build(resolve({**options, "num_epochs": int(sys.argv[4])}))
begun = time.process_time()
built.learner.update()
learner = built.learner
moved = [p for d in (learner.agent.model, learner.value) for p in d.parameters]
print(json.dumps({
    "seconds to build": begun - start,
    "parameters": sum(p.numel() for p in moved),
    "bytes of a checkpoint": len(encode_tensors(learner.state())),
    "bytes of memory": bytes_of("VmHWM"),
}))
"""

REDUCE = """
import sys, time
import torch
from latentpg.learners.workers import joined
torch.set_num_threads(1)
with joined() as group:
    for size in map(int, sys.argv[1:]):
        values, taken = torch.zeros(size), []
        for _ in range(400):
            start = time.perf_counter()
            group.sum(values)
            taken.append(time.perf_counter() - start)
        if group.rank == 0:
            taken.sort()
            print(size, taken[0], taken[200], sum(taken) / 400, taken[380])
"""


def nothing(key: str) -> list[Row]:
    """Do no work at all for a cell."""
    return CELL_ROWS


def sending(backend: str) -> float | None:
    """Measure what the parent works for a cell that another process computes: to send, receive and publish it."""
    if backend == "ray" and importlib.util.find_spec("ray") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:  # loky's workers import the file that was run
        script = Path(folder) / "send.py"
        script.write_text(SEND, encoding="utf-8")
        found = subprocess.run(
            [sys.executable, str(script), backend],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    return float(found.stdout)


def listing() -> dict[str, float]:
    """Measure what it takes to list a study's cells, which its parent does, and to find one, which each cell does."""
    study = make_study("quickstart")
    axis = "num_particles"
    large = replace(study, axes={**study.axes, axis: tuple(range(1, 3001))})
    start = work()
    jobs = large.jobs()
    listed = work() - start
    keys = list(jobs)[:: max(1, len(jobs) // 50)]
    start = work()
    for key in keys:
        large.job(key)
    return {
        "cells": len(jobs),
        "list, work in s a cell": listed / len(jobs),
        "find one, work in s": (work() - start) / len(keys),
    }


def told(script: str, *words: object, environment: Mapping[str, str] | None = None) -> str:
    command = [sys.executable, "-c", script, *map(str, words)]
    found = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )
    return found.stdout


def reduces(sizes: list[int]) -> dict[str, dict[str, float]]:
    """Time all-reduces of so many float32 between two processes over gloo on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    script = [sys.executable, "-c", REDUCE, *map(str, sizes)]
    found = subprocess.run([*command, *script], cwd=ROOT, check=True, capture_output=True, text=True)
    lines = [line.split() for line in found.stdout.splitlines() if line]
    names = ("quickest in s", "median in s", "mean in s", "95 % in s")
    return {size: dict(zip(names, map(float, taken), strict=True)) for size, *taken in lines}


def together(env: str, steps: int, batch: int, epochs: int) -> dict[str, float]:
    """Measure an iteration by the clock: of one process, and of two workers with as many environments and rows each."""
    found = {}
    for workers in (1, 2):
        options = f"--env {env} --no-tuned --num-steps {steps} --num-epochs {epochs} --eval-episodes 4"
        seconds = seconds_an_iteration(options, num_envs=8 * workers, batch_size=batch * workers, workers=workers)
        found[f"{workers}, clock in s an iteration"] = seconds
    return found


def scoring() -> float:
    """Measure the work of a cell of the shipped studies: replicate gradients of a small policy."""
    cells = importlib.import_module("benchmarks.test_studies")
    torch.set_num_threads(1)
    cells.measure("cell 0, K=2")
    start = work()
    for index, size in enumerate(cells.SIZES):
        cells.measure(f"cell {index}, K={size}")
    return (work() - start) / len(cells.SIZES)


SETTINGS = {"CartPole-v1": (32, 256, 20), "HalfCheetah-v5": (256, 64, 10)}
"""Steps a member, rows of a minibatch and epochs, as benchmarks/test_training.py has them."""


def measured() -> dict[str, Any]:
    workers: dict[str, Any] = {}
    for name, (steps, batch, epochs) in SETTINGS.items():
        try:
            workers[name] = json.loads(told(TRAIN, name, steps, batch, epochs, environment={"OMP_NUM_THREADS": "1"}))
        except subprocess.CalledProcessError:  # MuJoCo is not installed
            print(f"{name} is left out")
            continue
        workers[name] |= together(name, steps, batch, epochs)
    sizes = [each["parameters"] + 3 for each in workers.values()]
    with seeded(0):
        return {
            "environment": environment(),
            "store": [store_costs(size) for size in SIZES],
            "listing": listing(),
            "sending, work in s a cell": {backend: sending(backend) for backend in ("process", "ray")},
            "bytes of memory a cell": float(told(HOLD)),
            "seconds of a cell's own work": scoring(),
            "workers": workers,
            "all-reduce": reduces(sorted({1, *sizes, 1_000_000})),
        }


# The page.


def tables() -> str:
    """Work out what the page says from the two files of results."""
    found = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    iterations = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))
    blocks = [_study(found), *(_run(name, found, iterations) for name in found["workers"]), _where(found)]
    return "\n\n".join(blocks) + "\n"


def page() -> str:
    """Return what the page should hold: its own text, then the tables."""
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + f"{MARK}\n\n{tables()}"


def _table(title: str, rows: Mapping[str, str], head: tuple[str, str] = ("what", "how much")) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return f"## {title}\n\n" + "\n".join(lines)


def _study(found: Mapping[str, Any]) -> str:
    small, large = found["store"]
    own = found["seconds of a cell's own work"]
    over, sent = large["write, work in s a cell"], found["sending, work in s a cell"]
    slow = max(value for value in sent.values() if value is not None)
    flush = small["write, clock in s a cell"]
    ms = _scaled(1e3, "ms")
    rows = {
        "a cell's own work (mean of K = 2, 4, 8, 16)": ms(own),
        f"what the parent works to publish a cell, of the first {PUBLISHED:,}": ms(over),
        "and what it takes by the clock, which waits for the disk to flush each": ms(flush),
        "and to send, receive and publish one that another process computed, by joblib and by Ray": ", ".join(
            "not installed" if value is None else ms(value) for value in sent.values()
        ),
        "to list a cell at the start, and, in a worker, to find it among 3,000 values of an axis": (
            f"{ms(found['listing']['list, work in s a cell'])}, {ms(found['listing']['find one, work in s'])}"
        ),
        "what it works to look at a finished one when a study is resumed, at 10⁴ and at 10⁵ cells": (
            f"{ms(small['survey, work in s a cell'])}, {ms(large['survey, work in s a cell'])}"
        ),
        "what it works to read one for the tables": ms(large["read, work in s a cell"]),
        "a cell's file, and what it takes of the disk": (
            f"{large['bytes a cell'] / 1e3:.1f} kB, {large['bytes on disk a cell'] / 1e3:.1f} kB"
        ),
        "a cell's rows in the parent's memory, once all are read": f"{found['bytes of memory a cell'] / 1e3:.1f} kB",
        "**10⁶ cells**: core hours of their own work": _hours(own * CELLS),
        "on 64 workers, if none waits": _hours(own * CELLS / WORKERS),
        "cells a second that 64 workers finish": f"{WORKERS / own:.0f}",
        "that one parent can serve by its own work, and by this disk's flushing": f"{1 / slow:.0f}, {1 / flush:.0f}",
        "workers that it keeps busy with such cells, by the one and the other": f"{own / slow:.0f}, {own / flush:.0f}",
        "10⁶ flushes, one after the other": _hours(flush * CELLS),
        "files, and disk": f"10⁶ in one folder, {large['bytes on disk a cell'] * CELLS / 1e9:.1f} GB",
        "looking at all of them when resumed": _hours(large["survey, work in s a cell"] * CELLS),
        "reading all of them for the tables": _hours(large["read, work in s a cell"] * CELLS),
        "memory of the parent at the end": f"{found['bytes of memory a cell'] * CELLS / 1e9:.1f} GB",
        "what the workers send to the parent": f"{large['bytes a cell'] * CELLS / 1e9:.1f} GB in all",
    }
    return _table("A study of a million cells", rows)


def _run(name: str, found: Mapping[str, Any], iterations: Mapping[str, Any]) -> str:
    steps, batch, epochs = SETTINGS[name]
    worker, rows = found["workers"][name], steps * 8
    claim = f"{name}: mixture of 4, conditional-IS, K = 8, from the prior"
    first = next(row for row in iterations["rows"] if row["claim"].startswith(name) and "comparison" in row["details"])
    seconds = first["details"]["comparison"]["seconds"][claim.removeprefix(f"{name}: ")]
    minibatches = epochs * -(-rows // batch)
    values = worker["parameters"] + 3
    one = found["all-reduce"][str(values)]["quickest in s"]
    least = found["all-reduce"]["1"]["quickest in s"]
    waits = minibatches * (least + one)  # of the advantages' statistics, and of the gradients
    alone, both = (worker[f"{number}, clock in s an iteration"] for number in (1, 2))
    ring = waits * (WORKERS - 1)  # a ring of W takes 2 (W - 1) steps, and one of two takes two
    traffic = 2 * (WORKERS - 1) / WORKERS * 4 * values * minibatches

    def quickly(waiting: float) -> str:
        return f"{WORKERS * rows / (seconds + waiting):,.0f}"

    def hours(waiting: float) -> str:
        return f"{1e8 / rows * (seconds + waiting) / 3600:,.0f}"

    told_rows = {
        f"a worker's iteration of {rows} steps, 8 environments": f"{seconds * 1e3:.0f} ms",
        "parameters of policy and critic": f"{worker['parameters']:,}",
        "minibatches of an iteration": f"{minibatches}",
        "an all-reduce of one number, and of the gradients, 2 processes": f"{least * 1e6:.0f} µs, {one * 1e6:.0f} µs",
        "of the gradients' the median, the mean, and what 95 % stay below": ", ".join(
            f"{found['all-reduce'][str(values)][which] * 1e6:,.0f} µs"
            for which in ("median in s", "mean in s", "95 % in s")
        ),
        "waiting in them an iteration: as between two, and if each of a ring's steps took as long at W = 64": (
            f"{waits * 1e3:.0f} ms, {ring * 1e3:.0f} ms"
        ),
        "an iteration by the clock, of one process and of two workers on the two cores, with as much to do each": (
            f"{alone * 1e3:.0f} ms, {both * 1e3:.0f} ms"
        ),
        "sent by each worker an iteration, W = 64": f"{traffic / 1e6:.1f} MB",
        "**64 workers**, each with as many environments and rows: steps a second, at best, if they lose as much as "
        "two on this machine, and with that ring": (f"{quickly(waits)}, {quickly(both - alone)}, {quickly(ring)}"),
        "core hours of 10⁸ steps, in the same three cases": f"{hours(waits)}, {hours(both - alone)}, {hours(ring)}",
        "memory of a worker, and of all": (
            f"{worker['bytes of memory'] / 1e6:.0f} MB, {WORKERS * worker['bytes of memory'] / 1e9:.0f} GB"
        ),
        "a checkpoint of one worker, and at most of 64": (
            f"{worker['bytes of a checkpoint'] / 1e3:.0f} kB, {WORKERS * worker['bytes of a checkpoint'] / 1e6:.1f} MB"
        ),
        "files of a run": "15 to 18, however many workers",
    }
    return _table(f"A run of 64 workers on {name}", told_rows)


def _where(found: Mapping[str, Any]) -> str:
    where = found["environment"]
    return (
        f"Measured on {where['cpu']}, {where['cores']} cores, load {where['load']:.1f} when it ended; Python "
        f"{where['python']}, torch {where['torch']}; commit {where['commit']}. Work is seconds of the processor; "
        "all-reduces are the quickest of 400. Numbers are in `benchmarks/results/scale.json`, and the iterations' in "
        "`benchmarks/results/training.json`."
    )


def _scaled(factor: float, unit: str) -> Callable[[float], str]:
    return lambda value: f"{value * factor:.2g} {unit}"


def _hours(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main() -> int:
    if sys.argv[1:] != ["page"]:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "scale.json").write_text(json.dumps(measured(), indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
