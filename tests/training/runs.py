"""Runs of a few dozen steps, and an environment that goes wrong when it is told to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from latentpg.training import TrainingConfig, resolve

SMALL: dict[str, Any] = {
    "env": "CartPole-v1",
    "num_envs": 2,
    "num_steps": 16,
    "num_epochs": 2,
    "batch_size": 16,
    "hidden": [8],
    "num_particles": 3,
    "total_timesteps": 160,
    "eval_every": 64,
    "eval_episodes": 4,
    "checkpoint_every": 32,
    "anneal": True,
    "anneal_clip": True,
    "normalize_observations": True,
    "normalize_reward": True,
}
"""Options of a run of five updates of 32 steps each."""


def small(**changes: object) -> TrainingConfig:
    return resolve({**SMALL, **changes})


def words(**changes: object) -> list[str]:
    """Spell those options as a command line does."""
    spelled = ["--no-tuned"]
    for name, value in {**SMALL, **changes}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            spelled.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            spelled += [flag, *map(str, value if isinstance(value, list) else [value])]
    return spelled


def after(calls: int, number: int = 15) -> Callable[[], int | None]:
    """Ask to stop from a call on."""
    asked = 0

    def stop() -> int | None:
        nonlocal asked
        asked += 1
        return number if asked > calls else None

    return stop


class Faulty(gymnasium.Env):
    """Episodes of five steps whose reward is ``bad`` from the ``start``-th step of this member on."""

    observation_space = spaces.Box(-10, 10, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, bad: float = 1e38, start: int = 40) -> None:
        self.bad, self.start, self.steps, self.age = bad, start, 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps, self.age = self.steps + 1, self.age + 1
        reward = self.bad if self.steps >= self.start else 1.0
        return np.full(1, self.age, np.float32), reward, self.age == 5, False, {}


def register_faulty(env_id: str = "Faulty-v0", *, bad: float = 1e38, start: int = 40) -> str:
    def make(**given: Any) -> gymnasium.Env:  # noqa: ANN401 (what Gymnasium hands on)
        return Faulty(bad, start)

    gymnasium.register(env_id, entry_point=make)
    return env_id


def no_figure(*given: object, **named: object) -> list[Path]:
    """Take the place of drawing, which is half the time of a run this short."""
    return []


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
