"""One process at a time works on a run; a lock goes with its process, however that ends."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from latentpg.errors import StudyError
from latentpg.runs import at_work_in
from tests.faults.commands import Command, ended, quick, start, until
from tests.faults.test_cloning import imitating, quickly
from tests.faults.test_disks import study
from tests.training.runs import words

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="locks of POSIX"), pytest.mark.production]


def holding(folder: Path) -> int:
    """Be at work in a folder in another process, which says so by a file, until it is killed."""
    pid = os.fork()
    if not pid:
        with at_work_in(folder):
            (folder / "in").touch()
            while True:
                signal.pause()
    until((folder / "in").exists)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_lock_is_another_processs_until_that_is_killed(tmp_path: Path) -> None:
    pid = holding(tmp_path)
    try:
        with pytest.raises(StudyError, match="another process is at work in"), at_work_in(tmp_path):
            pass
    finally:
        end(pid)
    with at_work_in(tmp_path):
        pass


def test_a_process_that_was_forked_inside_keeps_nobody_out(tmp_path: Path) -> None:
    """A worker that outlives a killed command must not hold the run."""
    with at_work_in(tmp_path):
        pid = os.fork()
        if not pid:
            while True:
                signal.pause()
    other = tmp_path / "told"
    try:
        command = start("--version", told=other, before=lambda: at_work_in(tmp_path).__enter__())
        assert command.wait() == 0, command.text()
    finally:
        end(pid)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    with at_work_in(tmp_path / "run"):
        assert not (tmp_path / "elsewhere").exists()


def refused(text: str) -> bool:
    return text.count("Error in") == 1 and "another process is at work in" in text


def test_training_is_gone_on_with_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(
        *["train", *words(total_timesteps=10**7, eval_every=10**7), "--out", str(folder)],
        told=tmp_path / "first",
        before=quick,
    )
    one_at_a_time(first, folder, quick, tmp_path)


def test_cloning_is_gone_on_with_by_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(*imitating(10**6), "--out", str(folder), told=tmp_path / "first", before=quickly)
    one_at_a_time(first, folder, quickly, tmp_path)


def one_at_a_time(first: Command, folder: Path, before: Callable[[], object], tmp_path: Path) -> None:
    until(lambda: bool(list(folder.glob("checkpoints/step-*4"))))
    status, text = ended("resume", str(folder), told=tmp_path / "second", before=before)
    assert status == 2 and refused(text), text
    first.send(signal.SIGKILL)
    first.wait()
    again = start("resume", str(folder), told=tmp_path / "third", before=before)
    there = set(folder.glob("checkpoints/step-*"))
    until(lambda: again.has_ended() or set(folder.glob("checkpoints/step-*")) != there)
    again.send(signal.SIGTERM)
    assert again.wait() == 143, again.text()


def test_a_study_is_gone_on_with_by_one_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = [*study(tmp_path), "--out", str(out)]
    assert ended(*asked, told=tmp_path / "told")[0] == 0
    pid = holding(out)
    try:
        status, text = ended(*asked, "--resume", told=tmp_path / "told")
    finally:
        end(pid)
    assert status == 2 and refused(text), text
