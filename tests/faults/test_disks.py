"""Disks that are full, read-only or not ours, by the command: one message, status 2, and what was saved is whole."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from latentpg.runs import newest_checkpoint
from latentpg.training import train
from tests.cloning.runs import words as words_of_cloning
from tests.faults.commands import ended, quick, without_rights
from tests.training.runs import after, files_of, words

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX"),
    pytest.mark.production,  # a forked process imports nothing anew
]

FILE = """
num_replicates = 4
figures = ["bias"]
[source]
kind = "toys"
num_rows = 2
[axes]
num_particles = [1, 2, 4]
[[lines]]
estimator = "posterior-is"
proposal = "prior"
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Hand out a folder, and make it ours again at the end."""
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+rwx", str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for two updates; more are to come."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def then_stop() -> None:
        quick()
        commands: Any = sys.modules["latentpg.training.commands"]
        commands.train = lambda *given, **named: train(*given, **{**named, "stop": after(2)})

    told = folder.parent / "told"
    status, text = ended("train", *words(total_timesteps=320), "--out", str(folder), told=told, before=then_stop)
    assert status == 128 + 15, text
    return folder


def saved(folder: Path) -> dict[str, Tensor]:
    return dict(newest_checkpoint(folder / "checkpoints", say=pytest.fail).state)


def whole_as_before(folder: Path, before: dict[str, Tensor], step: int = 64) -> None:
    found = newest_checkpoint(folder / "checkpoints", say=pytest.fail)
    assert found.step >= step and (found.step > step or all(bool((found.state[n] == before[n]).all()) for n in before))
    assert not list((folder / "checkpoints").glob(".*"))


def copied(stopped: Path, place: Path) -> Path:
    folder = place / "run"
    shutil.copytree(stopped, folder)
    return folder


def one_message(text: str, *phrases: str) -> None:
    lines = [line for line in text.splitlines() if "Error in" in line]
    assert len(lines) == 1, text
    assert all(phrase in text for phrase in phrases), text


def study(place: Path) -> list[str]:
    file = place / "mine.toml"
    file.write_text(FILE, encoding="utf-8")
    return ["study", str(file)]


# a full disk


def no_larger_than(size: int) -> Callable[[], None]:
    def limit() -> None:
        quick()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 400 kB, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", [1_000, 4_000])
def test_a_file_that_cannot_grow_ends_the_run(size: int, stopped: Path, place: Path) -> None:
    """At 1000 bytes the log stops it, at 4000 the first checkpoint."""
    folder = copied(stopped, place)
    before = saved(folder)
    status, text = ended("resume", str(folder), told=place / "told", before=no_larger_than(size))
    assert status == 2
    one_message(text, "cannot be written", "File too large", "a disk with room")
    whole_as_before(folder, before)
    status, text = ended("resume", str(folder), told=place / "told", before=quick)
    assert status == 0, text


def test_a_disk_that_fills_up_loses_no_checkpoint_and_the_run_goes_on_elsewhere(
    stopped: Path, small_disk: Path, tmp_path: Path
) -> None:
    folder = copied(stopped, small_disk)
    before = saved(folder)
    rest = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(rest - 8192))
    status, text = ended("resume", str(folder), told=tmp_path / "told", before=quick)
    assert status == 2
    one_message(text, "cannot be written", "No space left on device")
    whole_as_before(folder, before)
    (small_disk / "ballast").unlink()
    status, text = ended("resume", str(folder), told=tmp_path / "told", before=quick)
    assert status == 0, text


def test_a_new_run_on_a_full_disk_says_so(small_disk: Path, tmp_path: Path) -> None:
    rest = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(rest))
    for command in (["train", *words()], ["imitate", *words_of_cloning()], study(tmp_path)):
        out = small_disk / command[0]
        status, text = ended(*command, "--out", str(out), told=tmp_path / "told", before=quick)
        assert status == 2
        one_message(text, "cannot be made", "No space left on device", "another --out")


def test_a_recording_that_finds_no_room_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    rest = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(rest))
    words = [
        "record",
        "--env",
        "latentpg/Avoiding-v0",
        "--episodes-per-mode",
        "1",
        "--out",
        str(small_disk / "demos.npz"),
    ]
    status, text = ended(*words, told=tmp_path / "told")
    assert status == 2
    one_message(text, "No space left on device")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_where_not_even_the_message_finds_room_the_exit_status_still_tells(stopped: Path, place: Path) -> None:
    folder = copied(stopped, place)
    before = saved(folder)
    assert ended("resume", str(folder), told=place / "told", before=no_larger_than(100))[0] == 2
    whole_as_before(folder, before)


# no permission


@pytest.mark.parametrize("command", ["train", "study"])
def test_a_place_that_is_not_ours_is_told_of_before_anything_is_done(command: str, place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    theirs.chmod(0o555)
    every = ["train", *words()] if command == "train" else study(place)
    for out in (theirs / "new", theirs):
        status, text = ended(*every, "--out", str(out), told=place / "told", before=without_rights)
        assert status == 2
        one_message(text, f"{out} cannot be made", "Permission denied", "another --out")
    assert not list(theirs.iterdir())


@pytest.mark.parametrize("closed", [".", "checkpoints"])
def test_a_folder_that_became_read_only_ends_the_run(closed: str, stopped: Path, place: Path) -> None:
    folder = copied(stopped, place)
    before, files = saved(folder), files_of(folder)
    (folder / closed).chmod(0o555)

    def reader() -> None:
        quick()
        without_rights()

    status, text = ended("resume", str(folder), told=place / "told", before=reader)
    assert status == 2
    one_message(text, "cannot be written", "Permission denied")
    (folder / closed).chmod(0o777)
    whole_as_before(folder, before)
    assert closed != "." or files_of(folder) == files
    status, text = ended("resume", str(folder), told=place / "told", before=quick)
    assert status == 0, text


def test_an_evaluation_that_cannot_be_kept_is_told_of(stopped: Path, place: Path) -> None:
    folder = copied(stopped, place)
    files = files_of(folder)
    folder.chmod(0o555)
    status, text = ended("evaluate", str(folder), "--episodes", "4", told=place / "told", before=without_rights)
    assert status == 2
    one_message(text, "evaluations", "Permission denied")
    assert files_of(folder) == files


def test_a_run_that_cannot_be_read_is_told_of(stopped: Path, place: Path) -> None:
    folder = copied(stopped, place)
    (folder / "config.toml").chmod(0)
    for command in ("evaluate", "resume"):
        status, text = ended(command, str(folder), told=place / "told", before=without_rights)
        assert status == 2
        one_message(text, "config.toml", "Permission denied")


def test_a_study_whose_folder_became_read_only_keeps_its_cells(place: Path) -> None:
    out = place / "run"
    status, text = ended(*study(place), "--out", str(out), told=place / "told")
    assert status == 0, text
    cells = sorted((out / "cells").iterdir())
    kept = {path.name: path.read_bytes() for path in cells[1:]}
    cells[0].unlink()
    (out / "cells").chmod(0o555)
    status, text = ended(*study(place), "--out", str(out), "--resume", told=place / "told", before=without_rights)
    assert status == 2
    one_message(text, "Permission denied")
    assert {path.name: path.read_bytes() for path in (out / "cells").glob("*.json")} == kept
    status, text = ended(*study(place), "--out", str(out), "--resume", told=place / "told")
    assert status == 0 and len(list((out / "cells").glob("*.json"))) == len(cells), text
