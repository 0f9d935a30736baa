"""The command of a study: its options, the spelled command, and a run that was cut off and goes on."""

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from latentpg import cli
from latentpg.errors import OptionError, StudyError
from latentpg.runs import create_run_folder, open_run_folder
from latentpg.studies import Line, Study, make_study, named_studies, outputs
from latentpg.studies.options import check_owner_names, command_of, options_of, resolve
from latentpg.studies.toys import RandomToys

TINY = """
title = "Tiny"
num_replicates = 4
num_timings = 4

[source]
kind = "toys"
num_rows = 4
num_latents = 2

[axes]
num_particles = [1, 2]
guide = ["prior", "exact"]

[[lines]]
estimator = "exact"
[[lines]]
estimator = "conditional-is"
proposal = "guide"
"""
MISFIT = TINY.replace('"exact"\n', '"reparameterized"\n', 1).replace('["prior", "reparameterized"]', '["prior"]')


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY, "utf-8")
    return "tiny.toml"


def asked(named: str, words: Sequence[str]) -> Study:
    """Return the study that a command's words ask for."""
    study = make_study(named)
    return resolve(study, cli._parse(named, study, words))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["latentpg", *words])
    return cli.main()


def table(folder: str) -> list[dict[str, str]]:
    """Read what a run measured, but for times."""
    with Path(folder, "table.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["measure"] != "seconds"]


@pytest.mark.parametrize("name", named_studies())
def test_every_axis_and_scalar_of_the_source_is_an_option(name: str) -> None:
    study = make_study(name)
    defaults = {each.name: each.default for each in fields(options_of(study))}
    for axis, values in study.axes.items():
        assert defaults.pop(axis) == values
    for each in fields(study.source):  # type: ignore[arg-type]
        if each.name not in study.axes:
            assert defaults.pop(each.name) == getattr(study.source, each.name)
    assert set(defaults) == {
        "out", "resume", "num_workers", "backend", "device", "seed", "num_replicates", "skip_invalid",
    }  # fmt: skip


@pytest.mark.parametrize("name", named_studies())
def test_without_options_the_study_is_as_it_was(name: str) -> None:
    study = make_study(name)
    assert asked(name, []) == study
    assert command_of(study, name) == f"latentpg study {name} --seed {study.seed}"


CHANGES: dict[str, Sequence[str]] = {
    "seed": ["--seed", "5"],
    "replicates": ["--num-replicates", "9"],
    "on": ["--skip-invalid"],
    "axis of numbers": ["--num-particles", "3", "5"],
    "axis of words": ["--guide", "random", "trained", "exact"],
    "one word": ["--guide", "random"],
    "integer of the source": ["--num-rows", "7"],
    "float of the source": ["--scale", "1e-05"],
    "a float told as an integer": ["--scale", "2"],
    "word of the source": ["--guide-objective", "wake"],
    "an empty word": ["--guide-objective", ""],
    "words with blanks": ["--guide-objective", "a b 'c'"],
    "all": ["--seed=3", "--skip-invalid", "--num-particles", "4", "--guide", "exact", "--scale", "0.1", "--span", "2"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_spelled_command_asks_for_the_same_study(change: str, tiny: str) -> None:
    study = asked(tiny, CHANGES[change])
    assert study != make_study(tiny)
    program, command, named, *words = shlex.split(command_of(study, tiny))
    assert (program, command, named) == ("latentpg", "study", tiny)
    again = asked(tiny, words)
    assert again == study and repr(again.config()) == repr(study.config())


def test_a_switch_that_is_on_is_turned_off(tiny: str) -> None:
    Path(tiny).write_text("skip_invalid = true\n" + TINY, "utf-8")
    study = asked(tiny, ["--no-skip-invalid"])
    assert not study.skip_invalid
    assert command_of(study, tiny) == "latentpg study tiny.toml --seed 0 --no-skip-invalid"


def test_numbers_below_zero_and_mixed_axes_are_spelled_back(tiny: str) -> None:
    target = '[[targets]]\nkind = "policy-gradient"\n'
    text = TINY.replace("[axes]\n", "[axes]\nreward_offset = [1, 0.5]\n") + target
    Path(tiny).write_text(text, "utf-8")
    study = asked(tiny, ["--reward-offset", "-0.5", "2"])
    assert repr(study.axes["reward_offset"]) == "(-0.5, 2.0)"
    assert asked(tiny, shlex.split(command_of(study, tiny))[3:]) == study
    assert repr(asked(tiny, []).axes["reward_offset"]) == repr(make_study(tiny).axes["reward_offset"]) == "(1.0, 0.5)"


def test_an_axis_told_in_whole_numbers_takes_others(tiny: str) -> None:
    Path(tiny).write_text(TINY.replace("[axes]\n", "[axes]\nscale = [1, 2]\n"), "utf-8")
    assert asked(tiny, ["--scale", "0.5"]).axes["scale"] == (0.5,)


@dataclass(frozen=True)
class Clashing:
    """A source whose field is an option of the command."""

    num_workers: int = 1


@pytest.mark.production
def test_names_that_clash_are_refused() -> None:
    study = replace(Study("a", "a", RandomToys(), (Line("elbo"),)), source=Clashing())  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="`num_workers` is an option already"):
        check_owner_names(study)
    check_owner_names(make_study("quickstart"))


@pytest.mark.production
@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--guide", "exakt"], "did you mean exact"),
        (["--guid", "exact"], "did you mean --guide"),
        (["--num-particles", "0"], "an integer >= 1"),
        (["--num-particles", "2", "2"], "all distinct"),
        (["--num-rows", "0"], "an integer >= 1"),
        (["--num-workers", "0", "--out", "new"], "an integer >= 1"),
        (["--resume"], "--out FOLDER --resume"),
        (["--resume", "--out", "nowhere"], "holds no run to go on with"),
    ],
)
def test_mistakes_get_one_message_and_leave_nothing(
    words: list[str], hint: str, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "study", tiny, *words) == 2
    out, err = capsys.readouterr()
    assert hint in err and "Traceback" not in err and not out
    assert [path.name for path in Path().iterdir()] == [tiny]


