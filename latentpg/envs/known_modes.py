"""Which ways of succeeding each environment of this package has, where they can be told from what was observed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from numpy.typing import NDArray

from latentpg.envs import avoiding, routes


@dataclass(frozen=True)
class KnownModes:
    """How many modes there are, and which one each episode took.

    ``of_episodes(obs [M, S], lengths [E])`` reads one episode's rows after the other's, and gives ``[E]`` integers,
    -1 for an episode that took none. An episode succeeded if its return is above zero.
    """

    num_modes: int
    of_episodes: Callable[[Float[NDArray[Any], "M S"], Int[NDArray[Any], " E"]], Int[NDArray[Any], " E"]]


KNOWN_MODES: Mapping[str, KnownModes] = {
    "latentpg/Avoiding-v0": KnownModes(avoiding.NUM_MODES, avoiding.episode_modes),
    "latentpg/Routes-v0": KnownModes(len(routes.ROUTE_PROBABILITIES), routes.episode_routes),
}
"""By the environment's id."""
