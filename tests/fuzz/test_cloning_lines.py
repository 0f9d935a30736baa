"""Words and option files for ``latentpg imitate``, and words for ``latentpg record``: understood, or refused."""

import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from latentpg import cli
from latentpg.cloning.config import resolve
from latentpg.cloning.options import ImitateCommand, command_of, parse_imitate
from latentpg.cloning.parts import COMMON, SELECTORS
from latentpg.errors import LatentPGError, StudyError
from latentpg.recording.commands import RecordOptions
from latentpg.runs.files import to_toml
from tests.fuzz.values import SCALARS, TOML_VALUES, examples, mutated, spelled

pytestmark = pytest.mark.production  # what is fed here is of the wrong type on purpose

PLAIN = {"data": "scripted:latentpg/Avoiding-v0"}
WHOLE = to_toml({"format_version": 1, **resolve(PLAIN).known()}).encode()
NAMES = sorted({*resolve(PLAIN).flat(), *(each.name for maker in COMMON.values() for each in fields(maker))})


def parsed(words: list[str]) -> ImitateCommand | None:
    """Parse a command line; None if it is refused as it should be."""
    try:
        return parse_imitate(words)
    except LatentPGError as error:
        assert len(str(error)) < 20_000
        return None
    except SystemExit as leave:
        assert leave.code in (0, 2)  # tyro's own words for a value of another type, or --help
        return None


def comes_back(found: ImitateCommand | None) -> None:
    if found is not None:
        assert resolve(found.config.known()).known() == found.config.known()
        again = parsed(shlex.split(command_of(found.config))[2:])
        assert again is not None and again.config.known() == found.config.known()


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    words = ["--data", draw(st.sampled_from([*PLAIN.values(), "no-such.npz", "lasa:Snake", "scripted:a:b", ""]))]
    for selector in draw(st.lists(st.sampled_from(list(SELECTORS)), max_size=3, unique=True)):
        words += [f"--{selector.replace('_', '-')}", draw(st.sampled_from([*SELECTORS[selector], "unknown"]))]
    for name in draw(st.lists(st.sampled_from([*NAMES, "no_such_option", "config", "seeds"]), max_size=4)):
        words.append(f"--{name.replace('_', '-')}")
        words += draw(st.lists(SCALARS.map(spelled), max_size=2))
    return words


@examples(20)
@given(words=lines())
def test_any_words_are_a_run_or_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    comes_back(parsed(words))
    capsys.readouterr()


def config_of(content: bytes, folder: Path) -> None:
    file = folder / "options.toml"
    file.write_bytes(content)
    comes_back(parsed(["--config", str(file), "--no-tuned"]))


@examples(20)
@given(rest=st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), TOML_VALUES, max_size=4))
def test_any_options_of_a_file_are_a_run_or_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rest: dict[str, Any]
) -> None:
    try:
        text = to_toml({**PLAIN, **rest})
    except StudyError:  # tables and numbers in one list, which TOML has and nothing here writes
        reject()
    config_of(text.encode("utf-8", "replace"), tmp_path)
    capsys.readouterr()


@examples(20)
@given(content=mutated(WHOLE))
def test_a_file_of_options_that_was_changed_is_a_run_or_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    config_of(content, tmp_path)
    capsys.readouterr()


class Understood(Exception):
    """Raised where the recording would begin."""


@examples(20)
@given(data=st.data())
def test_any_words_for_a_recording_are_understood_or_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: st.DataObject
) -> None:
    def begin(options: RecordOptions) -> None:
        raise Understood

    flags = st.sampled_from([f"--{each.name.replace('_', '-')}" for each in fields(RecordOptions)])
    words = ["--env", data.draw(st.sampled_from(["latentpg/Avoiding-v0", "a:b", ""])), "--out", str(tmp_path / "x.npz")]
    words += data.draw(st.lists(st.one_of(flags, SCALARS.map(spelled)), max_size=5))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["latentpg.recording.commands"], "recorded_by", begin)
    monkeypatch.setattr(sys, "argv", ["latentpg", "record", *words])
    try:
        assert cli.main() in (0, 2)
    except SystemExit as leave:
        assert leave.code in (0, 2)
    except Understood:
        pass
    capsys.readouterr()
