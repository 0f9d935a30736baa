"""What is known of an environment beside its spaces: where it can be drawn, and which ways there are through it.

Modes of roll-outs can be told where the environment of this package tells them; of other environments only the return
is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from latentpg.envs import avoiding, routes
from latentpg.envs.rendering import Drawable

ModeOf = Callable[[NDArray[np.floating[Any]], NDArray[np.integer[Any]]], NDArray[np.int64]]
"""From observations ``[M, S]`` and lengths ``[E]`` to the mode of each episode, -1 where it has none."""


@dataclass(frozen=True)
class Place:
    """An environment whose modes are known: their number, how an episode's is told, and what can be drawn of it.

    ``position`` are the two entries of an observation that say where the actor is. An episode has succeeded when its
    return is positive.
    """

    num_modes: int
    mode_of: ModeOf
    position: tuple[int, int]
    dynamics: Drawable
    names: Sequence[str]

    def modes(
        self, obs: Float[NDArray[np.floating[Any]], "M S"], lengths: Int[NDArray[np.integer[Any]], " E"]
    ) -> Int[NDArray[np.int64], " E"]:
        """Return the mode of each of E episodes, one episode's rows after the other's."""
        return self.mode_of(obs, lengths)


PLACES: Mapping[str, Place] = {
    "latentpg/Avoiding-v0": Place(
        avoiding.NUM_MODES,
        avoiding.episode_modes,
        (2, 3),
        avoiding.Avoiding(),
        ["".join(str(gate + 1) for gate in avoiding.gates_of_mode(mode)) for mode in range(avoiding.NUM_MODES)],
    ),
    "latentpg/Routes-v0": Place(
        len(routes.ROUTE_PROBABILITIES), routes.episode_routes, (0, 1), routes.Routes(), ("below", "between", "above")
    ),
}
"""Every environment whose modes are known, by its id."""
