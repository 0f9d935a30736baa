"""Runs that differ in their seed alone, one after the other or in processes, and the learning curve over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from latentpg.numerics.devices import checked_device
from latentpg.runs import Checkpoint
from latentpg.studies.workers import Backend
from latentpg.training.config import TrainingConfig, known_values, resolve
from latentpg.training.curves import draw_curve, learning_curve
from latentpg.training.folders import begin_run, check_same, has_finished, seed_folder
from latentpg.training.log import read_metrics, series
from latentpg.training.loop import Outcome, train
from latentpg.training.place import HERE, Place
from latentpg.training.preparing import prepared
from latentpg.training.progress import Show, progress, unseen
from latentpg.training.saving import CHECKPOINTS, load
from latentpg.training.signals import Stop, never
from latentpg.training.sweeps import Ended, run_sweep


def go_on(
    config: TrainingConfig,
    folder: Path,
    saved: Checkpoint,
    *,
    show: Show = unseen,
    stop: Stop = never,
    place: Place = HERE,
) -> Outcome:
    """Go on with the run in a folder from a checkpoint of it; one of other options is refused."""
    check_same(config, saved)
    with prepared(config, place=place) as built:
        return train(config, built, folder, saved=saved, show=show, stop=stop)


def run_seed(
    config: TrainingConfig,
    folder: Path,
    *,
    show: Show = unseen,
    stop: Stop = never,
    say: Callable[[str], None] = print,
    place: Place = HERE,
) -> Outcome:
    """Begin a run of one seed in a folder, or go on with what is there."""
    if (folder / CHECKPOINTS).is_dir():
        return go_on(config, folder, load(folder, "last", say=say), show=show, stop=stop, place=place)
    with prepared(config, begins=True, place=place) as built:
        if not (folder / "config.toml").is_file():
            begin_run(config, out=folder)
        return train(config, built, folder, show=show, stop=stop)


def run_seeds(
    config: TrainingConfig,
    seeds: Sequence[int],
    folder: Path,
    *,
    num_workers: int,
    backend: Backend = "process",
    device: str = "cpu",
    console: Console,
    say: Callable[[str], None],
) -> int | None:
    """Run every seed that has not finished; return the signal that stopped them, or None.

    A run that fails leaves the others alone; that it did is a :class:`~latentpg.errors.StudyError` at the end.
    """
    missing = [seed for seed in seeds if not has_finished(seed_folder(folder, seed))]
    return run_sweep(
        _SeedRun(known_values(config), folder.absolute(), device),
        missing,
        folder,
        where="latentpg train",
        num_workers=num_workers,
        backend=backend,
        console=console,
        say=say,
    )


@dataclass(frozen=True)
class _SeedRun:
    """Trains by one seed in a folder of its own, and tells its last evaluation."""

    values: Mapping[str, Any]
    folder: Path
    device: str

    def __call__(self, seed: int, *, console: Console | None, say: Callable[[str], None], stop: Stop) -> Ended:
        config, place = resolve({**self.values, "seed": seed}), Place(device=checked_device(self.device))
        total = config.run.total_timesteps
        with nullcontext(unseen) if console is None else progress(total, console=console) as show:
            outcome = run_seed(config, seed_folder(self.folder, seed), show=show, stop=stop, say=say, place=place)
        return Ended(f"{outcome.evaluation['eval/mean_reward']:.1f}", outcome.signal)


def draw_seeds(config: TrainingConfig, seeds: Sequence[int], folder: Path) -> list[Path]:
    """Draw the learning curve of all the runs in a folder, by their evaluations."""
    runs = {}
    for seed in seeds:
        rows = read_metrics(seed_folder(folder, seed))
        runs[f"seed-{seed}"] = series(rows, "eval/mean_reward")
    selection = config.selection
    title = f"{selection.env}, {selection.algo}, {selection.policy}, {selection.estimator}"
    return draw_curve(learning_curve(runs), folder / "figures", title=title)
