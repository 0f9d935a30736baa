"""Cloning, what is measured of it and demonstrations of it, on a card that is pretended, and on a real one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentpg.cloning import begin_run, clone, prepared
from latentpg.cloning.commands import evaluate_run, imitate_command, resume_run
from latentpg.errors import LatentPGError, OptionError
from latentpg.imitation import FitRows, point_rows
from latentpg.programs import Span
from latentpg.recording import record_command
from latentpg.runs import newest_checkpoint
from latentpg.training.commands import train_command
from tests.cloning.pretended_card import FINE_TUNED, FITTED, MEASURED, RECORDED
from tests.cloning.runs import EPISODE, OF_OBJECTIVE, run, small, words
from tests.learners.pretended_card import on_the_pretended_card
from tests.training.runs import after, spelled

CLONING = "tests.cloning.pretended_card"
META = torch.device("meta")
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics card")
without_a_card = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
pytestmark = pytest.mark.production  # whole runs, and processes of their own

COMMANDS: dict[str, Callable[[Path], int]] = {
    "imitate": lambda run: imitate_command([*words(), "--device", "cuda", "--out", str(run)]),
    "imitate --seeds": lambda run: imitate_command([*words(), "--device=cuda", "--seeds", "0:2", "--out", str(run)]),
    "resume": lambda run: resume_run([str(run), "--device", "cuda"]),
    "evaluate": lambda run: evaluate_run([str(run), "--device", "cuda"]),
    "record": lambda run: record_command(
        [*f"--env latentpg/Routes-v0 --expert {run} --device cuda".split(), "--out", str(run.parent / "shown.npz")]
    ),
    "train --from": lambda run: train_command(
        ["--from", str(run), "--device", "cuda", "--out", str(run.parent / "tuned")]
    ),
}
"""Every command of cloning and recording with a card, on a run's folder."""


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stop a run after its first epoch."""
    folder = tmp_path_factory.mktemp("cloned") / "run"
    run(small(policy="plain", objective="exact", rollouts=0), folder, stop=after(1))
    return folder


def test_nothing_is_made_elsewhere() -> None:
    """A latent of an episode with a matched prior, and a run that begins there and ends here."""
    assert on_the_pretended_card(CLONING, "elbo", "a run").count("ok  ") == 2


@pytest.mark.slow
def test_nothing_is_made_elsewhere_by_any_objective_or_measure() -> None:
    number = len(FITTED) + len(MEASURED) + len(RECORDED) + len(FINE_TUNED) + 1
    assert on_the_pretended_card(CLONING).count("ok  ") == number


def test_every_objective_is_fitted_there() -> None:
    assert {options["objective"] for options in FITTED.values() if "objective" in options} == OF_OBJECTIVE.keys()


@without_a_card
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_that_there_is_no_card(command: str, cloned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" if command.startswith("imitate") else cloned
    before = sorted(cloned.parent.rglob("*"))
    with pytest.raises(OptionError, match="no graphics card"):
        COMMANDS[command](folder)
    assert sorted(cloned.parent.rglob("*")) == before and not any(tmp_path.iterdir())


def test_a_device_that_nobody_knows_is_refused(cloned: Path) -> None:
    with pytest.raises(OptionError, match="unknown device"):
        resume_run([str(cloned), "--device", "tpu"])


def test_what_workers_cannot_share_out_is_refused(
    cloned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    commands: dict[str, Callable[[], int]] = {
        "latentpg imitate": lambda: imitate_command([*words(), "--out", str(tmp_path / "run")]),
        "latentpg resume of a cloning run": lambda: resume_run([str(cloned)]),
        "latentpg evaluate": lambda: evaluate_run([str(cloned)]),
        "latentpg record": lambda: record_command(["--env", "latentpg/Routes-v0", "--out", str(tmp_path / "a.npz")]),
    }
    for name, command in commands.items():
        with pytest.raises(OptionError, match=f"{name}: it is nothing that workers of torchrun share out"):
            command()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("expert", ["scripted", "my_experts:make"])
def test_an_expert_without_a_network_has_no_device(expert: str, tmp_path: Path) -> None:
    asked = ["--env", "latentpg/Routes-v0", "--expert", expert, "--device", "cuda", "--out", str(tmp_path / "a.npz")]
    with pytest.raises(LatentPGError, match="`--device` of an expert that computes with no network of ours"):
        record_command(asked)
    assert not any(tmp_path.iterdir())


def test_a_run_that_goes_on_on_another_device_says_so(
    cloned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latentpg.cloning.loop.draw_figures", lambda *given: [])
    config, folder = small(policy="plain", objective="exact", num_epochs=3, rollouts=0), tmp_path / "run"
    with prepared(config) as built:
        clone(built, begin_run(config, out=folder, built=built), stop=after(1))
    saved = newest_checkpoint(folder / "checkpoints")
    assert "device" not in saved.facts  # which the processor is, unless another is told of
    assert json.loads((folder / "result.json").read_text())["exact_resume"] is True
    with prepared(config) as built:
        outcome = clone(built, folder, saved=replace(saved, facts={**saved.facts, "device": "cuda"}), stop=after(1))
    why = "at epoch 1: went on on cpu, where sums are taken in another order than on cuda"
    assert outcome.inexact == why and outcome.epochs == 2
    assert resume_run([str(folder)]) == 0  # a third time, where it was: what was inexact stays so
    assert f"exact_resume: false, because {why}\n" in capsys.readouterr().out
    told = json.loads((folder / "result.json").read_text())
    assert told["finished"] and (told["exact_resume"], told["exact_resume_why"]) == (False, why)
    assert "device" not in (folder / "config.toml").read_text()


@pytest.mark.parametrize("spans", [False, True])
def test_rows_move_whole(spans: bool) -> None:
    obs = torch.zeros(3, 4, 2)
    rows = FitRows(Span(obs, obs[..., 0] == 0) if spans else obs, obs, torch.arange(3)).to(META)
    parts = rows.obs if isinstance(rows.obs, Span) else (rows.obs,)
    assert isinstance(rows.obs, Span) == spans and {part.device for part in parts} == {META}
    assert rows.action.device == rows.episode.device == rows.device == META and rows.size == 3
    assert point_rows(torch.zeros(3, 1, device=META)).episode.device == META


@on_a_card
@pytest.mark.parametrize("name", [*FITTED, *MEASURED])
def test_every_fit_runs_on_a_card_and_is_measured_there_and_here(name: str, tmp_path: Path) -> None:
    out, options = tmp_path / "run", {**FITTED, **MEASURED}[name]
    asked = words(**{**options, "num_epochs": 2, "rollouts": 4})
    assert imitate_command([*asked, "--device", "cuda", "--out", str(out)]) == 0
    assert newest_checkpoint(out / "checkpoints").facts["device"] == "cuda"
    assert evaluate_run([str(out), "--episodes", "4", "--device", "cuda"]) == 0
    assert evaluate_run([str(out), "--episodes", "4"]) == 0


@on_a_card
def test_a_card_clones_in_parts_as_at_once(tmp_path: Path) -> None:
    config = small(**EPISODE, num_epochs=2, checkpoint_every=1, rollouts=0)
    found = []
    for stops in ((), (1,)):
        folder = tmp_path / str(len(stops))
        with prepared(config, device=torch.device("cuda", 0)) as built:
            clone(built, begin_run(config, out=folder, built=built), stop=after(stops[0] if stops else 100))
        if stops:
            assert resume_run([str(folder), "--device", "cuda"]) == 0
        assert json.loads((folder / "result.json").read_text())["exact_resume"]
        found.append(newest_checkpoint(folder / "checkpoints").state)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@on_a_card
@pytest.mark.parametrize("name", list(RECORDED))
def test_a_card_demonstrates(name: str, tmp_path: Path) -> None:
    run(small(**RECORDED[name], num_epochs=1, rollouts=0), tmp_path / "run")
    asked = ["--env", "latentpg/Routes-v0", "--expert", str(tmp_path / "run"), "--episodes", "4", "--device", "cuda"]
    assert record_command([*asked, "--out", str(tmp_path / "shown.npz")]) == 0


@on_a_card
@pytest.mark.parametrize("algo", list(FINE_TUNED))
def test_training_begins_with_a_cloned_policy_on_a_card(algo: str, tmp_path: Path) -> None:
    run(small(**EPISODE, num_epochs=1, rollouts=0), tmp_path / "run")
    options = {"algo": algo, "num_envs": 2, "eval_episodes": 4, "total_timesteps": 64, **FINE_TUNED[algo]}
    asked = ["--from", str(tmp_path / "run"), "--device", "cuda", *spelled(options)]
    assert train_command([*asked, "--out", str(tmp_path / "tuned")]) == 0
