"""Bad input by the command: one message and status 2, and what was there stays: parameters and files."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from torch import Tensor

from latentpg import cli
from latentpg.learners import Agent
from latentpg.learners.scoring import Rows, Scorer
from latentpg.rollout import make_envs
from latentpg.runs import load_checkpoint, newest_checkpoint
from latentpg.training import read_metrics
from tests.learners.small import Far
from tests.training.runs import SMALL, no_figure, shortly, spelled

Call = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs the command, and gives its exit status and what it wrote on the error stream."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["latentpg", *words])
        status = cli.main()
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return status, err

    return run


class Odd(gymnasium.Env[Any, Any]):
    """Episodes of five steps, or without an end; from the ``start``-th step on something is wrong."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, what: str, bad: float, start: int, action_space: spaces.Space[Any]) -> None:
        self.what, self.bad, self.start, self.steps, self.action_space = what, bad, start, 0, action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        self.steps, self.age = self.steps + 1, self.age + 1
        goes_wrong = self.steps >= self.start
        obs = np.full(1, self.bad if goes_wrong and self.what == "observation" else self.age, np.float32)
        reward = self.bad if goes_wrong and self.what == "reward" else 1.0
        return obs, reward, self.age == 5 and self.what != "no end", False, {}


def odd(what: str = "", bad: float = math.nan, start: int = 40, action_space: spaces.Space[Any] | None = None) -> str:
    def make(**given: Any) -> gymnasium.Env[Any, Any]:  # noqa: ANN401 (what Gymnasium hands on)
        return Odd(what, bad, start, spaces.Discrete(2) if action_space is None else action_space)

    gymnasium.register("Odd-v0", entry_point=make, disable_env_checker=True)
    return "Odd-v0"


# before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "CartPol-v1"}, "did you mean CartPole-v1"),
        ({"env": "NoSuch/Thing-v3"}, "unknown environment"),
        ({"algo": "grop"}, "did you mean grpo?"),
        ({"policy": "mixtur"}, "did you mean mixture?"),
        ({"estimator": "conditional"}, "did you mean conditional-is?"),
        ({"num_componentz": 3}, "did you mean num_components"),
        ({"num_components": 0}, "num_components"),
        ({"video_every": 0}, "`video_every`"),
    ],
    ids=str,
)
def test_names_and_numbers(changes: dict[str, Any], message: str, call: Call, tmp_path: Path) -> None:
    status, err = call("train", *spelled({**SMALL, **changes}), "--out", str(tmp_path / "run"))
    assert status == 2 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "a group of one has nothing to be compared with"),
        ({"group_size": 0}, "an integer >= 2"),
        ({"num_groups": 0}, "an integer >= 1"),
        ({"max_steps": 0}, "an integer >= 1"),
        ({"vectorization_mode": "native"}, "the environments reset themselves"),
    ],
    ids=str,
)
def test_groups_that_cannot_be(changes: dict[str, Any], message: str, call: Call, tmp_path: Path) -> None:
    status, err = call("train", *spelled(shortly("grpo", **changes)), "--out", str(tmp_path / "run"))
    assert status == 2 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("algo", ["ppo", "a2c", "online-actor-critic"])
def test_environments_that_reset_themselves_cannot_be_gone_on_with(algo: str, call: Call, tmp_path: Path) -> None:
    words = spelled(shortly(algo, vectorization_mode="native"))
    status, err = call("train", *words, "--out", str(tmp_path / "run"))
    assert status == 2 and "no checkpoint could say where they stand" in err and "sync" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "space", [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Text(3), spaces.Box(0, 255, (2,), np.uint8)], ids=str
)
@pytest.mark.parametrize("policy", ["mixture", "plain"])
def test_actions_that_no_head_serves(policy: str, space: spaces.Space[Any], call: Call, tmp_path: Path) -> None:
    options = {name: value for name, value in SMALL.items() if name != "num_particles"}
    words = spelled({**options, "env": odd(action_space=space), "policy": policy})
    status, err = call("train", *words, "--out", str(tmp_path / "run"))
    assert status == 2 and "no action head serves it" in err and "Discrete" in err
    assert not list(tmp_path.iterdir())


# while it runs


def held_to_its_checkpoints(folder: Path, message: str) -> None:
    """See that the fault is told, the earlier checkpoint whole, and what was there at the fault finite."""
    fault = json.loads((folder / "fault.json").read_text(encoding="utf-8"))
    assert message in fault["error"]
    saved = newest_checkpoint(folder / "checkpoints")
    dumped = load_checkpoint(next((folder / "fault").glob("step-*")))
    for state in (saved.state, dumped.state):
        assert all(bool(value.isfinite().all()) for value in state.values())
    assert not (folder / "result.json").exists()
    assert read_metrics(folder)[0]["time/total_timesteps"] == 0


