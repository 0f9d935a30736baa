"""Policies, rows, particles and statistics are where the policy is: on a card that is pretended, and on a real one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentpg.errors import OptionError
from latentpg.numerics.rng import seeded
from latentpg.runs import newest_checkpoint
from latentpg.training import begin_run, prepared, train
from latentpg.training.commands import evaluate_command, resume_command, train_command
from tests.learners.pretended_card import on_the_pretended_card
from tests.training.runs import OF_ALGORITHM, after, no_figure, shortly, small, spelled, words

LEARNERS = "tests.learners.pretended_card"
on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no graphics card")


@pytest.mark.production
def test_nothing_is_made_elsewhere() -> None:
    """Torch refuses to mix a device's tensors with the processor's, so an update that ran had all in one place."""
    assert "ok  grpo" in on_the_pretended_card(LEARNERS, "grpo")


@pytest.mark.slow
@pytest.mark.production
def test_nothing_is_made_elsewhere_by_any_learner() -> None:
    assert on_the_pretended_card(LEARNERS).count("ok  ") == 9


@pytest.mark.production
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
@pytest.mark.parametrize("command", ["train", "seeds", "resume", "evaluate"])
def test_every_command_says_that_there_is_no_card(command: str, tmp_path: Path) -> None:
    run, asked = tmp_path / "run", ["--device", "cuda"]
    if command in ("resume", "evaluate"):
        assert train_command([*words(total_timesteps=32, eval_every=1000), "--out", str(run)]) == 0
    with pytest.raises(OptionError, match="no graphics card"):
        match command:
            case "train":
                train_command([*words(), *asked, "--out", str(run)])
            case "seeds":
                train_command([*words(), *asked, "--seeds", "0:2", "--out", str(run)])
            case "resume":
                resume_command([str(run), *asked])
            case "evaluate":
                evaluate_command([str(run), *asked])
    assert run.exists() == (command in ("resume", "evaluate"))  # nothing was begun


def test_a_run_that_goes_on_on_another_device_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    config, out = small(total_timesteps=64), tmp_path / "run"
    with prepared(config) as built:
        train(config, built, begin_run(config, out=out), stop=after(1))
    saved = newest_checkpoint(out / "checkpoints")
    assert "device" not in saved.facts  # which the processor is, unless another is told of
    elsewhere = replace(saved, facts={**saved.facts, "device": "cuda"})
    with prepared(config) as built:
        outcome = train(config, built, out, saved=elsewhere)
    assert outcome.inexact == "at 32 steps: went on on cpu, where sums are taken in another order than on cuda"
    assert json.loads((out / "result.json").read_text())["exact_resume"] is False


@on_a_card
@pytest.mark.parametrize("algo", list(OF_ALGORITHM))
def test_every_learner_trains_on_a_card_and_goes_on_there_and_here(algo: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train_command([*spelled(shortly(algo)), "--device", "cuda", "--out", str(out)]) == 0
    assert evaluate_command([str(out), "--episodes", "4", "--device", "cuda"]) == 0
    assert evaluate_command([str(out), "--episodes", "4"]) == 0
    assert newest_checkpoint(out / "checkpoints").facts["device"] == "cuda"


@on_a_card
def test_a_cards_stream_is_scoped_too() -> None:
    outside = torch.cuda.get_rng_state()
    with seeded(3):
        first = torch.randn(4, device="cuda")
    with seeded(3):
        assert torch.equal(first, torch.randn(4, device="cuda"))
    assert torch.equal(outside, torch.cuda.get_rng_state())
