"""``latentpg imitate``, and ``evaluate`` and ``resume`` on what it left, from words to what is printed and kept."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import latentpg
from latentpg.cloning import prepared
from latentpg.cloning.commands import evaluate_run, imitate_command, resume_run
from latentpg.cloning.folders import open_run
from latentpg.errors import OptionError
from latentpg.training import read_metrics
from tests.cloning.runs import EPISODE, file_of_steps, words

pytestmark = pytest.mark.production  # whole runs: minutes with every annotation checked

ROOT = Path(latentpg.__file__).parents[1]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Run the command once, and return its folder and what it said on both streams."""
    folder = tmp_path_factory.mktemp("cloned") / "run"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert imitate_command([*words(**EPISODE), "--out", str(folder)]) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def cloned(said: tuple[Path, str, str]) -> Path:
    return said[0]


@pytest.fixture
def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.cloning.loop.draw_figures", lambda *given: [])


def test_a_run_leaves_everything_behind_and_says_where(said: tuple[Path, str, str]) -> None:
    folder, out, err = said
    assert "finished after 4 of 4 epochs" in out and "rows, about" in err and "held out" in err
    paths = re.findall(r"^(?:metrics|figure |report |saved  |run    ) (.+)$", out, re.M)
    assert len(paths) == 9 and all(Path(path).exists() for path in paths)
    assert f"next: latentpg evaluate {folder}\n" in out
    assert f"next: latentpg train --env latentpg/Routes-v0 --from {folder}\n" in out
    for name in ("config.toml", "run.json", "split.json", "normalisation.json", "result.json", "metrics.jsonl"):
        assert (folder / name).is_file()
    assert len(read_metrics(folder)) == 4 and latentpg.__version__ in (folder / "run.json").read_text("utf-8")
    assert {path.suffix for path in (folder / "figures").glob("samples.*")} == {".png", ".svg", ".csv"}
    told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert told["finished"] and told["likelihood"]["kind"] == "exact" and told["episodes"]["test"] == 6
    assert told["rollouts"]["episodes"] == 8 and sum(told["rollouts"]["successes_by_mode"]) <= 8


