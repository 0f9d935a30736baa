"""The command line: what it prints, what it refuses, and how it ends."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import latentpg
from latentpg import cli
from latentpg.envs import ENV_IDS
from latentpg.estimators import ESTIMATORS, GUIDE_OBJECTIVES
from latentpg.studies import named_studies
from latentpg.training.config import TUNED
from latentpg.training.parts import SELECTORS

ROOT = Path(latentpg.__file__).parents[1]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["latentpg", *words])
    try:
        return cli.main()
    except SystemExit as leave:
        assert isinstance(leave.code, int)
        return leave.code


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("study", "--help"), ("list", "--help")])
def test_help(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *words) == 0
    out, err = capsys.readouterr()
    assert "usage: latentpg" in out and not err


def test_the_help_of_a_study_shows_its_own_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "study", "quickstart", "--help") == 0
    out = capsys.readouterr().out
    for option in ("--out", "--seed", "--num-replicates", "--num-rows", "--num-particles", "--env-id"):
        assert option in out
    assert "CartPole-v1" in out and "1 2 4 8 16 32 64" in out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.split() == ["latentpg", latentpg.__version__]


def test_list_names_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list") == 0
    out = capsys.readouterr().out
    listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in out.splitlines() if line.strip()}
    known = [*ESTIMATORS, *GUIDE_OBJECTIVES, *named_studies(), *ENV_IDS, *(path.stem for path in TUNED.glob("*.toml"))]
    for selector in ("algo", "policy", "estimator"):
        known += SELECTORS[selector]
    assert {*known} <= listed.keys()
    assert all(listed[name] for name in known), "a name without a description"
    assert "latentpg train --env CartPole-v1 --algo grpo" in out
    assert "\\" not in out and ":math:" not in out and "``" not in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["stduy", "quickstart"], "did you mean study?"),
        (["--verson"], "did you mean --version?"),
        (["study"], "score-climbing, snr, span, or a file FILE.toml"),
        (["study", "--seed", "1", "quickstart"], "the study's name comes first"),
        (["study", "quikstart"], "did you mean quickstart?"),
        (["study", "quikstart", "--help"], "did you mean quickstart?"),
        (["study", "quickstart", "--sed=1"], "did you mean --seed"),
        (["study", "quickstart", "--num-replicate", "9"], "did you mean --num-replicates"),
        (["study", "quickstart", "--seed", "one"], "one"),
        (["study", "quickstart", "--seed", "-1"], "an integer >= 0"),
        (["study", "quickstart", "--seed"], "--seed"),
        (["study", "quickstart", "surplus"], "surplus"),
        (["study", "quickstart", "--num-replicates", "1"], "an integer >= 4"),
        (["study", "quickstart", "--num-particles", "0"], "an integer >= 1"),
        (["study", "quickstart", "--env-id", "CartPol-v1"], "did you mean CartPole-v1"),
        (["list", "--all"], "unknown option"),
    ],
)
def test_mistakes_get_one_message_and_status_2(
    words: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert hint in err and "Traceback" not in err and not out
    assert not list(tmp_path.iterdir())  # nothing is left behind


SMALL = ["--num-replicates", "4", "--num-rows", "10", "--num-particles", "1", "2", "--seed", "3"]


def test_a_study_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "study", "quickstart", *SMALL, "--out", "here") == 0
    out, err = capsys.readouterr()
    assert "conditional-is, mixture" in out and "bias K=2" in out
    assert "skipped: reparameterized, K = 1, 2: " in out
    assert "left (" in err  # progress, in plain lines
    paths = [
        Path(line.split(maxsplit=1)[1]) for line in out.splitlines() if line.startswith(("figure", "table", "rep"))
    ]
    assert len(paths) >= 6
    assert all(path.is_absolute() and path.is_file() and path.parent == tmp_path / "here" for path in paths)
    with (tmp_path / "here" / "table.csv").open(encoding="utf-8", newline="") as stream:
        assert {row["num_particles"] for row in csv.DictReader(stream)} == {"", "1", "2"}
    command = "latentpg study quickstart --seed 3 --num-replicates 4 --num-rows 10 --num-particles 1 2"
    assert command in (tmp_path / "here" / "report.html").read_text("utf-8")

    before = (tmp_path / "here" / "run.json").read_bytes()
    assert call(monkeypatch, "study", "quickstart", *SMALL, "--out", "here") == 2
    assert "a run of study 'quickstart'" in capsys.readouterr().err
    assert (tmp_path / "here" / "run.json").read_bytes() == before


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(words: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert call(monkeypatch, "study", "quickstart") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.production
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_during_a_study_leaves_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "latentpg.cli", "study", "quickstart", "--out", "run"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what runs in its background with the signal ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "run.json").exists():  # the cells begin right after
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.rstrip().endswith("interrupted") and "Traceback" not in err
    assert not (tmp_path / "run" / "report.html").exists()