def test_a_file_runs_end_to_end_and_goes_on_where_it_was_cut_off(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "study", tiny, "--num-workers", "1", "--out", "run") == 0
    out, err = capsys.readouterr()
    assert "conditional-is, guide" in out and "6/6 cells" in err
    before, kept = table("run"), {path: path.stat().st_mtime_ns for path in Path("run/cells").iterdir()}
    assert len(kept) == 6 and {row["guide"] for row in before} == {"prior", "exact"}
    monkeypatch.setattr(outputs, "draw_figures", lambda *_, **__: [])  # they take most of the time

    config, record = Path("run/config.toml").read_bytes(), Path("run/run.json").read_bytes()
    lost = sorted(kept)[:2]
    lost[0].unlink()
    lost[1].write_bytes(lost[1].read_bytes()[:20])
    assert call(monkeypatch, "study", tiny, "--out", "run", "--resume") == 0
    out, err = capsys.readouterr()
    assert "2/2 cells" in err and f"{lost[1].name} is damaged" in err
    assert {path for path, then in kept.items() if path.stat().st_mtime_ns == then} == set(kept) - set(lost)
    assert table("run") == before
    assert (Path("run/config.toml").read_bytes(), Path("run/run.json").read_bytes()) == (config, record)

    # what the folder keeps is a study file too, and gives the same
    assert call(monkeypatch, "study", "run/config.toml", "--out", "again") == 0
    assert table("again") == before and Path("again/config.toml").read_bytes() == config


@pytest.mark.parametrize("words", [["--seed", "1"], ["--num-replicates", "5"], ["--guide", "prior"], ["--scale", "2"]])
def test_a_run_with_other_settings_is_not_gone_on_with(words: list[str], tiny: str) -> None:
    study = make_study(tiny)
    folder = create_run_folder(study.name, config=study.config(), command="x", seed=0, out=Path("run"))
    assert open_run_folder(study.name, config=asked(tiny, []).config(), out=Path("run")) == folder
    with pytest.raises(StudyError, match="with other settings") as caught:
        open_run_folder(study.name, config=asked(tiny, words).config(), out=Path("run"))
    assert "a run of study 'tiny'" in str(caught.value)
    with pytest.raises(StudyError, match="another study"):
        open_run_folder("another", config=study.config(), out=Path("run"))


def test_the_command_refuses_to_go_on_with_other_settings(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tiny)
    create_run_folder(study.name, config=study.config(), command="x", seed=0, out=Path("run"))
    assert call(monkeypatch, "study", tiny, "--out", "run", "--resume", "--seed", "1") == 2
    assert "other settings" in capsys.readouterr().err
    assert sorted(path.name for path in Path("run").iterdir()) == ["config.toml", "run.json"]


def test_what_does_not_fit_ends_the_study_or_is_named(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(tiny).write_text(MISFIT, "utf-8")
    assert call(monkeypatch, "study", tiny, "--out", "one", "--num-particles", "2") == 2
    err = capsys.readouterr().err
    assert "reparameterized" in err and "by --skip-invalid" in err and not Path("one/table.csv").exists()
    assert call(monkeypatch, "study", tiny, "--out", "two", "--num-particles", "2", "--skip-invalid") == 0
    assert "skipped: reparameterized, K = 2: " in capsys.readouterr().out
    assert {row["estimator"] for row in table("two")} == {"conditional-is"}
    found: dict[str, Any] = json.loads(Path("two/result.json").read_text("utf-8"))
    assert [each["cells"] for each in found["skipped"]] == ["reparameterized, K = 2"]
