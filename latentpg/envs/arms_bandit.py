"""``latentpg/ArmsBandit-v0``: one step, six arms, three of them equally good.

Arms 0, 2 and 4 pay 1, arms 1 and 5 pay 0.5, arm 3 pays 0, plus Gaussian noise of standard deviation ``reward_noise``, 0
unless said otherwise. The observation is a constant 0. The optimal return is 1, at any mixture of the three good arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray

from latentpg.envs.dynamics import DynamicsEnv, DynamicsVectorEnv, constant_observation
from latentpg.envs.noise import add_noise

PAYS = (1.0, 0.5, 1.0, 0.0, 1.0, 0.5)
"""What each arm pays on average."""

OPTIMAL_RETURN = 1.0
"""The best return."""


@dataclass(frozen=True)
class ArmsBandit:
    """Dynamics; there is no state, but a row a member."""

    reward_noise: float | int = 0.0

    @property
    def observation_space(self) -> spaces.Box:
        """A constant."""
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        """An arm."""
        return spaces.Discrete(len(PAYS))

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 1"]:
        """Begin."""
        return np.zeros(1)

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Pay, and end."""
        return state, add_noise(np.array(PAYS)[action], self.reward_noise, noise), np.ones(len(state), dtype=np.bool_)

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show nothing."""
        return constant_observation(state)


def make_env(*, reward_noise: float | int = 0.0) -> DynamicsEnv:
    """Make one member."""
    return DynamicsEnv(ArmsBandit(reward_noise))


def make_vector_env(*, num_envs: int, max_episode_steps: int = 1, reward_noise: float | int = 0.0) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(ArmsBandit(reward_noise), num_envs=num_envs, max_episode_steps=max_episode_steps)
