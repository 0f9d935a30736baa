"""A scripted demonstrator of all 24 modes of :mod:`~latentpg.envs.avoiding`.

Its waypoints lie .045 before and behind each row of obstacles, at the middle of the gate for a gate between two
obstacles, .06 and .065 to the outside for those at the ends, each gate's moved across by a Gaussian of standard
deviation ``spread``, and last .04 behind the line. :mod:`~latentpg.envs.demonstrators` says how they are followed. Like
the people of the published task, it does not say which mode it means; the labels are for measuring.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from latentpg.envs.avoiding import (
    EPISODE_STEPS,
    FINISH,
    LINES,
    MAX_SPEED,
    NUM_MODES,
    START,
    Avoiding,
    gates_of_mode,
    path_mode,
)
from latentpg.envs.demonstrators import Episode, ShownEpisodes, Style, follow, gather, plan_path
from latentpg.errors import OptionError

GATES = ((0.44, 0.56), (0.36, 0.5, 0.64), (0.285, 0.425, 0.575, 0.715))
"""The x at which each gate is passed."""

STYLE = Style(speed=0.01, pace=0.05, spread=0.005, shake=0.001, pull=0.1)
"""How it moves unless another style is asked for."""

_BEFORE = 0.045
_BEYOND = 0.04


def demonstrate(
    *, modes: Sequence[int] = tuple(range(NUM_MODES)), per_mode: int = 4, seed: int = 0, style: Style = STYLE
) -> ShownEpisodes:
    """Demonstrate each of ``modes`` ``per_mode`` times; what fails, or ends up in another mode, is not kept.

    A mode's demonstrations hang on the seed and the mode alone: asking for fewer modes, or for more of each, leaves
    those that were there as they were.

    >>> shown = demonstrate(modes=[3, 20], per_mode=2)
    >>> shown.mode.tolist(), shown.obs.shape[1], shown.action.shape[1]
    ([3, 3, 20, 20], 4, 2)
    """
    if per_mode < 1 or not len(modes):
        raise OptionError(
            "demonstrate()", "`per_mode`, `modes`", expected="at least 1 of each", got=f"{per_mode}, {list(modes)}"
        )
    if seed < 0:
        raise OptionError("demonstrate()", "`seed`", expected="an integer >= 0", got=repr(seed), fix="seed=0")
    gates = {mode: gates_of_mode(mode) for mode in modes}
    streams = {mode: np.random.default_rng([seed, mode]) for mode in gates}

    def attempt(mode: int) -> Episode:
        noise = streams[mode]
        speed = style.speed * float(np.exp(style.pace * noise.standard_normal()))
        plan = plan_path(waypoints(gates[mode], style.spread * noise.standard_normal(len(LINES))), speed=speed)
        return follow(Avoiding(), plan, style=style, unit=1.0, longest=MAX_SPEED, max_steps=EPISODE_STEPS, noise=noise)

    wanted = [mode for mode in modes for _ in range(per_mode)]
    return gather(wanted, attempt, lambda episode: path_mode(episode.obs[:, 2:]), where="demonstrate()")


def waypoints(
    gates: tuple[int, int, int], moved: Float[NDArray[np.float64], " 3"]
) -> Float[NDArray[np.float64], "W 2"]:
    """Return the waypoints through three gates, each gate's moved across by so much."""
    across = [row[gate] for row, gate in zip(GATES, gates, strict=True)] + moved
    pairs = [[x, line + side] for x, line in zip(across, LINES, strict=True) for side in (-_BEFORE, _BEFORE)]
    return np.array([START, *pairs, [across[-1], FINISH + _BEYOND]])