def test_parts_of_the_data_are_kept_by_number(cloned: Path) -> None:
    split = json.loads((cloned / "split.json").read_text(encoding="utf-8"))
    parts = [split[name] for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [12, 6, 6]
    assert sorted(number for part in parts for number in part) == list(range(24))
    with prepared(open_run(cloned, trusted=False).config) as built:
        assert [each.tolist() for each in built.split.episodes] == parts
        kept = json.loads((cloned / "normalisation.json").read_text(encoding="utf-8"))
        np.testing.assert_array_equal(kept["obs_mean"], built.split.train.obs.double().mean(0).numpy())


def test_the_prior_has_a_component_for_each_training_episode(cloned: Path) -> None:
    assert open_run(cloned, trusted=False).config.flat()["num_prior_components"] == 12


def test_the_report_needs_nothing_beside_it(cloned: Path) -> None:
    page = (cloned / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 5 and "$" not in re.sub(r"<style>.*?</style>", "", page)
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in ("Held-out likelihood", "Use of the latent", "Roll-outs", "Jacobian", "log K", "no floor"):
        assert text in page
    told = json.loads((cloned / "result.json").read_text(encoding="utf-8"))
    assert f"{told['likelihood']['a_dimension']['value']:.3f}" in page
    assert "latentpg imitate --data scripted:latentpg/Routes-v0" in page


def test_an_evaluation_is_printed_and_kept(cloned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(cloned), "--episodes", "5", "--acting", "decoder-mean", "--no-likelihood", "--seed", "7"]
    assert evaluate_run(asked) == 0
    out = capsys.readouterr().out
    assert "5 roll-outs, decoder-mean" in out and "success" in out
    file = Path(out.split("written to ")[1].strip())
    before = file.read_bytes()
    assert json.loads(before)["rollouts"]["episodes"] == 5
    assert evaluate_run(asked) == 0 and file.read_bytes() == before


def test_a_whole_evaluation_measures_the_likelihood_again(cloned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_run([str(cloned), "--episodes", "4"]) == 0
    out = capsys.readouterr().out
    again = json.loads(Path(out.split("written to ")[1].strip()).read_text(encoding="utf-8"))
    first = json.loads((cloned / "result.json").read_text(encoding="utf-8"))
    assert "quadrature" in first["likelihood"]["method"]  # of two dimensions, so that there is nothing to draw
    assert again["likelihood"]["a_row"] == first["likelihood"]["a_row"]
    assert again["rollouts"]["episodes"] == 4 and again["collapse"]["information"] != first["collapse"]["information"]


def test_ensembling_is_for_chunks(cloned: Path) -> None:
    with pytest.raises(OptionError, match="temporal ensembling averages what chunks predicted"):
        evaluate_run([str(cloned), "--acting", "ensembled"])


@pytest.mark.usefixtures("draw_nothing")
def test_chunks_can_be_ensembled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    asked = words(policy="chunk", latent_size=2, chunk_size=4, num_action_steps=2, num_epochs=1, rollouts=0)
    assert imitate_command([*asked, "--out", str(folder)]) == 0
    assert evaluate_run([str(folder), "--acting", "ensembled", "--no-likelihood", "--episodes", "4"]) == 0
    assert "4 roll-outs, ensembled" in capsys.readouterr().out


@pytest.mark.usefixtures("draw_nothing")
def test_data_without_an_environment_have_no_roll_outs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = file_of_steps(tmp_path / "shown.npz")
    folder = tmp_path / "run"
    assert imitate_command([*words(data=str(file), policy="gaussian"), "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "roll-outs" not in out and "latentpg train" not in out
    told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert "rollouts" not in told and "quadrature" in told["likelihood"]["measured_by"]
    with pytest.raises(OptionError, match="no environment to act in"):
        evaluate_run([str(folder), "--no-likelihood"])


@pytest.mark.usefixtures("draw_nothing")
def test_several_seeds_are_put_side_by_side_and_are_the_same_in_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    asked = words(num_epochs=1, policy="plain", rollouts=4)
    assert imitate_command([*asked, "--seeds", "3,5", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    table = (folder / "seeds.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in table] == ["seed", "3", "5"]
    values = [
        json.loads((folder / f"seed-{seed}" / "result.json").read_text("utf-8"))["likelihood"]["a_row"]["value"]
        for seed in (3, 5)
    ]
    assert f"nats a row: {sum(values) / 2:.3f}" in out
    before = (folder / "seed-3" / "result.json").read_bytes()
    assert resume_run([str(folder)]) == 0
    assert (folder / "seed-3" / "result.json").read_bytes() == before
    capsys.readouterr()
    apart = tmp_path / "apart"
    assert imitate_command([*asked, "--seeds", "3,5", "--num-workers", "2", "--out", str(apart)]) == 0
    assert capsys.readouterr().err.count("nats a row at best on the validation part") == 2
    assert (apart / "seeds.csv").read_bytes() == (folder / "seeds.csv").read_bytes()
    with pytest.raises(OptionError, match="num_workers"):
        imitate_command([*asked, "--seeds", "3,5", "--num-workers", "0", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_other_runs_go_to_training() -> None:
    with pytest.raises(OptionError, match="the run's folder comes first"):
        evaluate_run([])
    with pytest.raises(OptionError, match="the run's folder comes first"):
        resume_run(["--trust-env"])


@pytest.mark.slow
def test_a_run_stops_on_a_signal_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "latentpg", "imitate", *words(num_epochs=100_000, checkpoint_every=1000)]
    process = subprocess.Popen([*command, "--out", str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or len((folder / "metrics.jsonl").read_bytes()) < 2000:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and f"to go on: latentpg resume {folder}" in out
    assert not json.loads((folder / "result.json").read_text(encoding="utf-8"))["finished"]
