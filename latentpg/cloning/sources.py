"""Where demonstrations come from: a file, the handwriting data, or a scripted demonstrator of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from latentpg.cloning.parts import SCRIPTED
from latentpg.data import Demonstrations, read_demonstrations
from latentpg.envs import avoiding, avoiding_demonstrator, routes_demonstrator
from latentpg.envs.demonstrators import ShownEpisodes
from latentpg.errors import OptionError, did_you_mean

Demonstrator = Callable[[int, int], ShownEpisodes]
"""Shows a number of episodes, by a seed."""


def demonstrations_of(data: str, *, number: int, seed: int) -> Demonstrations:
    """Read what ``--data`` names; ``number`` and ``seed`` are a scripted demonstrator's.

    Floating-point numbers come back as float32, in which networks compute.

    >>> demonstrations_of("scripted:latentpg/Routes-v0", number=5, seed=0).num_episodes
    5
    """
    if not data.startswith(SCRIPTED):
        return read_demonstrations(data).to(torch.float32)
    env = data.removeprefix(SCRIPTED)
    if env not in DEMONSTRATORS:
        raise OptionError(
            "--data",
            "no scripted demonstrator",
            expected=" or ".join(f"{SCRIPTED}{name}" for name in DEMONSTRATORS),
            got=repr(data),
            fix=did_you_mean(data, [f"{SCRIPTED}{name}" for name in DEMONSTRATORS]),
        )
    shown = DEMONSTRATORS[env](number, seed)
    return Demonstrations(
        torch.from_numpy(shown.obs),
        torch.from_numpy(shown.action),
        torch.from_numpy(shown.episode),
        mode=torch.from_numpy(shown.mode),
        source=data,
    )


def _show_avoiding(number: int, seed: int) -> ShownEpisodes:
    if number % avoiding.NUM_MODES:
        raise OptionError(
            "--num-demonstrations",
            "as many of each of the 24 ways",
            expected=f"a multiple of {avoiding.NUM_MODES}",
            got=repr(number),
            fix=f"--num-demonstrations {max(1, number // avoiding.NUM_MODES) * avoiding.NUM_MODES}",
        )
    return avoiding_demonstrator.demonstrate(per_mode=number // avoiding.NUM_MODES, seed=seed)


def _show_routes(number: int, seed: int) -> ShownEpisodes:
    return routes_demonstrator.demonstrate(num_episodes=number, seed=seed)


DEMONSTRATORS: Mapping[str, Demonstrator] = {
    "latentpg/Avoiding-v0": _show_avoiding,
    "latentpg/Routes-v0": _show_routes,
}
"""Scripted demonstrators by the environment that they act in."""


def spaces_of(demonstrations: Demonstrations) -> tuple[spaces.Box, spaces.Space[Any]]:
    """Return spaces that demonstrations without an environment fill: boxes of their range, or the integers seen.

    Actions of one integer are of a ``Discrete`` space, of several of a ``MultiDiscrete`` one. A dimension of an action
    that never varies gets a width all the same.

    >>> demos = Demonstrations.from_episodes([[[0.0], [2.0]]], [[[1.0], [3.0]]])
    >>> spaces_of(demos)[1]
    Box(1.0, 3.0, (1,), float32)
    """
    size = demonstrations.obs.shape[1]
    observations = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    action = demonstrations.action
    if action.is_floating_point():
        low, high = action.amin(0).numpy().astype(np.float32), action.amax(0).numpy().astype(np.float32)
        flat = low == high
        return observations, spaces.Box(np.where(flat, low - 1, low), np.where(flat, high + 1, high), dtype=np.float32)
    if int(action.min()) < 0:
        raise OptionError(
            demonstrations.source, "integer actions", expected="integers >= 0", got=str(int(action.min())), fix="--env"
        )
    if action.ndim == 1:
        return observations, spaces.Discrete(int(action.max()) + 1)
    return observations, spaces.MultiDiscrete((action.amax(0) + 1).tolist())
