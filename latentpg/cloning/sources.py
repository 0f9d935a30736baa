"""Where demonstrations come from: a file or folder, the handwriting data, or a scripted demonstrator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from latentpg.cloning.parts import SCRIPTED
from latentpg.data import Demonstrations, read_demonstrations
from latentpg.errors import OptionError, did_you_mean
from latentpg.recording import SCRIPTED as SCRIPTS
from latentpg.recording import shown_by_script


def demonstrations_of(data: str, *, number: int, seed: int) -> Demonstrations:
    """Read what ``--data`` names; ``number`` and ``seed`` are a scripted demonstrator's.

    Floating-point numbers come back as float32, in which networks compute.

    >>> demonstrations_of("scripted:latentpg/Routes-v0", number=5, seed=0).num_episodes
    5
    """
    if not data.startswith(SCRIPTED):
        return read_demonstrations(data).to(torch.float32)
    env = data.removeprefix(SCRIPTED)
    if env not in SCRIPTS:
        known = [f"{SCRIPTED}{name}" for name in SCRIPTS]
        raise OptionError(
            "--data", "no scripted demonstrator", expected=" or ".join(known), got=data, fix=did_you_mean(data, known)
        )
    try:
        return shown_by_script(env, episodes=number, seed=seed)
    except OptionError as error:  # which names the options of another command
        raise OptionError(
            "latentpg imitate",
            "`--num-demonstrations` of a script that shows every mode as often as any other",
            expected="a multiple of its modes",
            got=repr(number),
            fix="--num-demonstrations 96",
        ) from error


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
