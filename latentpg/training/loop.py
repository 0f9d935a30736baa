"""The run: update, log, evaluate, keep the best and the last, and stop where it can go on from.

Evaluations happen whenever another ``eval_every`` steps have been taken, with seeds of their own that hang on the step
alone, so that a run that was interrupted has the same ones. A checkpoint holds all that the next update hangs on: going
on from one gives the same numbers as never having stopped, or says why it does not
(:mod:`latentpg.training.resuming`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from latentpg.envs.known_modes import KNOWN_MODES
from latentpg.errors import LatentPGError
from latentpg.learners.batches import Means
from latentpg.learners.parallel import texts_over
from latentpg.learners.workers import check_alike
from latentpg.numerics.rng import stream_seed
from latentpg.runs import Checkpoint, at_work_in, write_json
from latentpg.runs.tensors import encode_tensors
from latentpg.training.build import Built
from latentpg.training.config import TrainingConfig, known_values
from latentpg.training.curves import draw_curve, evaluation_curve
from latentpg.training.evaluate import evaluate
from latentpg.training.facts import check_facts
from latentpg.training.log import STEPS, MetricsLog, Row
from latentpg.training.place import (
    agreed_signal,
    exactness,
    gathered_state,
    moved_between,
    state_of_worker,
    told_by_first,
)
from latentpg.training.preparing import execute_of, latent_of
from latentpg.training.progress import Show, unseen
from latentpg.training.resuming import restore
from latentpg.training.saving import clear_leftovers, save, save_fault, unwritten
from latentpg.training.signals import Stop, never
from latentpg.training.video import film_episodes

MODES: Mapping[str, str] = {"success": "success", "mode_entropy": "mode entropy, share of log M"}
"""What is drawn beside the return where an environment's modes are known, and what it is called."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: environment steps and updates taken, the latest and the best evaluation, and what stopped it.

    ``signal`` is None for a run that took all its steps. ``inexact`` says why a run that went on is not the same as
    one that never stopped; it is empty where it is.
    """

    steps: int
    updates: int
    seconds: float
    evaluation: Mapping[str, float | int]
    best: float
    best_steps: int
    signal: int | None
    files: tuple[Path, ...]
    inexact: str = ""


def train(
    config: TrainingConfig,
    built: Built,
    folder: Path,
    *,
    saved: Checkpoint | None = None,
    show: Show = unseen,
    stop: Stop = never,
) -> Outcome:
    """Train until all steps are taken or ``stop`` says so, and write everything into the run's folder.

    With ``saved`` the run goes on from there. What goes wrong in an update ends the run with that error: parameters are
    then as they were before the step that failed, and ``fault.json`` and ``fault/`` say how things stood. Of several
    workers the first evaluates and writes. A folder in which another process is at work is refused.
    """
    run = _Run(config, built, folder, show)
    try:
        with at_work_in(folder) if built.place.writes else nullcontext():
            run.begin(saved)
            return run.go_on(stop)
    except OSError as error:
        raise unwritten(folder, error) from error


@dataclass
class _Run:
    """A run as it goes on."""

    config: TrainingConfig
    built: Built
    folder: Path
    show: Show
    seconds: float = 0.0
    best: float = -math.inf
    best_steps: int = 0
    saved_at: int = -1
    inexact: str = ""
    evaluation: dict[str, float | int] = field(default_factory=dict)
    means: Means = field(default_factory=Means)
    log: MetricsLog | None = None

    @property
    def steps(self) -> int:
        return self.built.learner.num_timesteps

    def begin(self, saved: Checkpoint | None) -> None:
        """Evaluate what nothing has been learnt of yet, or go on."""
        place = self.built.place
        if saved is None:
            policy = self.built.policy
            assert isinstance(policy, nn.Module)
            if place.group.size > 1:
                check_alike(place.group, encode_tensors(policy.state_dict()), what="their first parameters")
            self.log = MetricsLog(self.folder) if place.writes else None
            row = self._evaluate()
            self._save(is_best=True)
            self._write(row)
            return
        if place.writes:
            clear_leftovers(self.folder)
        facts = saved.facts
        check_facts(facts)
        check_alike(place.group, f"{saved.step}".encode(), what="the checkpoint that they go on from")
        why = restore(self.built.learner, state_of_worker(place, saved.state, facts))
        self.inexact = facts.get("inexact", "")
        for reason in dict.fromkeys((*texts_over(place.group, why or ""), self._moved(facts.get("device", "cpu")))):
            self.inexact += f"at {self.steps} steps: {reason}\n" if reason else ""
        self.seconds, self.evaluation = facts["seconds"], dict(facts["evaluation"])
        self.best, self.best_steps = facts["best"], facts["best_steps"]
        self.saved_at = self.steps
        self.log = MetricsLog(self.folder, steps=self.steps) if place.writes else None

    def go_on(self, stop: Stop) -> Outcome:
        """Update until the end, and leave what is needed to look into a fault."""
        place = self.built.place
        try:
            while self.steps < self.config.run.total_timesteps and agreed_signal(place, stop()) is None:
                self.update()
            return self.end(agreed_signal(place, stop()))
        except LatentPGError as fault:
            with suppress(OSError):  # that it cannot be written must not hide the fault
                self.note(fault)
            raise

    def update(self) -> None:
        """Update once, and evaluate, save and write what is due."""
        run, learner, before = self.config.run, self.built.learner, self.steps
        start = time.perf_counter()
        self.means.add(learner.update(before / run.total_timesteps))
        self.seconds += (took := time.perf_counter() - start)
        finished = self.steps >= run.total_timesteps
        due = finished or self._crossed(before, run.checkpoint_every)
        row: dict[str, float | int] = {}
        if due or learner.num_updates % run.log_every == 0:  # a checkpoint holds no half of a mean
            row |= self._told(took, self.steps - before)
        is_best = False
        if finished or self._crossed(before, run.eval_every):
            row |= self._evaluate()
            is_best = self.best_steps == self.steps
        filmed = run.video_every is not None and (finished or self._crossed(before, run.video_every))
        if filmed and self.built.place.writes:
            self._film()
        if row:
            self._write(row)
        if due or is_best:
            self._save(is_best=is_best)

    def end(self, signal: int | None) -> Outcome:
        """Save, write tables and figures, and say how it went."""
        if self.saved_at != self.steps:
            self._save(is_best=False)
        files: tuple[Path, ...] = ()
        if self.log is not None:
            self.log.close()
            files = (self.folder / "metrics.csv", *self._draw(self.log.rows))
            result = {
                "timesteps": self.steps,
                "updates": self.built.learner.num_updates,
                "seconds": self.seconds,
                "finished": self.steps >= self.config.run.total_timesteps,
                **self._whereabouts(),
                **exactness(self.inexact),
                "evaluation": self.evaluation,
                "best": {"mean_reward": self.best, "timesteps": self.best_steps},
            }
            write_json(self.folder / "result.json", result)
        return Outcome(
            self.steps,
            self.built.learner.num_updates,
            self.seconds,
            self.evaluation,
            self.best,
            self.best_steps,
            signal,
            files,
            self.inexact.strip(),
        )

    def _crossed(self, before: int, every: int) -> bool:
        return self.steps // every > before // every

    def _told(self, seconds: float, steps: int) -> dict[str, float | int]:
        told = self.means.values()
        self.means = Means()
        return {
            **told,
            "time/fps": steps / seconds,
            "time/seconds": self.seconds,
            "time/updates": self.built.learner.num_updates,
        }

    def _evaluate(self) -> dict[str, float]:
        """Evaluate, which the first worker does for all, and keep what is best."""
        metrics = self._play() if self.built.place.writes else {}
        mean = told_by_first(self.built.place, metrics.get("eval/mean_reward", 0.0))
        self.evaluation = {STEPS: self.steps, **metrics}
        if mean >= self.best:  # of equals the later one, which has been trained longer
            self.best, self.best_steps = mean, self.steps
        return metrics

    def _play(self) -> dict[str, float]:
        run = self.config.run
        found = evaluate(
            self.built.evaluation_envs,
            self.built.policy,
            num_episodes=run.eval_episodes,
            seed=stream_seed(run.seed, f"evaluation at {self.steps}"),
            acting=run.eval_acting,
            latent=latent_of(self.config),
            execute=execute_of(self.config),
            modes=KNOWN_MODES.get(self.config.selection.env),
        )
        return found.metrics()

    def _film(self) -> None:
        """Film an episode as evaluations play theirs."""
        run = self.config.run
        film_episodes(
            self.config.selection.env,
            self.built.policy,
            lambda episode: self.folder / "videos" / f"step-{self.steps}.gif",
            num_episodes=1,
            seed=stream_seed(run.seed, f"film at {self.steps}"),
            acting=run.eval_acting,
            latent=latent_of(self.config),
            execute=execute_of(self.config),
        )

    def _write(self, row: Row) -> None:
        if self.log is None:
            return
        whole = {STEPS: self.steps, **row}
        self.log.add(whole)
        self.show(whole)

    def _save(self, *, is_best: bool) -> None:
        state = gathered_state(self.built.place, self.built.learner.state())
        if self.built.place.writes:
            save(self.folder, state, self._facts(), steps=self.steps, is_best=is_best)
        self.saved_at = self.steps

    def _facts(self) -> dict[str, Any]:
        return {
            "config": known_values(self.config),
            "updates": self.built.learner.num_updates,
            "seconds": self.seconds,
            "evaluation": self.evaluation,
            "best": self.best,
            "best_steps": self.best_steps,
            "inexact": self.inexact,
            **self._whereabouts(),
        }

    def _whereabouts(self) -> dict[str, Any]:
        """Say how many workers there are, and on which device, if it is not one process on the processor."""
        place = self.built.place
        workers = {"workers": place.group.size} if place.group.size > 1 else {}
        return {**workers, "device": place.device.type} if place.device.type != "cpu" else workers

    def _moved(self, before: str) -> str:
        return moved_between(before, self.built.place.device.type)

    def _draw(self, rows: Sequence[Row]) -> list[Path]:
        selection = self.config.selection
        curve = evaluation_curve(rows)
        title = f"{selection.env}, {selection.algo}, {selection.policy}, {selection.estimator}"
        paths = draw_curve(curve, self.folder / "figures", title=title)
        for name, label in MODES.items():
            if any(f"eval/{name}" in row for row in rows):
                found = evaluation_curve(rows, f"eval/{name}")
                paths += draw_curve(found, self.folder / "figures", title=title, label=label, stem=name)
        return paths

    def note(self, fault: LatentPGError) -> None:
        """Write how things stood at a fault."""
        if self.log is None:
            return
        self.log.close()
        what = {
            "error": str(fault),
            "timesteps": self.steps,
            "update": self.built.learner.num_updates,
            "seed": self.config.run.seed,
            "last_metrics": dict(self.log.rows[-1]) if self.log.rows else {},
        }
        write_json(self.folder / "fault.json", what)
        save_fault(self.folder, self.built.learner.state(), self._facts(), steps=self.steps)
