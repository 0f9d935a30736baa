r"""``latentpg/Corridor-v0``: a long corridor, found by those who keep going.

The point starts in the middle of a corridor, at 0, and each action moves it one step to the left (0) or to the right
(1). At -20 and at +20 (``half_length``) the episode ends and pays 1; after 30 steps time is up, with nothing. Chance
moves the other way with probability ``slip``, 0 unless said otherwise. The observation is the position over 20. The
optimal return is 1.

Whoever decides anew at each step goes to and fro: at even chances it is paid in 3.8 of 10,000 episodes
(:func:`chance_of_reward`), and until it has been paid nothing tells it to do otherwise. A latent drawn once an episode,
under which the chance of going right is .9 for one of its values and .1 for another, is paid in 93 of 100. What a
latent held for an episode does for exploration is the subject of A. Gupta et al., "Meta-reinforcement learning of
structured exploration strategies", 2018, and, by a network's weights, of I. Osband et al., "Deep exploration via
bootstrapped DQN", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray

from latentpg.envs.dynamics import DynamicsEnv, DynamicsVectorEnv
from latentpg.errors import OptionError

HALF_LENGTH = 20
"""Steps from the middle to an end."""

EPISODE_STEPS = 30
"""The time limit."""

OPTIMAL_RETURN = 1.0
"""The best return."""


@dataclass(frozen=True)
class Corridor:
    """Dynamics; the state is the position ``[N, 1]``."""

    half_length: int = HALF_LENGTH
    slip: float | int = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.half_length < 1:
            raise OptionError("Corridor()", "`half_length`", expected="an integer >= 1", got=repr(self.half_length))
        if not 0 <= self.slip <= 1:
            raise OptionError("Corridor()", "`slip`", expected="a number in [0, 1]", got=repr(self.slip), fix="0.0")

    @property
    def observation_space(self) -> spaces.Box:
        """Positions, the ends at -1 and 1."""
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Discrete:
        """Left, right."""
        return spaces.Discrete(2)

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 1"]:
        """Begin in the middle."""
        return np.zeros(1)

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Move, or slip; pay at an end."""
        direction = 2.0 * action - 1.0
        if self.slip > 0:
            direction *= np.where([stream.random() < self.slip for stream in noise], -1.0, 1.0)
        position = state + direction[:, None]
        arrived = np.abs(position[:, 0]) >= self.half_length
        return position, arrived.astype(np.float64), arrived

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show the position."""
        return state / self.half_length


def chance_of_reward(right: float | int, *, half_length: int = HALF_LENGTH, num_steps: int = EPISODE_STEPS) -> float:
    """Compute exactly how often a policy that goes right with one probability everywhere is paid.

    >>> round(chance_of_reward(0.5), 5), round(chance_of_reward(0.9), 3), chance_of_reward(1.0)
    (0.00038, 0.929, 1.0)
    """
    chance = np.zeros(2 * half_length + 1)  # of being at each position, unpaid so far
    chance[half_length] = 1.0
    paid = 0.0
    for _ in range(num_steps):
        moved = np.zeros_like(chance)
        moved[1:] += right * chance[:-1]
        moved[:-1] += (1 - right) * chance[1:]
        paid += moved[0] + moved[-1]
        moved[0] = moved[-1] = 0.0
        chance = moved
    return float(paid)


def make_env(*, half_length: int = HALF_LENGTH, slip: float | int = 0.0) -> DynamicsEnv:
    """Make one member, without a time limit."""
    return DynamicsEnv(Corridor(half_length, slip))


def make_vector_env(
    *,
    num_envs: int,
    max_episode_steps: int = EPISODE_STEPS,
    half_length: int = HALF_LENGTH,
    slip: float | int = 0.0,
) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(Corridor(half_length, slip), num_envs=num_envs, max_episode_steps=max_episode_steps)
