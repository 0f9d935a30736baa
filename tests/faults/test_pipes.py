"""Output that nobody reads any more: no traceback, and what a run has done is kept."""

import os
from pathlib import Path

import pytest

from latentpg import cli
from latentpg.runs import newest_checkpoint
from tests.faults.commands import quick, start
from tests.training.runs import words

pytestmark = [
    pytest.mark.production,  # a forked process imports nothing anew
    pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX"),
]


def closed(stream: int, *given: str, tmp_path: Path) -> tuple[int, str]:
    """Run a command one of whose streams is a pipe that nobody reads; return its status and what the other said."""

    def before() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, stream)
        quick()

    command = start(*given, told=tmp_path / "told", before=before)
    return command.wait(), command.text()


@pytest.mark.parametrize(
    "given", [("train", "--help"), ("list",), ("--help",), ("evaluate", "--help"), ("study", "--help")], ids=" ".join
)
def test_what_is_printed_and_not_read_ends_quietly(given: tuple[str, ...], tmp_path: Path) -> None:
    status, told = closed(1, *given, tmp_path=tmp_path)
    assert status in (cli.UNREAD, 1) and not told  # 1 is what rich gives where it was printing a table


def test_a_run_whose_summary_nobody_reads_is_finished_all_the_same(tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, told = closed(1, "train", *words(total_timesteps=64), "--out", str(out), tmp_path=tmp_path)
    assert status == cli.UNREAD and "Traceback" not in told and "Exception ignored" not in told
    assert (out / "result.json").is_file()


def test_a_mistake_whose_message_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    assert closed(2, "train", "--env", "CartPol-v1", tmp_path=tmp_path) == (cli.UNREAD, "")


def test_a_run_whose_progress_nobody_reads_leaves_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, told = closed(2, "train", *words(total_timesteps=64), "--out", str(out), tmp_path=tmp_path)
    assert status in (0, 1, cli.UNREAD) and "Traceback" not in told
    assert newest_checkpoint(out / "checkpoints", say=pytest.fail).step >= 0
