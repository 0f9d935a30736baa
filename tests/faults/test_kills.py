"""Training that is killed at random moments and gone on with, again and again: the same run in the end."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latentpg.runs import newest_checkpoint
from tests.faults.commands import Command, quick, start, until
from tests.faults.environments import register_troubled
from tests.faults.killing import assert_same, begin_or_go_on, kill_at_random
from tests.training.runs import shortly, spelled, words

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
    pytest.mark.production,  # a forked process imports nothing anew, so the checked pass would check the same again
]


def begin(folder: Path, told: Path, steps: int) -> Command:
    """Begin the run in a folder, or go on with it if it has a checkpoint already."""
    every = words(total_timesteps=steps, eval_every=800)  # a checkpoint every 32
    return begin_or_go_on(folder, ["train", *every], told=told, before=quick)


def ends_as_it_would_have(one: Path, two: Path) -> None:
    assert_same(one, two)
    result: dict[str, Any] = json.loads((two / "result.json").read_text(encoding="utf-8"))
    assert result["finished"] and result["exact_resume"] is True


def kill_training(tmp_path: Path, number: int, *, steps: int) -> int:
    def life(folder: Path) -> Command:
        return begin(folder, tmp_path / "told", steps)

    return kill_at_random(tmp_path, number, life, ends_as_it_would_have)


def test_killed_a_few_times_it_is_the_same_run(tmp_path: Path) -> None:
    assert kill_training(tmp_path, 6, steps=640) >= 2


@pytest.mark.slow
def test_killed_sixty_times_at_random_it_is_the_same_run(tmp_path: Path) -> None:
    assert kill_training(tmp_path, 60, steps=3200) >= 40


def test_going_on_clears_what_a_killed_write_left_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert begin(folder, tmp_path / "told", 64).wait() == 0
    ours, mine = folder / ".metrics.jsonl.0h2k_x4z.tmp", folder / ".notes.tmp"
    half = folder / "checkpoints" / ".step-0000000096.tmp"
    ours.touch()
    mine.touch()
    half.mkdir()
    assert begin(folder, tmp_path / "told", 64).wait() == 0
    assert not ours.exists() and not half.exists() and mine.exists()


# signals that ask


def long_run(tmp_path: Path, *rest: str, before: Callable[[], object] = quick, **options: Any) -> Command:  # noqa: ANN401 (any option)
    """Start a run that does not end by itself, and wait until it has learnt something."""
    every = words(total_timesteps=10**7, eval_every=10**7, **options)
    command = start("train", *every, *rest, "--out", str(tmp_path / "run"), told=tmp_path / "told", before=before)
    until(lambda: bool(list(tmp_path.glob("run/checkpoints/step-*64"))))
    return command


def goes_on(folder: Path, told: Path) -> None:
    """See that a run that was stopped can be gone on with from where it says it stopped."""
    stopped_at = newest_checkpoint(folder / "checkpoints", say=pytest.fail).step
    command = start("resume", str(folder), told=told, before=quick)
    until(lambda: newest_checkpoint(folder / "checkpoints", say=pytest.fail).step > stopped_at)
    command.send(signal.SIGTERM)
    assert command.wait(20) == 143 and "exact_resume" not in command.text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_asked_once_it_ends_after_the_update_with_a_checkpoint_and_a_summary(
    mode: str, number: int, status: int, tmp_path: Path
) -> None:
    """Within ten seconds, also where the signal reaches the workers too, as a terminal's Ctrl-C does."""
    command = long_run(tmp_path, vectorization_mode=mode)
    begun = time.monotonic()
    command.send(number, to_all=mode == "async")
    assert command.wait(20) == status
    assert time.monotonic() - begun < 10
    text = command.text()
    assert "Traceback" not in text and "mean return" in text
    assert f"to go on: latentpg resume {tmp_path / 'run'}" in text
    steps = int(re.findall(r"stopped after (\d+) of", text)[0])
    assert newest_checkpoint(tmp_path / "run" / "checkpoints", say=pytest.fail).step == steps
    assert command.leaves_no_process()
    if mode == "sync" and number == signal.SIGTERM:
        goes_on(tmp_path / "run", tmp_path / "told")


def slow_run(tmp_path: Path) -> Command:
    """Start a run whose update takes a minute, with workers, and wait until it is in the midst of one."""
    options = shortly("ppo", env="Troubled-v0", vectorization_mode="async", num_steps=64, total_timesteps=10**6)
    before = partial(register_troubled, "nothing", tmp_path / "mark", seconds=0.25)
    out = ["--out", str(tmp_path / "run")]
    command = start("train", *spelled(options), *out, told=tmp_path / "told", before=before)
    until(lambda: bool(list(tmp_path.glob("run/checkpoints/best.json"))))
    time.sleep(0.3)
    return command


def test_asked_twice_by_ctrl_c_it_ends_at_once_and_loses_no_checkpoint(tmp_path: Path) -> None:
    command = slow_run(tmp_path)
    begun = time.monotonic()
    command.send(signal.SIGINT, to_all=True)
    until(lambda: "Ctrl-C once more ends at once" in command.text())
    command.send(signal.SIGINT, to_all=True)
    assert command.wait(20) == 130
    assert time.monotonic() - begun < 5
    assert "interrupted" in command.text() and "Traceback" not in command.text()
    assert command.leaves_no_process()
    assert newest_checkpoint(tmp_path / "run" / "checkpoints", say=pytest.fail).step == 0


def test_killed_it_leaves_no_worker_behind(tmp_path: Path) -> None:
    command = slow_run(tmp_path)
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    assert command.leaves_no_process()
