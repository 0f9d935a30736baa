"""Random streams by name: a cell's, a source's, a target's, whatever the order in which they are asked for."""

from __future__ import annotations

import zlib

import numpy as np


def stream_seed(seed: int, name: str) -> int:
    """Derive the seed of a named random stream.

    >>> stream_seed(0, "a") == stream_seed(0, "a") != stream_seed(0, "b")
    True
    """
    child = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), len(name)))
    return int(child.generate_state(1, np.uint64)[0] >> np.uint64(1))
