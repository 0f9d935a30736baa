"""Cloning that is killed, stopped, or finds no room on the disk: what it had learnt is whole, and is gone on with."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentpg.cloning import Prepared
from latentpg.estimators import PosteriorIS
from latentpg.imitation import mean_log_prob
from latentpg.numerics.rng import seeded
from latentpg.runs import newest_checkpoint
from tests.cloning.runs import EPISODE, words
from tests.faults.commands import Command, ended, start, until, without_rights
from tests.faults.killing import assert_same, begin_or_go_on, kill_at_random

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals and permissions of POSIX"),
    pytest.mark.production,  # a forked process imports nothing anew
]

OPTIONS: dict[str, Any] = {**EPISODE, "match_prior_every": 8, "rollouts": 0, "checkpoint_every": 2}
"""Options of a run whose latent is an episode's, its prior set to posteriors as it goes."""


def measured(built: Prepared, *, seed: int, check: Callable[[], None]) -> float:
    """Measure the likelihood by one particle: what is measured at the end is not what is asked here."""
    check()
    with seeded(seed):
        return float(mean_log_prob(built.policy, built.test, PosteriorIS(1)))


def quickly() -> None:
    """Measure little at the end of a run, and draw and report nothing."""
    loop, commands = sys.modules["latentpg.cloning.loop"], sys.modules["latentpg.cloning.commands"]
    replaced: dict[Any, dict[str, Callable[..., Any]]] = {
        loop: {
            "measure": measured,
            "draw_figures": lambda *given: [],
            "result_of": lambda built, found: {"measured": found},
            "write_report": lambda built, found, folder, *given: folder,
        },
        commands: {"lines_of": lambda found: [str(found)]},
    }
    for module, names in replaced.items():
        for name, value in names.items():
            setattr(module, name, value)


def imitating(epochs: int) -> list[str]:
    return ["imitate", *words(**OPTIONS, num_epochs=epochs)]


def ends_as_it_would_have(one: Path, two: Path) -> None:
    assert_same(one, two)
    first, second = (json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (one, two))
    assert second["finished"] and first["measured"] == second["measured"] and first["best"] == second["best"]


def kill_cloning(tmp_path: Path, number: int, *, epochs: int) -> int:
    def life(folder: Path) -> Command:
        return begin_or_go_on(folder, imitating(epochs), told=tmp_path / "told", before=quickly)

    return kill_at_random(tmp_path, number, life, ends_as_it_would_have)


def test_killed_a_few_times_it_is_the_same_fit(tmp_path: Path) -> None:
    assert kill_cloning(tmp_path, 4, epochs=120) >= 1


@pytest.mark.slow
def test_killed_fifty_times_at_random_it_is_the_same_fit(tmp_path: Path) -> None:
    assert kill_cloning(tmp_path, 50, epochs=300) >= 30


def stopped(tmp_path: Path, number: int = signal.SIGTERM) -> tuple[Path, Command]:
    """Stop a fit that does not end by itself, once it has learnt something."""
    folder = tmp_path / "run"
    command = start(*imitating(10**6), "--out", str(folder), told=tmp_path / "told", before=quickly)
    until(lambda: bool(list(folder.glob("checkpoints/step-*4"))))
    command.send(number)
    return folder, command


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_once_it_ends_after_the_epoch_with_a_checkpoint(number: int, status: int, tmp_path: Path) -> None:
    folder, command = stopped(tmp_path, number)
    begun = time.monotonic()
    assert command.wait(20) == status and time.monotonic() - begun < 10
    text = command.text()
    assert "Traceback" not in text and f"to go on: latentpg resume {folder}" in text
    saved = newest_checkpoint(folder / "checkpoints", say=pytest.fail)
    assert f"stopped after {saved.step} of {10**6} epochs" in text
    assert not json.loads((folder / "result.json").read_text(encoding="utf-8"))["finished"]


# disks


def whole_as_before(folder: Path, step: int) -> None:
    assert newest_checkpoint(folder / "checkpoints", say=pytest.fail).step >= step
    assert not list((folder / "checkpoints").glob(".*"))


def one_message(text: str, *phrases: str) -> None:
    assert sum("Error in" in line for line in text.splitlines()) == 1, text
    assert all(phrase in text for phrase in phrases), text


def test_where_files_cannot_grow_or_be_made_the_fit_ends_and_can_be_gone_on_with(tmp_path: Path) -> None:
    folder, command = stopped(tmp_path)
    assert command.wait(20) == 143
    step = newest_checkpoint(folder / "checkpoints", say=pytest.fail).step

    def no_room() -> None:
        quickly()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    def closed() -> None:
        quickly()
        without_rights()

    try:
        for before, phrase in ((no_room, "File too large"), (closed, "Permission denied")):
            for place in (folder, folder / "checkpoints"):
                place.chmod(0o555 if before is closed else 0o755)
            status, text = ended("resume", str(folder), told=tmp_path / "told", before=before)
            assert status == 2
            one_message(text, "cannot be written", phrase)
            whole_as_before(folder, step)
    finally:
        subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=True)
    command = start("resume", str(folder), told=tmp_path / "told", before=quickly)
    until(lambda: newest_checkpoint(folder / "checkpoints").step > step + 2)
    command.send(signal.SIGTERM)
    assert command.wait(20) == 143


def test_a_new_fit_where_nothing_may_be_written_says_so(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o555)
    asked = ["--out", str(theirs / "run")]
    status, text = ended(*imitating(4), *asked, told=tmp_path / "told", before=without_rights)
    theirs.chmod(0o755)
    assert status == 2 and not list(theirs.iterdir())
    one_message(text, "cannot be made", "Permission denied", "another --out")
