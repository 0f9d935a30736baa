"""Random streams with a scope.

``torch.distributions`` takes no generator, so library code draws from the ambient stream and never seeds it.
A caller who wants a result to be repeatable opens a scope, and leaves the stream outside it as it was::

    with seeded(7):
        particles = estimator.propose(policy, obs, action)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from latentpg.errors import OptionError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a stream of one's own inside the scope; the stream outside continues as if nothing had been drawn.

    >>> with seeded(0):
    ...     first = torch.rand(())
    >>> with seeded(0):
    ...     bool(torch.rand(()) == first)
    True
    """
    if seed < 0:
        raise OptionError("seeded()", "`seed`", expected="an integer >= 0", got=repr(seed), fix="seeded(0)")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def stream_seed(seed: int, name: str) -> int:
    """Derive the seed of a named random stream: a cell's, an update's, whatever the order in which they are asked for.

    >>> stream_seed(0, "a") == stream_seed(0, "a") != stream_seed(0, "b")
    True
    """
    child = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), len(name)))
    return int(child.generate_state(1, np.uint64)[0] >> np.uint64(1))


def named_seeds(seed: int, names: Sequence[str]) -> dict[str, int]:
    """Split one seed into independent 63-bit seeds, one a name, by ``numpy.random.SeedSequence.spawn``.

    Names are given seeds in their order, so appending a name leaves the earlier ones as they were.

    >>> named_seeds(0, ["act", "propose"]) == named_seeds(0, ["act", "propose"])
    True
    """
    children = np.random.SeedSequence(seed).spawn(len(names))
    return {
        name: int(child.generate_state(1, np.uint64)[0] >> np.uint64(1))
        for name, child in zip(names, children, strict=True)
    }
