"""Runs that are killed at random moments and gone on with, again and again, whichever command they are of."""

import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from latentpg.runs import list_checkpoints, newest_checkpoint
from latentpg.training import read_metrics
from latentpg.training.log import Row
from tests.faults.commands import Command, start, until

SEED = 20


def begin_or_go_on(folder: Path, words: Sequence[str], *, told: Path, before: Callable[[], object]) -> Command:
    """Begin the run that words ask for in a folder, or go on with it if it has a checkpoint already."""
    if list_checkpoints(folder / "checkpoints"):
        return start("resume", str(folder), told=told, before=before)
    shutil.rmtree(folder, ignore_errors=True)
    return start(*words, "--out", str(folder), told=told, before=before)


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def without_clock(folder: Path) -> list[Row]:
    """Return metrics without the clock's."""
    clock = ("time/fps", "time/seconds")
    return [{name: value for name, value in row.items() if name not in clock} for row in read_metrics(folder)]


def assert_same(one: Path, two: Path) -> None:
    """See that two runs ended with the same tensors and told the same on the way."""
    first, second = (newest_checkpoint(folder / "checkpoints", say=pytest.fail) for folder in (one, two))
    assert first.step == second.step
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())
    assert without_clock(one) == without_clock(two)


def kill_at_random(
    tmp_path: Path, number: int, life: Callable[[Path], Command], check: Callable[[Path, Path], None]
) -> int:
    """Kill a run ``number`` times, anew when it has finished; return how many kills met one that had a checkpoint.

    ``life`` begins it in a folder or goes on, and ``check`` compares a whole one with one that was killed.
    """
    chance = random.Random(SEED)
    whole = tmp_path / "whole"
    assert life(whole).wait() == 0
    runs, hits = 0, 0
    for kill in range(number):
        folder = tmp_path / f"run-{runs}"
        place, there = folder / "checkpoints", list_checkpoints(folder / "checkpoints")
        command = life(folder)
        if kill % 2:  # however slow a start is, every other life gets somewhere
            until(lambda: command.has_ended() or list_checkpoints(place) != there)  # noqa: B023 (called at once)
        time.sleep(chance.uniform(0.0, 0.5))
        command.send(signal.SIGKILL)
        if command.wait() == 0:
            check(whole, folder)
            runs += 1
            continue
        assert "Traceback" not in command.text()
        assert len(temporaries(folder)) <= 1, temporaries(folder)
        if found := list_checkpoints(folder / "checkpoints"):
            saved = newest_checkpoint(folder / "checkpoints", say=pytest.fail)  # nothing to say: it is whole
            assert saved.step == int(found[-1].name.removeprefix("step-"))
            hits += 1
    folder = tmp_path / f"run-{runs}"
    assert life(folder).wait() == 0
    assert temporaries(folder) == []
    check(whole, folder)
    return hits
