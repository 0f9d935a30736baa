"""Runs that differ in their seed alone, one after the other, and what they came to side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from latentpg.cloning.config import CloningConfig
from latentpg.cloning.folders import begin_run, check_same, has_finished
from latentpg.cloning.loop import Cloned, clone
from latentpg.cloning.preparing import prepared
from latentpg.errors import LatentPGError, StudyError
from latentpg.runs import write_csv
from latentpg.training.folders import seed_folder
from latentpg.training.progress import progress
from latentpg.training.saving import CHECKPOINTS, load
from latentpg.training.signals import Stop, never, stopping

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
    config: CloningConfig, folder: Path, *, console: Console, say: Callable[[str], None], stop: Stop = never
) -> Cloned:
    """Begin a run of one seed in a folder, or go on with what is there."""
    with prepared(config) as built:
        saved = None
        if (folder / CHECKPOINTS).is_dir():
            saved = load(folder, "last", say=say)
            check_same(built.config, saved)
        elif not (folder / "config.toml").is_file():
            begin_run(config, out=folder, built=built)
        total, done = built.config.fit.num_epochs * built.rows.size, 0 if saved is None else saved.step
        with progress(total, console=console, done=done * built.rows.size, unit="rows") as show:
            return clone(built, folder, saved=saved, show=show, stop=stop)


def run_seeds(
    config: CloningConfig, seeds: Sequence[int], folder: Path, *, console: Console, say: Callable[[str], None]
) -> int | None:
    """Run every seed that has not finished; return the signal that stopped them, or None.

    A run that fails leaves the others alone; that it did is a :class:`~latentpg.errors.StudyError` at the end.
    """
    failed: dict[int, str] = {}
    with stopping(say=say) as stop:
        for seed in seeds:
            place = seed_folder(folder, seed)
            if has_finished(place):
                continue
            say(f"seed {seed}")
            try:
                outcome = run_seed(config.but(seed=seed), place, console=console, say=say, stop=stop)
            except LatentPGError as error:
                failed[seed] = str(error)
                continue
            if outcome.signal is not None:
                return outcome.signal
    if failed:
        named = ", ".join(map(str, failed))
        raise StudyError(
            "latentpg imitate",
            f"the run of seed {named} failed" if len(failed) == 1 else f"the runs of seeds {named} failed",
            got="\n".join(failed.values()),
            fix=f"latentpg resume {folder}",
        )
    return None


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
