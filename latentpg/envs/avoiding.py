r"""``latentpg/Avoiding-v0``: a rod is led through three rows of obstacles, and there are 24 ways to do it.

The geometry is that of the avoiding task of X. Jia et al., "Towards diverse behaviors: a benchmark for imitation
learning with human demonstrations", 2024 (D3IL), in metres. The rod, of radius .01, starts at (.525, -.28) and is to
cross y = .35. In its way stand cylinders: one of radius .03 at (.5, -.1); two of radius .025 at (.425, .08) and
(.575, .08); three at (.35, .26), (.5, .26) and (.65, .26). They leave 2, 3 and 4 gates, 24 ways in all.

The observation is the desired position and the actual one, ``[desired x, desired y, x, y]``. An action
:math:`\Delta` moves the desired position :math:`d`, and the actual position :math:`p` follows it with a lag:

.. math:: d' = d + \Delta\,\min\Bigl(1, \frac{.015}{\lVert\Delta\rVert}\Bigr), \qquad p' = p + .6\,(d' - p).

Touching a cylinder ends the episode with nothing; crossing the line ends it and pays 1; after 250 steps time is up.
Nothing is random. The robot's arm of the published task, and its physics, are replaced by the lag; ``docs/avoiding.md``
says what else differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int
from numpy.typing import NDArray

from latentpg.envs.dynamics import DynamicsVectorEnv
from latentpg.envs.planar import cut_episodes, gate_crossed, inside_any, shortened
from latentpg.envs.rendering import Shape, View, make_drawn
from latentpg.errors import OptionError

START = (0.525, -0.28)
"""Where the rod starts, and the desired position with it."""

OBSTACLES = (
    (0.5, -0.1, 0.03),
    (0.425, 0.08, 0.025),
    (0.575, 0.08, 0.025),
    (0.35, 0.26, 0.025),
    (0.5, 0.26, 0.025),
    (0.65, 0.26, 0.025),
)
"""The cylinders: x, y, radius."""

ROD_RADIUS = 0.01
"""Radius of the rod."""

FINISH = 0.35
"""The rod's y beyond which it has arrived."""

LAG = 0.6
"""Which part of the way to the desired position the rod goes in a step."""

MAX_SPEED = 0.015
"""How far the desired position moves in a step at most."""

EPISODE_STEPS = 250
"""The time limit."""

LINES = (-0.1, 0.08, 0.26)
"""The y of each row of obstacles."""

CUTS = ((0.5,), (0.425, 0.575), (0.35, 0.5, 0.65))
"""The x at which each row's gates are parted: the middles of its obstacles."""

NUM_MODES = 24
"""Ways through: 2 * 3 * 4 gates."""

OPTIMAL_RETURN = 1.0
"""The best return."""

_REACHES = np.array([(x, y, radius + ROD_RADIUS) for x, y, radius in OBSTACLES])
_VIEW = View((0.2, -0.32), (0.8, 0.42), height=296)
_FURTHEST = 5.0  # from 0; 250 steps of .015 end within 3.75 of the start


@dataclass(frozen=True)
class Avoiding:
    """Dynamics; the state is the desired position and the actual one, ``[N, 4]``."""

    @property
    def observation_space(self) -> spaces.Box:
        """Positions that 250 steps can reach."""
        return spaces.Box(-_FURTHEST, _FURTHEST, (4,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """How the desired position moves; what is longer than .015 is shortened."""
        return spaces.Box(-MAX_SPEED, MAX_SPEED, (2,), np.float32)

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 4"]:
        """Begin at the start, the rod where it is desired."""
        return np.array([*START, *START])

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Move the desired position, let the rod follow, and see whether it touches something or has arrived."""
        desired = state[:, :2] + shortened(action, MAX_SPEED)
        actual = state[:, 2:] + LAG * (desired - state[:, 2:])
        arrived = actual[:, 1] > FINISH  # no cylinder reaches as far, so that none is touched there
        return np.concatenate([desired, actual], 1), arrived.astype(np.float64), arrived | inside_any(actual, _REACHES)

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show both positions."""
        return state

    @property
    def view(self) -> View:
        """The table between the start and a little beyond the line."""
        return _VIEW

    def scenery(self) -> list[Shape]:
        """Return the line and the cylinders."""
        middle, half = (_VIEW.low[0] + _VIEW.high[0]) / 2, (_VIEW.high[0] - _VIEW.low[0]) / 2
        line = Shape(middle, FINISH, (120, 190, 120), half=(half, 0.003))
        return [line, *(Shape(x, y, (170, 170, 170), radius) for x, y, radius in OBSTACLES)]

    def figures(self, state: Float[NDArray[np.float64], " 4"]) -> list[Shape]:
        """Return the rod and, smaller, where it is desired."""
        wish_x, wish_y, x, y = state.tolist()
        return [Shape(x, y, (0, 114, 178), ROD_RADIUS), Shape(wish_x, wish_y, (213, 94, 0), 0.004)]


def path_mode(path: Float[NDArray[np.floating[Any]], "T 2"]) -> int:
    """Return which of the 24 modes a path of the rod (its actual positions) is, or -1 where it does not pass all rows.

    A row is passed at the first step with y at or above it, by the gate in which x is then; gates count from the left.
    The mode is ``12 * first + 4 * second + third``. Going back and through another gate changes nothing.

    >>> path_mode(np.array([[0.52, -0.28], [0.56, -0.1], [0.5, 0.08], [0.425, 0.26]]))
    17
    """
    gates = [gate_crossed(path[:, 1], path[:, 0], line, cuts) for line, cuts in zip(LINES, CUTS, strict=True)]
    return mode_of_gates(*gates) if min(gates) >= 0 else -1


def episode_modes(
    obs: Float[NDArray[np.floating[Any]], "M 4"], lengths: Int[NDArray[np.integer[Any]], " E"]
) -> Int[NDArray[np.int64], " E"]:
    """Return the mode of each of E episodes from their observations, one episode's rows after the other's.

    The observation behind the last step is not needed: the line is further from the last row than any step leads.
    """
    return np.array([path_mode(rows[:, 2:]) for rows in cut_episodes("episode_modes()", obs, lengths)], np.int64)


def mode_of_gates(first: int, second: int, third: int) -> int:
    """Return the mode of three gates, each counted from the left.

    >>> [mode_of_gates(0, 0, 0), mode_of_gates(1, 2, 3)]
    [0, 23]
    """
    return 12 * first + 4 * second + third


def gates_of_mode(mode: int) -> tuple[int, int, int]:
    """Return the gates of a mode; :func:`mode_of_gates` is its inverse.

    >>> gates_of_mode(17)
    (1, 1, 1)
    """
    if not 0 <= mode < NUM_MODES:
        raise OptionError("gates_of_mode()", "`mode`", expected=f"from 0 to {NUM_MODES - 1}", got=repr(mode))
    return mode // 12, mode // 4 % 3, mode % 4


def make_env(*, render_mode: str | None = None) -> gymnasium.Env[NDArray[np.float32], Any]:
    """Make one member, without a time limit."""
    return make_drawn(Avoiding(), render_mode=render_mode)


def make_vector_env(*, num_envs: int, max_episode_steps: int = EPISODE_STEPS) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(Avoiding(), num_envs=num_envs, max_episode_steps=max_episode_steps)
