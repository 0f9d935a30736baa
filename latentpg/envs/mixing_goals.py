r"""``latentpg/MixingGoals-v0``: nothing to see, and reward only for goals that were not reached lately.

An action is a point in the plane. Four goals lie at (0.7, 0), (0, 0.7), (-0.7, 0) and (0, -0.7); an action within 0.2
of one in both coordinates reaches it. Reaching a goal pays 1 unless one of the last ``memory`` = 3 actions reached the
same goal, paid or not. The observation is a constant 0 and the episode has 32 steps: a policy cannot tell what it did
before, and whoever wants the reward must mix.

A policy without memory that reaches goal i with probability :math:`p_i` at each step is paid, in expectation,

.. math:: J(p) = \sum_{t=0}^{31} \sum_i p_i (1-p_i)^{\min(t, 3)},

which is greatest at :math:`p_i = 1/4`: :func:`expected_return` gives 14.546875. One goal alone pays 1. The best
diagonal Gaussian has 5.85 (:func:`best_gaussian_return`, a search on a grid): narrow in one coordinate and as wide in
the other as two goals are apart. A policy that remembered, and went round, would have 32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from numpy.typing import NDArray

from latentpg.envs.dynamics import DynamicsEnv, DynamicsVectorEnv, constant_observation
from latentpg.errors import OptionError

GOALS = ((0.7, 0.0), (0.0, 0.7), (-0.7, 0.0), (0.0, -0.7))
"""Where the goals are, in the plane of actions."""

REACH = 0.2
"""How near, in each coordinate, counts as reached."""

EPISODE_STEPS = 32
"""Steps of an episode."""


@dataclass(frozen=True)
class MixingGoals:
    """Dynamics; the state is, for each goal, how many steps ago it was reached (``memory`` where longer or never)."""

    memory: int = 3

    def __post_init__(self) -> None:
        """Check the memory."""
        if self.memory < 0:
            raise OptionError("MixingGoals()", "`memory`", expected="an integer >= 0", got=repr(self.memory), fix="3")

    @property
    def observation_space(self) -> spaces.Box:
        """A constant."""
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Points of the plane."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 4"]:
        """Begin with no goal reached."""
        return np.full(len(GOALS), float(self.memory))

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Pay for what was not reached in the last ``memory`` steps."""
        reached = reached_goal(action)[:, None] == np.arange(len(GOALS))
        reward = (reached & (state >= self.memory)).any(1)
        ago = np.where(reached, 0.0, np.minimum(state + 1.0, self.memory))
        return ago, reward.astype(np.float64), np.zeros(len(state), dtype=np.bool_)

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show nothing."""
        return constant_observation(state)


def reached_goal(action: Float[NDArray[np.floating[Any]], "N 2"]) -> Int[NDArray[np.int64], " N"]:
    """Return the goal that each action reaches, or -1.

    >>> reached_goal(np.array([[0.6, 0.1], [0.0, 0.0]])).tolist()
    [0, -1]
    """
    distance = np.abs(action.astype(np.float64)[:, None] - np.array(GOALS)).max(-1)
    return np.where(distance.min(1) <= REACH, distance.argmin(1), -1)


def expected_return(chance: Float[NDArray[np.float64], "M 4"], *, memory: int = 3) -> Float[NDArray[np.float64], " M"]:
    """Compute J exactly for policies without memory that reach goal i with probability ``chance[:, i]``.

    >>> expected_return(np.array([[0.25] * 4, [1.0, 0, 0, 0]])).tolist()
    [14.546875, 1.0]
    """
    total = np.zeros_like(chance)
    for t in range(EPISODE_STEPS):
        total += chance * (1 - chance) ** min(t, memory)
    return total.sum(-1)


def gaussian_chance(
    mean: Float[NDArray[np.float64], "M 2"], std: Float[NDArray[np.float64], "M 2"]
) -> Float[NDArray[np.float64], "M 4"]:
    """Compute with which probability an action from each of M diagonal Gaussians reaches each goal."""
    edges = (np.array(GOALS)[:, None] + np.array([[-REACH], [REACH]]) - mean[..., None, None, :]) / std[
        ..., None, None, :
    ]
    below = 0.5 * _erfc(-edges / math.sqrt(2))
    return (below[..., 1, :] - below[..., 0, :]).prod(-1)


def best_gaussian_return(*, resolution: int = 21) -> float:
    """Search the best return of any diagonal Gaussian on a grid of means and (logarithms of) standard deviations."""
    means, deviations = np.linspace(0.0, 1.0, resolution), np.geomspace(0.03, 2.0, resolution)
    x, y, a, b = (axis.reshape(-1) for axis in np.meshgrid(means, means, deviations, deviations))
    return float(expected_return(gaussian_chance(np.stack([x, y], -1), np.stack([a, b], -1))).max())


def _erfc(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.erfc(torch.from_numpy(x)).numpy()


def make_env(*, memory: int = 3) -> DynamicsEnv:
    """Make one member, without a time limit."""
    return DynamicsEnv(MixingGoals(memory))


def make_vector_env(*, num_envs: int, max_episode_steps: int = EPISODE_STEPS, memory: int = 3) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(MixingGoals(memory), num_envs=num_envs, max_episode_steps=max_episode_steps)
