"""Runs of a few dozen steps, and an environment that goes wrong when it is told to."""

from collections.abc import Callable, Mapping
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


SHARED: dict[str, Any] = {
    name: SMALL[name] for name in ("env", "num_envs", "batch_size", "hidden", "num_particles", "eval_episodes")
}
"""Those of them that every algorithm has."""

OF_ALGORITHM: dict[str, dict[str, Any]] = {
    "reinforce": {"num_episodes": 3, "baseline": "state-value", "value_epochs": 2, "total_timesteps": 250},
    "a2c": {"num_steps": 8, "normalize_reward": True, "total_timesteps": 96},
    "online-actor-critic": {"num_steps": 8, "actor_trace_decay": 0.5, "total_timesteps": 96},
    "ppo": {"num_steps": 16, "num_epochs": 2, "normalize_reward": True, "anneal_clip": True, "total_timesteps": 192},
    "grpo": {
        "num_groups": 1, "group_size": 3, "num_epochs": 2, "kl_coefficient": 0.1, "reference_every": 2,
        "anneal_clip": True, "total_timesteps": 300,
    },
}  # fmt: skip
"""Options of a short run of each algorithm, with whatever it remembers from one update to the next."""


def shortly(algo: str, **changes: object) -> dict[str, Any]:
    """Return the options of a short run of an algorithm, with a guide and a normaliser to remember too."""
    common = {"proposal": "guide", "normalize_observations": True, "anneal": True, "checkpoint_every": 48}
    return {**SHARED, **common, "algo": algo, **OF_ALGORITHM[algo], **changes}


def words(**changes: object) -> list[str]:
    """Spell those options as a command line does."""
    return spelled({**SMALL, **changes})


def spelled(options: Mapping[str, object]) -> list[str]:
    """Spell options as a command line does."""
    spelled = ["--no-tuned"]
    for name, value in options.items():
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
