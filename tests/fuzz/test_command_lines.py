"""Words and option files of anybody's: either a configuration, or one of our own errors, and the same both ways."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from latentpg import cli
from latentpg.errors import LatentPGError, StudyError
from latentpg.runs.files import to_toml
from latentpg.studies import make_study
from latentpg.training import TrainingConfig, resolve
from latentpg.training.config import known_values, read_options
from latentpg.training.options import TrainCommand, command_of, parse_train
from tests.fuzz.values import INTEGERS, NAMES, SCALARS, SELECTED, TOML_KEYS, TOML_VALUES, examples, mutated, spelled

pytestmark = pytest.mark.production  # what is fed here is of the wrong type on purpose


def parsed(words: list[str]) -> TrainCommand | None:
    """Parse a command line of ``latentpg train``; None if it is refused as it should be."""
    try:
        return parse_train(words)
    except LatentPGError as error:
        assert len(str(error)) < 20_000
        return None
    except SystemExit as leave:
        assert leave.code in (0, 2)  # tyro's own words for a value of another type, or --help
        return None


def comes_back(config: TrainingConfig) -> None:
    """See that a configuration that was accepted is one: its file and its command make the same again."""
    values = known_values(config)
    assert known_values(resolve(values)) == values
    again = parsed(shlex.split(command_of(config))[2:])
    assert again is not None and known_values(again.config) == values


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    words = ["--env", draw(st.sampled_from(["CartPole-v1", "Pendulum-v1", "no-such", "a:b", ""]))]
    for selector in draw(st.lists(st.sampled_from(list(SELECTED)), max_size=3, unique=True)):
        words += [f"--{selector.replace('_', '-')}", draw(st.sampled_from([*SELECTED[selector], "unknown"]))]
    for name in draw(st.lists(st.sampled_from([*NAMES, "no_such_option", "config", "out", "seeds"]), max_size=4)):
        words.append(f"--{name.replace('_', '-')}")
        words += draw(st.lists(SCALARS.map(spelled), max_size=2))
    words += draw(st.lists(SCALARS.map(spelled), max_size=1))
    return words


@examples(25)
@given(words=lines())
def test_any_words_are_a_run_or_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    found = parsed(words)
    capsys.readouterr()
    if found is not None:
        comes_back(found.config)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(st.dictionaries(TOML_KEYS, TOML_VALUES, max_size=4))
    return {"env": draw(st.sampled_from(["CartPole-v1", 3, ""])), **chosen} if draw(st.integers(0, 3)) else chosen


def config_of(content: bytes, folder: Path) -> None:
    file = folder / "options.toml"
    file.write_bytes(content)
    found = parsed(["--config", str(file), "--no-tuned"])
    if found is not None:
        comes_back(found.config)


@examples(25)
@given(content=documents())
def test_any_options_of_a_file_are_a_run_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any]
) -> None:
    try:
        text = to_toml(content)
    except StudyError:  # tables and numbers in one list, which TOML has and nothing here writes
        reject()
    config_of(text.encode("utf-8", "replace"), tmp_path)
    capsys.readouterr()


WHOLE = to_toml({"format_version": 1, **known_values(resolve({"env": "CartPole-v1", "proposal": "guide"}))}).encode()


@examples(25)
@given(content=mutated(WHOLE))
def test_a_file_of_options_that_was_changed_is_a_run_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    config_of(content, tmp_path)
    capsys.readouterr()


STUDY = b"""title = "mine"
num_replicates = 4
figures = ["bias"]
[source]
kind = "toys"
num_rows = 2
[axes]
num_particles = [1, 2]
[[targets]]
kind = "gradient"
[[lines]]
estimator = "posterior-is"
proposal = "prior"
"""


@examples(25)
@given(content=mutated(STUDY))
def test_a_study_file_that_was_changed_is_a_study_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "study.toml"
    file.write_bytes(content)
    try:
        assert make_study(str(file)).jobs()
    except LatentPGError as error:
        assert len(str(error)) < 20_000


@pytest.mark.parametrize("command", ["study", "evaluate", "resume", "list", "record", "imitate", ""])
@examples(10)
@given(data=st.data())
def test_any_words_after_any_command(
    command: str,
    data: st.DataObject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of what would begin something there is nothing among them: no named study, no folder of a run."""
    flags = ["--seed", "--episodes", "--out", "--env", "--num-workers", "--checkpoint", "--resume", "--data", "--help"]
    word = st.one_of(SCALARS.map(spelled), st.sampled_from(flags), INTEGERS.map(spelled))
    words = [each for each in data.draw(st.lists(word, max_size=5)) if each not in ("train", "study")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["latentpg", *([command] if command else []), *words])
    try:
        assert cli.main() in (0, 2)
    except SystemExit as leave:
        assert leave.code in (0, 2)
    capsys.readouterr()


# what was found


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 20_000,
        b"a = " + b"[" * 5_000,
        b"a." * 2_000 + b"a = 1",
        b"a = " + b"9" * 5_000,
        b"\xff\xfe",
        b"a" * 70_000,
    ],
    ids=["brackets", "nested", "dots", "digits", "no text", "large"],
)
def test_option_files_that_are_absurd_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_bytes(content)
    with pytest.raises(LatentPGError, match="cannot be read"):
        read_options(file)


def test_an_option_file_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "options.toml")
    with pytest.raises(LatentPGError, match="not a regular file"):
        read_options(tmp_path / "options.toml")
