"""Where results lie, and what stands in each beside its numbers."""

from __future__ import annotations

import importlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from benchmarks.measure import RESULTS, commit
from latentpg.runs import write_json

FOLDER = RESULTS / "learning"
PAGES: Mapping[str, tuple[str, ...]] = {
    "learning.md": ("returns", "modes", "mixing", "exploration", "ratios"),
    "cloning.md": ("avoiding", "lasa", "fine_tuning"),
}
"""The studies of each page of the docs, in its order."""

STUDIES = tuple(name for names in PAGES.values() for name in names)
"""Every study."""

TOLD = ("torch", "pyro-ppl", "gymnasium", "numpy", "stable-baselines3", "mujoco", "box2d")
"""Packages whose versions a result names, where they are installed."""

Results = Mapping[str, Mapping[int, dict[str, Any]]]
"""Cell name to seed to what the run returned."""


class Cell(NamedTuple):
    """One process: a study's cell at one seed."""

    study: str
    name: str
    seed: int

    @property
    def path(self) -> Path:
        return FOLDER / self.study / f"{self.name}-{self.seed}.json"


def study(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.learning.{name}")


def cells(names: tuple[str, ...] = STUDIES) -> Iterator[Cell]:
    """Go through all cells, every cell's first seed before any second one."""
    for name in names:
        module = study(name)
        every: Mapping[str, Callable[..., Any]] = module.CELLS
        seeds = {cell: tuple(getattr(module, "SEEDS_OF", {}).get(cell, module.SEEDS)) for cell in every}
        for place in range(max(map(len, seeds.values()))):
            yield from (Cell(name, cell, seeds[cell][place]) for cell in every if place < len(seeds[cell]))


def run(cell: Cell) -> None:
    """Run one cell in this process, on one thread, and write its file once it is whole."""
    torch.set_num_threads(1)
    began, wall, cpu = commit(), time.perf_counter(), time.process_time()
    found = study(cell.study).CELLS[cell.name](cell.seed)
    content = {
        "study": cell.study,
        "cell": cell.name,
        "seed": cell.seed,
        "commit": began,
        "versions": {name: told for name in TOLD if (told := _version(name))},
        "python": platform.python_version(),
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **found,
    }
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    write_json(cell.path, content)


def results(name: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Read what there is of a study; cells without any result are left out."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells((name,)):
        if cell.path.is_file():
            found.setdefault(cell.name, {})[cell.seed] = json.loads(cell.path.read_text(encoding="utf-8"))
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