@pytest.mark.parametrize("algo", ["reinforce", "a2c", "online-actor-critic", "ppo", "grpo"])
@pytest.mark.parametrize(("what", "bad"), [("observation", math.nan), ("reward", math.inf)])
def test_environments_that_give_what_is_not_finite(
    algo: str, what: str, bad: float, call: Call, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = spelled(shortly(algo, env=odd(what, bad)))
    status, err = call("train", *words, "--out", str(folder))
    assert status == 2 and f"gave a {what} that is not finite" in err
    held_to_its_checkpoints(folder, f"gave a {what} that is not finite")


@pytest.mark.parametrize("algo", ["reinforce", "ppo", "grpo"])
def test_ratios_that_are_not_finite(algo: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    propose, options = Agent.propose, shortly(algo)

    def gone_far(agent: Agent, rows: Rows, log_joint: Tensor) -> Scorer:
        return Far(propose(agent, rows, log_joint), 1000.0)

    monkeypatch.setattr(Agent, "propose", gone_far)
    if algo == "reinforce":
        options |= {"ratio": "step"}
    status, err = call("train", *spelled(options), "--out", str(tmp_path / "run"))
    assert status == 2 and "a ratio is not finite" in err
    held_to_its_checkpoints(tmp_path / "run", "a ratio is not finite")
    first = newest_checkpoint(tmp_path / "run" / "checkpoints").state
    dumped = load_checkpoint(next((tmp_path / "run" / "fault").glob("step-*"))).state
    assert all(torch.equal(first[name], dumped[name]) for name in first if name.startswith("agent."))


@pytest.mark.parametrize("algo", ["reinforce", "a2c", "ppo", "grpo"])
def test_gradients_that_are_not_finite(algo: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bad tensor is named, and nothing has moved since the last checkpoint."""
    gradients = torch.autograd.grad

    def spoiled(*given: Any, **rest: Any) -> tuple[Tensor, ...]:  # noqa: ANN401 (handed on)
        first, second, *others = gradients(*given, **rest)
        return (first, torch.full_like(second, math.nan), *others)

    monkeypatch.setattr(torch.autograd, "grad", spoiled)
    status, err = call("train", *spelled(shortly(algo)), "--out", str(tmp_path / "run"))
    assert status == 2 and "the gradient of" in err and "is not finite" in err
    held_to_its_checkpoints(tmp_path / "run", "the gradient of")
    first = newest_checkpoint(tmp_path / "run" / "checkpoints").state
    dumped = load_checkpoint(next((tmp_path / "run" / "fault").glob("step-*"))).state
    assert all(torch.equal(first[name], dumped[name]) for name in first if name.startswith("agent.policy."))


@pytest.mark.parametrize("algo", ["reinforce", "grpo"])
def test_an_episode_that_never_ends(algo: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training; an evaluation of such an environment would not end either, and is left out here."""
    monkeypatch.setattr("latentpg.training.loop._Run._evaluate", lambda self: {})
    words = spelled(shortly(algo, env=odd("no end"), max_steps=30))
    status, err = call("train", *words, "--out", str(tmp_path / "run"))
    assert status == 2 and "does not end" in err and "max_steps=30" in err and "TimeLimit" in err
    held_to_its_checkpoints(tmp_path / "run", "does not end")


class Deaf(VectorWrapper[Any, Any, Any]):
    """Resets every member, whoever is to be reset."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        return self.env.reset(seed=seed)


@pytest.mark.parametrize("algo", ["reinforce", "a2c", "ppo", "grpo"])
def test_environments_that_ignore_whom_to_reset(
    algo: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(env_id: str, num_envs: int, **rest: Any) -> VectorEnv[Any, Any, Any]:  # noqa: ANN401 (handed on)
        envs = make_envs(env_id, num_envs, **rest)
        return Deaf(envs) if rest else envs  # those that are learnt from

    monkeypatch.setattr(sys.modules["latentpg.training.build"], "make_envs", made)
    status, err = call("train", *spelled(shortly(algo)), "--out", str(tmp_path / "run"))
    assert status == 2 and "ignores `reset_mask`" in err and "make_envs" in err
    held_to_its_checkpoints(tmp_path / "run", "ignores `reset_mask`")


def test_groups_whose_returns_agree_move_nothing(call: Call, tmp_path: Path) -> None:
    """That is no mistake: they are counted, and the run says that it skipped."""
    folder = tmp_path / "run"
    words = spelled(shortly("grpo", env=odd(), total_timesteps=90, kl_coefficient=0.0))
    status, err = call("train", *words, "--out", str(folder))
    assert status == 0, err
    rows = [row for row in read_metrics(folder) if "train/skipped" in row]
    assert rows and all(row["train/skipped"] == 1 and row["train/zero_variance_groups"] == 1 for row in rows)
    last = newest_checkpoint(folder / "checkpoints").state
    first = load_checkpoint(folder / "checkpoints" / "step-0000000000").state
    moved = [n for n in first if n.startswith("agent.") and not torch.equal(first[n], last[n])]
    assert all("encoder" in name or "normalizer" in name for name in moved)


# afterwards


def test_a_run_that_failed_goes_on_from_where_it_was_whole(call: Call, tmp_path: Path) -> None:
    """Once the environment is mended."""
    folder = tmp_path / "run"
    assert call("train", *spelled(shortly("ppo", env=odd("reward"))), "--out", str(folder))[0] == 2
    gymnasium.registry.pop("Odd-v0")
    odd()
    status, err = call("resume", str(folder))
    assert status == 0, err
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["finished"]
