"""A scripted demonstrator of :mod:`~latentpg.envs.routes`, whose three routes have probabilities .3, .4 and .3.

It goes from the origin to the goal by way of (.5, -.45), (.5, 0) or (.5, .45), moved up or down by a Gaussian of
standard deviation ``spread``; :mod:`~latentpg.envs.demonstrators` says how.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from latentpg.envs.demonstrators import Episode, ShownEpisodes, Style, follow, gather, plan_path
from latentpg.envs.routes import EPISODE_STEPS, GOAL, ROUTE_PROBABILITIES, STEP, Routes, route_of
from latentpg.errors import OptionError

STYLE = Style(speed=0.03, pace=0.05, spread=0.015, shake=0.004, pull=0.2)
"""How it moves unless another style is asked for."""

_CROSSINGS = (-0.45, 0.0, 0.45)


def demonstrate(
    *,
    num_episodes: int = 100,
    seed: int = 0,
    probabilities: Sequence[float] = ROUTE_PROBABILITIES,
    style: Style = STYLE,
) -> ShownEpisodes:
    """Demonstrate ``num_episodes`` times, with a route drawn for each and tried until it succeeds.

    ``mode`` is the route. With the same seed, a longer set begins with the shorter one.

    >>> demonstrate(num_episodes=4).mode.tolist()
    [2, 1, 2, 0]
    """
    routes = draw_routes(num_episodes, seed=seed, probabilities=probabilities)
    noise = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])

    def attempt(route: int) -> Episode:
        speed = style.speed * float(np.exp(style.pace * noise.standard_normal()))
        crossing = _CROSSINGS[route] + style.spread * noise.standard_normal()
        plan = plan_path(np.array([(0.0, 0.0), (0.5, crossing), GOAL]), speed=speed)
        return follow(Routes(), plan, style=style, unit=STEP, longest=STEP, max_steps=EPISODE_STEPS, noise=noise)

    return gather(routes.tolist(), attempt, lambda episode: route_of(episode.obs), where="demonstrate()")


def draw_routes(
    num_episodes: int, *, seed: int = 0, probabilities: Sequence[float] = ROUTE_PROBABILITIES
) -> Int[NDArray[np.int64], " E"]:
    """Draw which route each demonstration of :func:`demonstrate` takes.

    >>> draw_routes(4).tolist()
    [2, 1, 2, 0]
    """
    if num_episodes < 1 or seed < 0:
        raise OptionError(
            "draw_routes()",
            "`num_episodes`, `seed`",
            expected="integers, at least 1 and at least 0",
            got=f"{num_episodes}, {seed}",
        )
    chances = np.array(probabilities, dtype=np.float64)
    if len(chances) != len(_CROSSINGS) or not (chances >= 0).all() or abs(chances.sum() - 1) > 1e-9:
        raise OptionError(
            "draw_routes()",
            "`probabilities`",
            expected="three that are not negative and sum to 1",
            got=repr(tuple(probabilities)),
            fix=f"probabilities={ROUTE_PROBABILITIES}",
        )
    choice = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[0])
    return choice.choice(len(_CROSSINGS), size=num_episodes, p=chances).astype(np.int64)
