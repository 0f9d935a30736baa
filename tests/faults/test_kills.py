"""Training that is killed at random moments and gone on with, again and again: the same run in the end."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentpg.runs import list_checkpoints, newest_checkpoint
from latentpg.training import read_metrics
from latentpg.training.log import Row
from tests.faults.commands import Command, quick, start, until
from tests.faults.environments import register_troubled
from tests.training.runs import shortly, spelled, words

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals of POSIX"),
    pytest.mark.production,  # a forked process imports nothing anew, so the checked pass would check the same again
]

SEED = 20


def begin(folder: Path, told: Path, steps: int) -> Command:
    """Begin the run in a folder, or go on with it if it has a checkpoint already."""
    if list_checkpoints(folder / "checkpoints"):
        return start("resume", str(folder), told=told, before=quick)
    shutil.rmtree(folder, ignore_errors=True)
    every = words(total_timesteps=steps, eval_every=800)  # a checkpoint every 32
    return start("train", *every, "--out", str(folder), told=told, before=quick)


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def told(folder: Path) -> list[Row]:
    """Return metrics without the clock's."""
    clock = ("time/fps", "time/seconds")
    return [{name: value for name, value in row.items() if name not in clock} for row in read_metrics(folder)]


def assert_same(one: Path, two: Path) -> None:
    first, second = (newest_checkpoint(folder / "checkpoints", say=pytest.fail) for folder in (one, two))
    assert first.step == second.step
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert told(one) == told(two)
    result: dict[str, Any] = json.loads((two / "result.json").read_text(encoding="utf-8"))
    assert result["finished"] and result["exact_resume"] is True


def kill_at_random(tmp_path: Path, number: int, *, steps: int) -> int:
    """Kill a run ``number`` times, anew when it has finished; return how many kills met one that had a checkpoint."""
    chance = random.Random(SEED)
    whole = tmp_path / "whole"
    assert begin(whole, tmp_path / "told", steps).wait() == 0
    runs, hits = 0, 0
    for kill in range(number):
        folder = tmp_path / f"run-{runs}"
        place, there = folder / "checkpoints", list_checkpoints(folder / "checkpoints")
        command = begin(folder, tmp_path / "told", steps)
        if kill % 2:  # however slow a start is, every other life gets somewhere
            until(lambda place=place, there=there: list_checkpoints(place) != there)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.5))
        command.send(signal.SIGKILL)
        if command.wait() == 0:
            assert_same(whole, folder)
            runs += 1
            continue
        assert "Traceback" not in command.text()
        assert len(temporaries(folder)) <= 1, temporaries(folder)
        if found := list_checkpoints(folder / "checkpoints"):
            saved = newest_checkpoint(folder / "checkpoints", say=pytest.fail)  # nothing to say: it is whole
            assert saved.step == int(found[-1].name.removeprefix("step-"))
            hits += 1
    folder = tmp_path / f"run-{runs}"
    assert begin(folder, tmp_path / "told", steps).wait() == 0
    assert temporaries(folder) == []
    assert_same(whole, folder)
    return hits


def test_killed_a_few_times_it_is_the_same_run(tmp_path: Path) -> None:
    assert kill_at_random(tmp_path, 6, steps=640) >= 2


@pytest.mark.slow
def test_killed_sixty_times_at_random_it_is_the_same_run(tmp_path: Path) -> None:
    assert kill_at_random(tmp_path, 60, steps=3200) >= 40


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
