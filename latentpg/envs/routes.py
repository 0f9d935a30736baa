r"""``latentpg/Routes-v0``: a point goes round two pillars to a goal, below both, between them or above both.

The point starts within .02 of the origin in each coordinate and is to come within .1 of (1, 0). An action is a
velocity; one longer than 1 is shortened to 1, and the point moves by .04 of it. Two pillars of radius .12 stand at
(.5, -.2) and (.5, .2); running into one ends the episode with nothing, arriving ends it and pays 1, and after 60 steps
time is up. The observation is the position. All three routes are equally good; :func:`route_of` tells them apart.

They are not equally frequent: :mod:`~latentpg.envs.routes_demonstrator` takes them with the probabilities
:data:`ROUTE_PROBABILITIES`, .3, .4 and .3, so that a clone can be held not only to having every mode but to having each
as often as was shown.
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

PILLARS = ((0.5, -0.2, 0.12), (0.5, 0.2, 0.12))
"""What is in the way: x, y, radius."""

GOAL = (1.0, 0.0)
"""Where to go."""

REACH = 0.1
"""How near counts as arrived."""

STEP = 0.04
"""How far the longest action moves the point."""

EPISODE_STEPS = 60
"""The time limit."""

ROUTE_PROBABILITIES = (0.3, 0.4, 0.3)
"""How often the demonstrator goes below, between and above."""

OPTIMAL_RETURN = 1.0
"""The best return."""

_JITTER = 0.02
_LINE = 0.5
_CUTS = (-0.2, 0.2)
_FURTHEST = 3.0  # from 0; 60 steps of .04 end within 2.4 of the start
_PILLARS = np.array(PILLARS)
_GOAL = np.array([[*GOAL, REACH]])
_VIEW = View((-0.15, -0.75), (1.2, 0.75), height=240)


@dataclass(frozen=True)
class Routes:
    """Dynamics; the state is the position ``[N, 2]``."""

    @property
    def observation_space(self) -> spaces.Box:
        """Positions that 60 steps can reach."""
        return spaces.Box(-_FURTHEST, _FURTHEST, (2,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        """Velocities."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " 2"]:
        """Begin near the origin, at a point of float32, so that what is seen is all there is to know."""
        return noise.uniform(-_JITTER, _JITTER, 2).astype(np.float32).astype(np.float64)

    def step(
        self, state: NDArray[np.float64], action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Move, and see whether a pillar is hit or the goal reached."""
        position = state + STEP * shortened(action, 1.0)
        arrived = inside_any(position, _GOAL)  # no pillar is as near to the goal
        return position, arrived.astype(np.float64), arrived | inside_any(position, _PILLARS)

    def observe(self, state: NDArray[np.float64]) -> NDArray[np.float64]:
        """Show the position."""
        return state

    @property
    def view(self) -> View:
        """From behind the start to behind the goal."""
        return _VIEW

    def scenery(self) -> list[Shape]:
        """Return the goal and the pillars."""
        goal = Shape(*GOAL, (160, 215, 160), REACH)
        return [goal, *(Shape(x, y, (170, 170, 170), radius) for x, y, radius in PILLARS)]

    def figures(self, state: Float[NDArray[np.float64], " 2"]) -> list[Shape]:
        """Return the point."""
        x, y = state.tolist()
        return [Shape(x, y, (0, 114, 178), 0.02)]


def route_of(path: Float[NDArray[np.floating[Any]], "T 2"]) -> int:
    """Return a path's route by where it first is beyond the pillars' middles, or -1 where it never is.

    0 is below both pillars, 1 between them, 2 above both.

    >>> route_of(np.array([[0.0, 0.0], [0.4, 0.4], [0.52, 0.45]]))
    2
    """
    return gate_crossed(path[:, 0], path[:, 1], _LINE, _CUTS)


def episode_routes(
    obs: Float[NDArray[np.floating[Any]], "M 2"], lengths: Int[NDArray[np.integer[Any]], " E"]
) -> Int[NDArray[np.int64], " E"]:
    """Return the route of each of E episodes from their observations, one episode's rows after the other's."""
    return np.array([route_of(rows) for rows in cut_episodes("episode_routes()", obs, lengths)], np.int64)


def make_env(*, render_mode: str | None = None) -> gymnasium.Env[NDArray[np.float32], Any]:
    """Make one member, without a time limit."""
    return make_drawn(Routes(), render_mode=render_mode)


def make_vector_env(*, num_envs: int, max_episode_steps: int = EPISODE_STEPS) -> DynamicsVectorEnv:
    """Make N members at once."""
    return DynamicsVectorEnv(Routes(), num_envs=num_envs, max_episode_steps=max_episode_steps)
