"""The run: an epoch at a time, with checkpoints, until the end; then what came of it is measured, drawn and written.

A checkpoint holds all that the next epoch hangs on: going on from one gives the same numbers as never having stopped.
The measures at the end draw from streams of the seed alone, so that they come out the same too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentpg.cloning.drawing import draw_figures
from latentpg.cloning.measures import Measured, measure
from latentpg.cloning.preparing import Prepared
from latentpg.cloning.report import write_report
from latentpg.cloning.telling import result_of
from latentpg.errors import LatentPGError, OptionError
from latentpg.runs import Checkpoint, at_work_in, write_json
from latentpg.training.facts import check_facts, held_to_its_learner, is_seconds
from latentpg.training.log import STEPS, MetricsLog
from latentpg.training.place import exactness, moved_between
from latentpg.training.progress import Show, unseen
from latentpg.training.saving import save, save_fault, unwritten
from latentpg.training.signals import Stop, never


@dataclass(frozen=True)
class Cloned:
    """How a run ended: epochs, seconds, the best measurement, what was measured (None if stopped), and files.

    ``inexact`` says why a run that went on is not the same as one that never stopped; it is empty where it is.
    """

    epochs: int
    seconds: float
    best: float
    best_epoch: int
    finished: bool
    signal: int | None
    measured: Measured | None
    files: tuple[Path, ...]
    inexact: str = ""


class _StoppedMeasuring(Exception):
    """The run was asked to stop while it was measured."""


def clone(
    built: Prepared, folder: Path, *, saved: Checkpoint | None = None, show: Show = unseen, stop: Stop = never
) -> Cloned:
    """Fit until all epochs are over or ``stop`` says so, and write everything into the run's folder.

    With ``saved`` the run goes on from there. A loss or gradient that is not finite ends the run with that error:
    parameters are then as they were before the step that failed, and ``fault.json`` and ``fault/`` say how things
    stood. A folder in which another process is at work is refused.
    """
    run = _Run(built, folder, show)
    try:
        with at_work_in(folder):
            run.begin(saved)
            return run.go_on(stop)
    except OSError as error:
        raise unwritten(folder, error) from error


@dataclass
class _Run:
    """A run as it goes on."""

    built: Prepared
    folder: Path
    show: Show
    seconds: float = 0.0
    saved_at: int = -1
    inexact: str = ""
    log: MetricsLog = field(init=False)

    @property
    def epoch(self) -> int:
        return self.built.cloner.num_updates

    def begin(self, saved: Checkpoint | None) -> None:
        """Start the log, or go on."""
        if saved is None:
            self.log = MetricsLog(self.folder)
            return
        if saved.facts.get("data") != self.built.digest:
            raise OptionError(
                "latentpg resume",
                "the demonstrations are not those that the run began with",
                expected=f"the same content in {self.built.config.selection.data}",
                got="another",
                fix="put the old file back, or begin a new run",
            )
        check_facts(saved.facts, {"seconds": is_seconds})
        with held_to_its_learner():
            self.built.cloner.restore(saved.state)
        self.seconds, self.saved_at = float(saved.facts["seconds"]), self.epoch
        self.inexact = saved.facts.get("inexact", "")
        reason = moved_between(saved.facts.get("device", "cpu"), self.built.device.type)
        self.inexact += f"at epoch {self.epoch}: {reason}\n" if reason else ""
        self.log = MetricsLog(self.folder, steps=self.built.cloner.num_timesteps)

    def go_on(self, stop: Stop) -> Cloned:
        """Fit until the end, and leave what is needed to look into a fault."""
        try:
            while not self.built.cloner.finished and stop() is None:
                self.update()
        except LatentPGError as fault:
            with suppress(OSError):  # that it cannot be written must not hide the fault
                self.note(fault)
            raise
        return self.end(stop)

    def update(self) -> None:
        """Fit for an epoch, and write and save what is due."""
        run, cloner = self.built.config.run, self.built.cloner
        start = time.perf_counter()
        metrics = cloner.update()
        self.seconds += time.perf_counter() - start
        if cloner.finished or self.epoch % run.log_every == 0 or "valid/log_prob" in metrics:
            row = {STEPS: cloner.num_timesteps, **metrics, "time/seconds": self.seconds}
            self.log.add(row)
            self.show({name: value for name, value in row.items() if name != "train/ess"})  # not a share of K here
        if cloner.finished or self.epoch % run.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        save(self.folder, self.built.cloner.state(), self.facts(), steps=self.epoch, is_best=False)
        self.saved_at = self.epoch

    def end(self, stop: Stop) -> Cloned:
        """Save; where the fit is over, measure, draw and report what it came to."""
        cloner, measured = self.built.cloner, None
        if self.saved_at != self.epoch:
            self.save()
        self.log.close()
        files: tuple[Path, ...] = (self.folder / "metrics.csv",)
        if cloner.finished and stop() is None:
            with suppress(_StoppedMeasuring):
                measured = self.measure(stop)
        told = {**self.how_it_went(), "finished": measured is not None}
        if measured is not None:
            drawn = draw_figures(self.built, measured, self.log.rows, self.folder / "figures")
            told |= result_of(self.built, measured)
            write_json(self.folder / "result.json", told)
            report = write_report(self.built, measured, self.folder, drawn, told)
            files = (*files, *(each.png for each in drawn), report)
        else:
            write_json(self.folder / "result.json", told)
        return Cloned(
            self.epoch,
            self.seconds,
            cloner.best,
            cloner.best_epoch,
            measured is not None,
            stop(),
            measured,
            files,
            self.inexact.strip(),
        )

    def measure(self, stop: Stop) -> Measured:
        """Measure the parameters that are handed on."""

        def check() -> None:
            if stop() is not None:
                raise _StoppedMeasuring

        if self.built.config.run.keep == "best":
            self.built.cloner.load_best()
        return measure(self.built, seed=self.built.config.run.seed, check=check)

    def facts(self) -> dict[str, Any]:
        """Return what is kept beside the tensors."""
        known = self.built.config.known()
        return {
            "config": known,
            "data": self.built.digest,
            "seconds": self.seconds,
            "epochs": self.epoch,
            "inexact": self.inexact,
            **self.whereabouts(),
        }

    def whereabouts(self) -> Mapping[str, Any]:
        """Say on which device the run is, if it is not the processor."""
        device = self.built.device.type
        return {} if device == "cpu" else {"device": device}

    def how_it_went(self) -> Mapping[str, Any]:
        """Return the numbers of the fit itself."""
        cloner = self.built.cloner
        return {
            "epochs": self.epoch,
            "seconds": self.seconds,
            "stopped_early": cloner.stopped_early,
            "best": {"valid/log_prob": cloner.best, "epoch": cloner.best_epoch},
            "kept": self.built.config.run.keep,
            **self.whereabouts(),
            **exactness(self.inexact),
        }

    def note(self, fault: LatentPGError) -> None:
        """Write how things stood at a fault."""
        self.log.close()
        what = {
            "error": str(fault),
            "epochs": self.epoch,
            "seed": self.built.config.run.seed,
            "last_metrics": dict(self.log.rows[-1]) if self.log.rows else {},
        }
        write_json(self.folder / "fault.json", what)
        save_fault(self.folder, self.built.cloner.state(), self.facts(), steps=self.epoch)
