"""Environments that a package registers when it is imported: Push-T where it is installed, and a stand-in for it.

Push-T's actions are places on a table of 512 by 512, and its observations are in float64; both are taken as they are.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from latentpg.data import load_npz
from latentpg.errors import OptionError
from latentpg.policies import MixturePolicy
from latentpg.recording import record_command
from latentpg.rollout import StepCollector, make_envs
from latentpg.training.commands import evaluate_command, resume_command, train_command
from tests.training.runs import no_figure, words

PACKAGE = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Table(gymnasium.Env):
    observation_space = spaces.Box(0.0, np.array([512.0, 512.0, 512.0, 512.0, 6.3]), (5,), np.float64)
    action_space = spaces.Box(0.0, 512.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.uniform(0.0, 6.0, 5)
        self.age = 0
        return self.seen, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.age += 1
        self.seen = np.array([*action, *self.seen[2:]])
        return self.seen, float(action.sum()), self.age == 6, False, {}

gymnasium.register("a_table/Table-v0", entry_point=Table)
"""
STAND_IN = "a_table:a_table/Table-v0"
PUSH_T = "gym_pusht:gym_pusht/PushT-v0"

needs_push_t = pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="needs gym-pusht")


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    for name in ("a_table", "gym_pusht"):
        sys.modules.pop(name, None)  # so that the next import registers again


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_table.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def check_all_commands(env_id: str, folder: Path) -> None:
    """Train, evaluate, resume and record; nothing but the first line's word lets the package be imported."""
    run = folder / "run"
    asked = [*words(env=env_id, total_timesteps=96), "--out", str(run)]
    with pytest.raises(OptionError, match="--trust-env"):
        train_command(asked)
    assert train_command([*asked, "--trust-env"]) == 0
    with pytest.raises(OptionError, match="--trust-env"):
        evaluate_command([str(run), "--episodes", "4"])
    assert evaluate_command([str(run), "--episodes", "4", "--trust-env"]) == 0
    (file,) = (run / "evaluations").iterdir()
    assert len(json.loads(file.read_text(encoding="utf-8"))["returns"]) == 4
    with pytest.raises(OptionError, match="--trust-env"):
        resume_command([str(run)])
    assert resume_command([str(run), "--trust-env"]) == 0
    demos = folder / "demos.npz"
    recorded = ["--env", env_id, "--trust-env", "--expert", str(run), "--episodes", "2", "--out", str(demos)]
    assert record_command(recorded) == 0
    kept = load_npz(demos)
    assert kept.num_episodes == 2 and kept.obs.shape[1] == 5 and kept.obs.dtype == torch.float32
    assert kept.action.shape[1] == 2 and bool(((kept.action >= 0) & (kept.action <= 512)).all())


def test_an_id_with_its_package_goes_through_every_command(stand_in: None, tmp_path: Path) -> None:
    check_all_commands(STAND_IN, tmp_path)


@needs_push_t
def test_push_t_goes_through_every_command(tmp_path: Path) -> None:
    check_all_commands(PUSH_T, tmp_path)


def test_an_id_whose_package_was_not_imported_is_told_how(stand_in: None, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        train_command([*words(env="a_table/Table-v0"), "--out", str(tmp_path / "run")])
    assert "a_table:a_table/Table-v0, which imports the package a_table first" in str(caught.value)
    assert "a_table" not in sys.modules and not (tmp_path / "run").exists()
    with pytest.raises(OptionError, match="Avoiding-v0"):  # of a package that is known a name is suggested
        make_envs("latentpg/Avoid-v0", 1)


@pytest.mark.parametrize("env_id", [STAND_IN, pytest.param(PUSH_T, marks=needs_push_t)])
def test_policy_coordinates_cover_the_table(stand_in: None, env_id: str) -> None:
    envs = make_envs(env_id, 2)
    space = envs.single_action_space
    assert isinstance(space, spaces.Box) and np.all(space.low == 0) and np.all(space.high == 512)
    policy = MixturePolicy(envs.single_observation_space, space)
    taken: list[np.ndarray] = []
    step = envs.step
    envs.step = lambda action: taken.append(action) or step(action)  # type: ignore[method-assign, assignment, func-returns-value]
    rollout = StepCollector(envs, seed=0).collect(policy, num_steps=12)
    drawn = rollout.transitions.action
    # -1 and 1 are the edges of the table, and what is drawn beyond them is carried out at the edge
    expected = (256 + 256 * drawn.double()).clamp(0, 512)
    assert torch.allclose(torch.from_numpy(np.concatenate(taken)).double(), expected, atol=1e-3)
    assert rollout.transitions.obs.dtype == torch.float32 and rollout.transitions.obs.shape == (24, 5)
