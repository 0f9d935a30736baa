"""Runs that differ in their seed alone, one after the other or in processes, and what they came to side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from latentpg.cloning.config import CloningConfig, resolve
from latentpg.cloning.folders import begin_run, check_same, has_finished
from latentpg.cloning.loop import Cloned, clone
from latentpg.cloning.preparing import prepared
from latentpg.numerics.devices import CPU
from latentpg.runs import write_csv
from latentpg.studies.workers import Backend
from latentpg.training.folders import seed_folder
from latentpg.training.progress import Show, progress, unseen
from latentpg.training.saving import CHECKPOINTS, load
from latentpg.training.signals import Stop, never
from latentpg.training.sweeps import Ended, run_sweep

SUMMARIZED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nats_a_dimension", ("likelihood", "a_dimension", "value")),
    ("nats_a_row", ("likelihood", "a_row", "value")),
    ("mean_return", ("rollouts", "mean_return", "value")),
    ("success", ("rollouts", "success", "value")),
    ("mode_entropy", ("rollouts", "mode_entropy", "value")),
    ("coverage", ("rollouts", "coverage")),
    ("smoothed_kl", ("rollouts", "smoothed_kl")),
)
"""What the table over seeds has of each run: a name, and where it stands in ``result.json``."""


def run_seed(
    config: CloningConfig,
    folder: Path,
    *,
    device: torch.device = CPU,
    console: Console | None,
    say: Callable[[str], None],
    stop: Stop = never,
) -> Cloned:
    """Begin a run of one seed in a folder, or go on with what is there; no ``console`` shows no progress."""
    with prepared(config, device=device) as built:
        saved = None
        if (folder / CHECKPOINTS).is_dir():
            saved = load(folder, "last", say=say)
            check_same(built.config, saved)
        elif not (folder / "config.toml").is_file():
            begin_run(config, out=folder, built=built)
        total, done = built.config.fit.num_epochs * built.rows.size, 0 if saved is None else saved.step
        shown: AbstractContextManager[Show] = nullcontext(unseen)
        if console is not None:
            shown = progress(total, console=console, done=done * built.rows.size, unit="rows")
        with shown as show:
            return clone(built, folder, saved=saved, show=show, stop=stop)


def run_seeds(
    config: CloningConfig,
    seeds: Sequence[int],
    folder: Path,
    *,
    num_workers: int = 1,
    backend: Backend = "process",
    device: torch.device = CPU,
    console: Console,
    say: Callable[[str], None],
) -> int | None:
    """Run every seed that has not finished; return the signal that stopped them, or None.

    A run that fails leaves the others alone; that it did is a :class:`~latentpg.errors.StudyError` at the end.
    """
    missing = [seed for seed in seeds if not has_finished(seed_folder(folder, seed))]
    return run_sweep(
        _SeedRun(config.known(), folder.absolute(), device),
        missing,
        folder,
        where="latentpg imitate",
        num_workers=num_workers,
        backend=backend,
        console=console,
        say=say,
    )


@dataclass(frozen=True)
class _SeedRun:
    """Clones by one seed in a folder of its own, and tells its best measurement."""

    values: Mapping[str, Any]
    folder: Path
    device: torch.device

    def __call__(self, seed: int, *, console: Console | None, say: Callable[[str], None], stop: Stop) -> Ended:
        config, place = resolve({**self.values, "seed": seed}), seed_folder(self.folder, seed)
        outcome = run_seed(config, place, device=self.device, console=console, say=say, stop=stop)
        return Ended(f"{outcome.best:.3f} nats a row at best on the validation part", outcome.signal)


def summarize(seeds: Sequence[int], folder: Path) -> list[str]:
    """Write ``seeds.csv`` with a row a seed, and return the mean and standard deviation of each number as lines."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        told = json.loads((seed_folder(folder, seed) / "result.json").read_text(encoding="utf-8"))
        rows.append({"seed": seed, **{name: _at(told, path) for name, path in SUMMARIZED}})
    write_csv(folder / "seeds.csv", rows)
    lines = []
    for name, _ in SUMMARIZED:
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            mean = math.fsum(values) / len(values)
            spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))
            each = ", ".join(f"{value:.3f}" for value in values)
            lines.append(f"{name.replace('_', ' ')}: {mean:.3f}, standard deviation {spread:.3f} over seeds ({each})")
    return [*lines, f"table   {folder / 'seeds.csv'}"]


def _at(told: Any, path: Sequence[str]) -> float | None:  # noqa: ANN401 (what JSON holds)
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    return float(told) if isinstance(told, int | float) else None
