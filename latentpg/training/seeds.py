"""Runs that differ in their seed alone, one after the other or in processes, and the learning curve over them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from latentpg.errors import LatentPGError, StudyError
from latentpg.numerics.devices import checked_device
from latentpg.runs import Checkpoint
from latentpg.studies.workers import Backend, prepare_worker, workers
from latentpg.training.config import TrainingConfig, known_values, resolve
from latentpg.training.curves import draw_curve, learning_curve
from latentpg.training.folders import begin_run, check_same, has_finished, seed_folder
from latentpg.training.log import read_metrics, series
from latentpg.training.loop import Outcome, train
from latentpg.training.place import HERE, Place
from latentpg.training.preparing import prepared
from latentpg.training.progress import Show, progress, unseen
from latentpg.training.saving import CHECKPOINTS, load
from latentpg.training.signals import Stop, never, stopping

STOP_FILE = ".stop"
"""A file in the folder of several runs whose presence asks those in other processes to stop."""


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
    (folder / STOP_FILE).unlink(missing_ok=True)
    if num_workers > 1 and len(missing) > 1 and backend != "serial":
        task = _SeedTask(known_values(config), folder.absolute(), os.getpid(), device)
        stopped, failed = _in_processes(task, missing, backend, min(num_workers, len(missing)), say)
    else:
        place = Place(device=checked_device(device))
        stopped, failed = _one_by_one(config, missing, folder, console, say, place)
    if failed:
        named = ", ".join(map(str, failed))
        raise StudyError(
            "latentpg train",
            f"the run of seed {named} failed" if len(failed) == 1 else f"the runs of seeds {named} failed",
            got="\n".join(failed.values()),
            fix=f"fault.json in the run's folder says how things stood; then latentpg resume {folder}",
        )
    return stopped


def draw_seeds(config: TrainingConfig, seeds: Sequence[int], folder: Path) -> list[Path]:
    """Draw the learning curve of all the runs in a folder, by their evaluations."""
    runs = {}
    for seed in seeds:
        rows = read_metrics(seed_folder(folder, seed))
        runs[f"seed-{seed}"] = series(rows, "eval/mean_reward")
    selection = config.selection
    title = f"{selection.env}, {selection.algo}, {selection.policy}, {selection.estimator}"
    return draw_curve(learning_curve(runs), folder / "figures", title=title)


def _one_by_one(
    config: TrainingConfig,
    seeds: Sequence[int],
    folder: Path,
    console: Console,
    say: Callable[[str], None],
    place: Place,
) -> tuple[int | None, dict[int, str]]:
    failed: dict[int, str] = {}
    with stopping(say=say) as stop:
        for seed in seeds:
            say(f"seed {seed}")
            with progress(config.run.total_timesteps, console=console) as show:
                try:
                    mine = config.with_seed(seed)
                    outcome = run_seed(mine, seed_folder(folder, seed), show=show, stop=stop, say=say, place=place)
                except LatentPGError as error:
                    failed[seed] = str(error)
                    continue
            if outcome.signal is not None:
                return outcome.signal, failed
    return None, failed


@dataclass(frozen=True)
class _SeedTask:
    """Runs one seed in a worker process, and returns its number, its last evaluation, what stopped it, or its error."""

    values: Mapping[str, Any]
    folder: Path
    parent: int
    device: str = "cpu"

    def __call__(self, key: str) -> tuple[int, float, bool, str]:
        prepare_worker(self.parent)
        seed = int(key)
        flag = self.folder / STOP_FILE
        try:
            outcome = run_seed(
                resolve({**self.values, "seed": seed}),
                seed_folder(self.folder, seed),
                stop=lambda: signal.SIGTERM if flag.exists() else None,
                say=lambda text: None,
                place=Place(device=checked_device(self.device)),
            )
        except LatentPGError as error:
            return seed, float("nan"), False, str(error)
        return seed, float(outcome.evaluation["eval/mean_reward"]), outcome.signal is not None, ""


def _in_processes(
    task: _SeedTask, seeds: Sequence[int], backend: Backend, num_workers: int, say: Callable[[str], None]
) -> tuple[int | None, dict[int, str]]:
    failed: dict[int, str] = {}
    flag = task.folder / STOP_FILE
    try:
        with stopping(say=say, on_stop=flag.touch) as stop, workers(backend, num_workers) as start:
            with closing(start(task, [str(seed) for seed in seeds])) as results:
                for seed, mean, stopped, error in results:
                    if error:
                        failed[seed] = error
                    say(f"seed {seed}: {'failed' if error else f'{mean:.1f}' + (', stopped' if stopped else '')}")
            return stop(), failed
    finally:
        flag.unlink(missing_ok=True)
