"""Noise on rewards, each member's from a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray


def add_noise(
    reward: Float[NDArray[np.float64], " N"], std: float | int, noise: Sequence[np.random.Generator]
) -> Float[NDArray[np.float64], " N"]:
    """Add a Gaussian of standard deviation ``std`` to each member's reward; nothing is drawn for 0."""
    if std == 0:
        return reward
    return reward + std * np.array([stream.normal() for stream in noise])
