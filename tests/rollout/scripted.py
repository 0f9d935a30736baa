"""Environments whose course is written down, for the tests of rollouts."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Scripted(gymnasium.Env[Any, Any]):
    """Ends after a number of steps drawn from its seed, below 6, and shows (start, step, noise).

    The reward is the step's number. ``noise`` is a draw of each step from ``np_random``. With ``length`` the number of
    steps is that one; 0 is an episode without an end. ``bad`` maps a step to what is observed or paid there.
    """

    def __init__(
        self,
        *,
        length: int | None = None,
        truncates: bool = False,
        bad_obs: float | None = None,
        bad_reward: float | None = None,
        action_space: spaces.Space[Any] | None = None,
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.length, self.truncates = length, truncates
        self.bad_obs, self.bad_reward = bad_obs, bad_reward
        self.seeds: list[int | None] = []
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.start = float(self.np_random.integers(10**6))
        drawn = int(self.np_random.integers(1, 6))
        self.last = drawn if self.length is None else self.length
        self.steps, self.over, self.noise = 0, False, 0.0
        return self._look(), {}

    def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.over, "a finished member was stepped"
        self.steps += 1
        self.noise = float(self.np_random.random())
        self.over = self.steps == self.last
        reward = float(self.steps) if self.bad_reward is None or self.steps != 2 else self.bad_reward
        ended = self.over
        return self._look(), reward, ended and not self.truncates, ended and self.truncates, {}

    def _look(self) -> object:
        first = self.start if self.bad_obs is None or self.steps != 2 else self.bad_obs
        return np.array([first, self.steps, self.noise], dtype=np.float32)


def vectorize(makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> SyncVectorEnv:
    """Put members side by side, to be reset by the caller."""
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)


def scripted(
    num_envs: int, *, length: int | None = None, truncates: bool = False, action_space: spaces.Space[Any] | None = None
) -> SyncVectorEnv:
    """Make N members of one kind."""
    return vectorize(
        [lambda: Scripted(length=length, truncates=truncates, action_space=action_space) for _ in range(num_envs)]
    )


def members(envs: SyncVectorEnv) -> list[Scripted]:
    """Return the members themselves."""
    return [env.unwrapped for env in envs.envs]  # type: ignore[misc]
