r"""``latentpg/PeaksBandit-v0``: one step, one coordinate, three actions that are equally good.

The observation is a constant 0, and an action a in [-1, 1] pays

.. math:: r(a) = \max_c \exp\bigl(-(a-c)^2 / (2\cdot 0.1^2)\bigr),\qquad c\in\{-0.6,\ 0,\ 0.6\},

plus Gaussian noise of standard deviation ``reward_noise``, 0 unless said otherwise. The optimal return is 1, at each of
the peaks and at any mixture of them; a Gaussian policy that is as wide as the peaks are apart is paid for few of its
actions.
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

PEAKS = (-0.6, 0.0, 0.6)
"""The best actions."""

WIDTH = 0.1
"""Standard deviation of each peak."""

OPTIMAL_RETURN = 1.0
"""The best return."""


@dataclass(frozen=True)
class PeaksBandit:
    """Dynamics; there is no state, but a row a member."""

    reward_noise: float | int = 0.0

    @property
    def observation_space(self) -> spaces.Box:
        """A constant."""
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """A number."""
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 1"]:
        """Begin."""
        return np.zeros(1)

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Pay, and end."""
        reward = add_noise(mean_reward(action[:, 0]), self.reward_noise, noise)
        return state, reward, np.ones(len(state), dtype=np.bool_)

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show nothing."""
        return constant_observation(state)


def mean_reward(action: Float[NDArray[np.floating[Any]], " N"]) -> Float[NDArray[np.float64], " N"]:
    """Return what each action pays on average.

    >>> mean_reward(np.array([0.6, 0.3])).round(4).tolist()
    [1.0, 0.0111]
    """
    distance = action.astype(np.float64)[:, None] - np.array(PEAKS)
    return np.exp(-(distance**2) / (2 * WIDTH**2)).max(1)


def make_env(*, reward_noise: float | int = 0.0) -> DynamicsEnv:
    """Make one member."""
    return DynamicsEnv(PeaksBandit(reward_noise))


def make_vector_env(*, num_envs: int, max_episode_steps: int = 1, reward_noise: float | int = 0.0) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(PeaksBandit(reward_noise), num_envs=num_envs, max_episode_steps=max_episode_steps)
