"""Runs that differ in their seed alone, of whichever command: one after the other, or in processes.

Those that have finished are left alone by whoever calls, so that a sweep which was stopped goes on where it was. One
that fails leaves the others alone. A stop reaches runs in other processes, which may be on other machines, by a file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rich.console import Console

from latentpg.errors import LatentPGError, StudyError
from latentpg.runs import at_work_in
from latentpg.studies.workers import Backend, prepare_worker, workers
from latentpg.training.signals import Stop, stopping

STOP_FILE = ".stop"
"""A file in the folder of several runs whose presence asks those in other processes to stop."""


@dataclass(frozen=True)
class Ended:
    """How the run of a seed ended: what is said of it if it was in another process, and the signal that stopped it."""

    told: str
    signal: int | None


@runtime_checkable
class SeedRun(Protocol):
    """Begins the run of one seed, or goes on with it. It is pickled for other processes, where ``console`` is None."""

    def __call__(self, seed: int, *, console: Console | None, say: Callable[[str], None], stop: Stop) -> Ended:
        """Run it until it is over or ``stop`` says so; what goes wrong with it is an error of ours."""
        ...


def run_sweep(
    run: SeedRun,
    seeds: Sequence[int],
    folder: Path,
    *,
    where: str,
    num_workers: int,
    backend: Backend,
    console: Console,
    say: Callable[[str], None],
) -> int | None:
    """Run every seed; return the signal that stopped them, or None.

    That some failed is a :class:`~latentpg.errors.StudyError` at the end, with ``where`` as its place.
    """
    with at_work_in(folder):
        (folder / STOP_FILE).unlink(missing_ok=True)
        if num_workers > 1 and len(seeds) > 1 and backend != "serial":
            task = _SeedTask(run, folder.absolute(), os.getpid())
            stopped, failed = _in_processes(task, seeds, backend, min(num_workers, len(seeds)), say)
        else:
            stopped, failed = _one_by_one(run, seeds, console, say)
    if failed:
        named = ", ".join(map(str, failed))
        raise StudyError(
            where,
            f"the run of seed {named} failed" if len(failed) == 1 else f"the runs of seeds {named} failed",
            got="\n".join(failed.values()),
            fix=f"fault.json in the run's folder says how things stood; then latentpg resume {folder}",
        )
    return stopped


def _one_by_one(
    run: SeedRun, seeds: Sequence[int], console: Console, say: Callable[[str], None]
) -> tuple[int | None, dict[int, str]]:
    failed: dict[int, str] = {}
    with stopping(say=say) as stop:
        for seed in seeds:
            say(f"seed {seed}")
            try:
                ended = run(seed, console=console, say=say, stop=stop)
            except LatentPGError as error:
                failed[seed] = str(error)
                continue
            if ended.signal is not None:
                return ended.signal, failed
    return None, failed


@dataclass(frozen=True)
class _SeedTask:
    """Runs one seed in a worker process, and returns its number and how it ended, or its error."""

    run: SeedRun
    folder: Path
    parent: int

    def __call__(self, key: str) -> tuple[int, Ended, str]:
        prepare_worker(self.parent)
        flag = self.folder / STOP_FILE

        def stop() -> int | None:
            return signal.SIGTERM if flag.exists() else None

        try:
            return int(key), self.run(int(key), console=None, say=_unsaid, stop=stop), ""
        except LatentPGError as error:
            return int(key), Ended("failed", None), str(error)


def _in_processes(
    task: _SeedTask, seeds: Sequence[int], backend: Backend, num_workers: int, say: Callable[[str], None]
) -> tuple[int | None, dict[int, str]]:
    failed: dict[int, str] = {}
    flag = task.folder / STOP_FILE
    try:
        with stopping(say=say, on_stop=flag.touch) as stop, workers(backend, num_workers) as start:
            with closing(start(task, [str(seed) for seed in seeds])) as results:
                for seed, ended, error in results:
                    if error:
                        failed[seed] = error
                    say(f"seed {seed}: {ended.told}" + (", stopped" if ended.signal is not None else ""))
            return stop(), failed
    finally:
        flag.unlink(missing_ok=True)


def _unsaid(text: str) -> None:
    """Say nothing: the process that runs the sweep says how each ended."""
