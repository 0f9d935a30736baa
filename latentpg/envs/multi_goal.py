r"""``latentpg/MultiGoal-v0``: a point in the plane and several goals, all equally good.

The point starts within 0.02 of the origin in each coordinate. An action is a velocity; one longer than 1 is shortened
to 1, and the point moves by a quarter of it. C goals (4 unless ``num_goals`` says otherwise) lie on the unit circle at
the angles :math:`2\pi c/C`. Each step costs 0.05; coming within 0.2 of a goal pays 1 and ends the episode; after 20
steps time is up. The observation is the position.

The nearest goal is four steps away from every start, so that the optimal return is 1 - 4 * 0.05 = 0.8, whichever goal
is reached. Return alone rewards no diversity here: what is to be seen is how many goals a policy keeps. After
T. Haarnoja et al., "Reinforcement learning with deep energy-based policies", 2017, whose multi-goal task has other
rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int
from numpy.typing import NDArray

from latentpg.envs.dynamics import DynamicsEnv, DynamicsVectorEnv
from latentpg.errors import OptionError

STEP = 0.25
"""How far the longest action moves the point."""

REACH = 0.2
"""How near counts as reached."""

STEP_COST = 0.05
"""What each step costs."""

OPTIMAL_RETURN = 0.8
"""The best return from every start."""

_JITTER = 0.02


@dataclass(frozen=True)
class MultiGoal:
    """Dynamics; the state is the position ``[N, 2]``."""

    num_goals: int = 4

    def __post_init__(self) -> None:
        """Check the number of goals."""
        if not 1 <= self.num_goals <= 12:  # with more of them they overlap
            raise OptionError("MultiGoal()", "`num_goals`", expected="from 1 to 12", got=repr(self.num_goals), fix="4")

    @property
    def goals(self) -> Float[NDArray[np.float64], "C 2"]:
        """Where the goals are."""
        angle = 2 * np.pi * np.arange(self.num_goals) / self.num_goals
        return np.stack([np.cos(angle), np.sin(angle)], -1)

    @property
    def observation_space(self) -> spaces.Box:
        """Positions that 20 steps can reach."""
        return spaces.Box(-6.0, 6.0, (2,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Velocities."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 2"]:
        """Begin near the origin."""
        return noise.uniform(-_JITTER, _JITTER, 2)

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Move, pay, and see whether a goal is reached."""
        velocity: NDArray[np.float64] = action.astype(np.float64)
        length = np.sqrt((velocity**2).sum(-1, keepdims=True))
        position = state + STEP * velocity / np.maximum(length, 1.0)
        reached = self.reached(position) >= 0
        return position, reached.astype(np.float64) - STEP_COST, reached

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show the position."""
        return state

    def reached(self, position: Float[NDArray[np.floating[Any]], "N 2"]) -> Int[NDArray[np.int64], " N"]:
        """Return the goal that each position has reached, or -1.

        >>> MultiGoal().reached(np.array([[0.0, 0.9], [0.0, 0.5]])).tolist()
        [1, -1]
        """
        distance = np.linalg.norm(position[:, None] - self.goals, axis=-1)
        nearest = distance.argmin(1)
        return np.where(distance.min(1) <= REACH, nearest, -1)


def make_env(*, num_goals: int = 4) -> DynamicsEnv:
    """Make one member, without a time limit."""
    return DynamicsEnv(MultiGoal(num_goals))


def make_vector_env(*, num_envs: int, max_episode_steps: int = 20, num_goals: int = 4) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(MultiGoal(num_goals), num_envs=num_envs, max_episode_steps=max_episode_steps)
