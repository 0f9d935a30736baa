"""Checkpoints whose digests are right and whose content no run has written."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from latentpg.errors import CheckpointError, LatentPGError
from latentpg.runs import newest_checkpoint, save_checkpoint
from latentpg.training import begin_run, prepared, train
from latentpg.training.commands import evaluate_command, resume_command
from latentpg.training.facts import check_facts
from tests.training.runs import after, files_of, no_figure, small

RIGHT = {"seconds": 2.5, "evaluation": {"eval/mean_reward": -math.inf}, "best": -3.0, "best_steps": 64}


def test_what_a_run_writes_is_taken() -> None:
    check_facts(RIGHT)
    check_facts({**RIGHT, "seconds": 0, "best": -math.inf, "inexact": "", "config": {}, "updates": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", None),
        ("seconds", -1.0),
        ("seconds", math.inf),
        ("evaluation", []),
        ("evaluation", {"a": "b"}),
        ("best", "much"),
        ("best", True),
        ("best_steps", -1),
        ("best_steps", 1.5),
        ("best_steps", 10**19),
        ("inexact", 3),
    ],
)
def test_what_none_writes_is_refused_by_its_name(name: str, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    with pytest.raises(CheckpointError, match=f"`{name}` among its facts"):
        check_facts({**RIGHT, name: value})


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"`{name}` among its facts"):
        check_facts({other: value for other, value in RIGHT.items() if other != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent.model.exp_avg.prior.net.0.weight", torch.zeros(7)),
        ("num_timesteps", torch.zeros(3, dtype=torch.int64)),
        ("collector.reset_seed", torch.full((2,), -1)),
    ],
)
def test_a_state_that_no_learner_can_take_up_is_refused_and_nothing_is_written(
    name: str, value: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    folder, config = tmp_path / "run", small()
    with prepared(config) as built:
        train(config, built, begin_run(config, out=folder), stop=after(1))
    saved = newest_checkpoint(folder / "checkpoints")
    state = dict(saved.state)
    name = next((each for each in state if each.startswith("agent.model.exp_avg.")), "") if "exp_avg" in name else name
    assert name in state
    save_checkpoint(folder / "checkpoints", {**state, name: value}, saved.facts, step=saved.step + 1)
    before = files_of(folder)
    with pytest.raises(LatentPGError):
        resume_command([str(folder)])
    assert files_of(folder) == before


def test_a_policy_that_is_not_the_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    folder, config = tmp_path / "run", small()
    with prepared(config) as built:
        train(config, built, begin_run(config, out=folder), stop=after(1))
    saved = newest_checkpoint(folder / "checkpoints")
    less = {name: value for name, value in saved.state.items() if not name.startswith("agent.policy.prior")}
    assert len(less) < len(saved.state)
    save_checkpoint(folder / "checkpoints", less, saved.facts, step=saved.step + 1)
    with pytest.raises(CheckpointError, match="its state is not what this run would have written"):
        evaluate_command([str(folder), "--episodes", "4"])
