"""A run through any life: stopped, killed, damaged, evaluated and gone on with in any order, it ends as it would have.

Every step is a command; what stops a run stops it between or within its updates. However it was brought there, the
newest whole checkpoint is one that the uninterrupted run has passed through, bit for bit.
"""

import hashlib
import os
import shutil
import signal
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from latentpg.runs import Checkpoint, list_checkpoints, load_checkpoint, newest_checkpoint
from latentpg.training import TrainingConfig, begin_run, prepared, read_metrics, resolve, train
from latentpg.training.commands import evaluate_command, resume_command
from latentpg.training.config import read_options
from tests.faults.commands import quick, start
from tests.fuzz.values import THOROUGHNESS
from tests.training.runs import after, no_figure, shortly, small

pytestmark = [
    pytest.mark.production,  # the same code again, and slow enough
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
]

CHECKPOINTS = 4
"""How many updates a run of this life has, with a checkpoint after each."""


def options(algo: str) -> TrainingConfig:
    if algo == "ppo":
        return small(total_timesteps=32 * CHECKPOINTS, hidden=[4], eval_every=64, proposal="guide")
    return resolve(shortly(algo, hidden=[4], total_timesteps=16 * CHECKPOINTS, checkpoint_every=16, eval_every=32))


def digest(checkpoint: Checkpoint) -> str:
    """Stand for all tensors of a checkpoint."""
    found = hashlib.sha256()
    for name, value in sorted(checkpoint.state.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode() + value.numpy().tobytes())
    return found.hexdigest()


@lru_cache
def uninterrupted(algo: str) -> dict[int, str]:
    """Return the digest of every checkpoint that a run passes through, by its step."""
    config = options(algo)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, prepared(config) as built:
        patch.setattr("latentpg.training.loop.draw_curve", no_figure)
        patch.setattr("latentpg.training.saving.KEPT", 1000)
        out = begin_run(config, out=Path(folder) / "run")
        train(config, built, out)
        found = [load_checkpoint(path) for path in list_checkpoints(out / "checkpoints")]
        return {checkpoint.step: digest(checkpoint) for checkpoint in found}


class Life(RuleBasedStateMachine):
    """A run's folder, and whatever happens to it."""

    @initialize(algo=st.sampled_from(["ppo", "a2c"]))
    def begin(self, algo: str) -> None:
        self.algo, self.config = algo, options(algo)
        self.place = Path(tempfile.mkdtemp())
        self.folder = self.place / "run"
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("latentpg.training.loop.draw_curve", no_figure)
        with prepared(self.config) as built:
            train(self.config, built, begin_run(self.config, out=self.folder), stop=after(1))

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            shutil.rmtree(self.place)

    @property
    def newest(self) -> Checkpoint:
        return newest_checkpoint(self.folder / "checkpoints", say=lambda text: None)

    @rule(updates=st.integers(0, 2))
    def go_on_and_stop(self, updates: int) -> None:
        config, saved = resolve(read_options(self.folder / "config.toml")), self.newest
        with prepared(config) as built:
            outcome = train(config, built, self.folder, saved=saved, stop=after(updates))
        assert outcome.steps >= saved.step and not outcome.inexact

    @rule(seconds=st.floats(0, 0.4))
    def kill(self, seconds: float) -> None:
        command = start("resume", str(self.folder), told=self.place / "told", before=quick)
        time.sleep(seconds)
        command.send(signal.SIGKILL)
        assert command.wait() in (0, -signal.SIGKILL)
        assert "Traceback" not in command.text()

    @rule(which=st.sampled_from(["best", "last"]))
    def look(self, which: str) -> None:
        """Evaluate, which changes nothing of the run."""
        before = digest(self.newest)
        assert evaluate_command([str(self.folder), "--episodes", "4", "--checkpoint", which]) == 0
        assert digest(self.newest) == before

    @rule(name=st.sampled_from(["tensors.safetensors", "facts.json", "manifest.json"]), share=st.floats(0, 0.99))
    def damage(self, name: str, share: float) -> None:
        """Cut the newest short, if it is whole and not the only one; no precondition may hang on when a kill came."""
        found = list_checkpoints(self.folder / "checkpoints")
        newest, is_whole = found[-1], self.newest.step == int(found[-1].name.removeprefix("step-"))
        if len(found) < 2 or not is_whole or self.means_best(newest):
            return
        before = found[-2]
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[: int(len(content) * share)])
        assert self.newest.step == int(before.name.removeprefix("step-"))

    def means_best(self, path: Path) -> bool:
        return path.name in (self.folder / "checkpoints" / "best.json").read_text(encoding="utf-8")

    @rule()
    def leave_something_behind(self) -> None:
        """Make what a killed write leaves."""
        (self.folder / "checkpoints" / ".step-0000000099.tmp").mkdir(exist_ok=True)

    @rule()
    def finish(self) -> None:
        assert resume_command([str(self.folder)]) == 0
        expected = uninterrupted(self.algo)
        assert self.newest.step == max(expected)
        steps = [row["time/total_timesteps"] for row in read_metrics(self.folder)]
        assert steps == sorted(set(steps))

    @invariant()
    def newest_is_one_that_the_whole_run_passed_through(self) -> None:
        if hasattr(self, "folder"):
            saved: Any = self.newest
            assert uninterrupted(self.algo)[saved.step] == digest(saved)


Life.TestCase.settings = settings(
    max_examples=4 * THOROUGHNESS,
    stateful_step_count=6,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLife = Life.TestCase
