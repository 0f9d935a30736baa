"""A run whose newest checkpoint is damaged goes on from the one before, says so, and is the same run in the end."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentpg import cli
from latentpg.runs import list_checkpoints, newest_checkpoint
from latentpg.training.commands import evaluate_command, resume_command, train_command
from tests.training.runs import words

pytestmark = pytest.mark.production


@pytest.fixture(autouse=True)
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", lambda *given, **named: [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train_command([*words(total_timesteps=96), "--out", str(folder)]) == 0
    return folder


def cut(content: bytes) -> bytes:
    return content[: len(content) * 37 // 100]


def flip(content: bytes) -> bytes:
    place = 97 * (len(content) // 194)
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def nothing(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, nothing])
@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "manifest.json"])
def test_it_falls_back_one_says_so_and_ends_as_it_would_have(
    name: str, damage: Callable[[bytes], bytes], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    *_, before, newest = list_checkpoints(folder / "checkpoints")
    whole = newest_checkpoint(folder / "checkpoints", say=pytest.fail)
    content = (newest / name).read_bytes()
    assert damage(content) != content
    (newest / name).write_bytes(damage(content))
    assert evaluate_command([str(folder), "--episodes", "4"]) == 0
    told = capsys.readouterr()
    assert f"going back to the checkpoint before {newest.name}, which is damaged" in told.err and name in told.err
    assert f"after {int(before.name.removeprefix('step-'))} steps" in told.out
    assert resume_command([str(folder)]) == 0
    assert f"going back to the checkpoint before {newest.name}" in capsys.readouterr().err
    again = newest_checkpoint(folder / "checkpoints", say=pytest.fail)
    assert again.step == whole.step
    assert all(torch.equal(value, again.state[key]) for key, value in whole.state.items())


def test_where_none_is_whole_every_command_says_so(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for path in list_checkpoints(folder / "checkpoints"):
        (path / "facts.json").write_bytes(b"{}")
    for command in (
        ["evaluate", str(folder), "--checkpoint", "best"],
        ["evaluate", str(folder)],
        ["resume", str(folder)],
    ):
        monkeypatch.setattr("sys.argv", ["latentpg", *command])
        assert cli.main() == 2
        assert "CheckpointError" in capsys.readouterr().err
