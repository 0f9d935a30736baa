"""Minibatches, and means of what they report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor


def minibatches(index: Int[Tensor, " M"], batch_size: int) -> Iterator[Int[Tensor, " B"]]:
    """Shuffle rows by the ambient stream and yield them in parts of ``batch_size``.

    What is left over makes the last part, unless it is less than half of one: it then joins the part before, for a
    gradient from a handful of rows would count as much as one from hundreds.

    >>> [[len(part) for part in minibatches(torch.arange(size), 4)] for size in (10, 9)]
    [[4, 4, 2], [4, 5]]
    """
    shuffled = index[torch.randperm(len(index))]
    parts = list(shuffled.split(batch_size))
    if len(parts) > 1 and 2 * len(parts[-1]) < batch_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


class Means:
    """Means of numbers by name, each over as many times as it was told.

    >>> means = Means()
    >>> means.add({"a": 1.0})
    >>> means.add({"a": 3.0, "b": 5.0})
    >>> means.values()
    {'a': 2.0, 'b': 5.0}
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: Mapping[str, float]) -> None:
        """Tell some numbers."""
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def values(self) -> dict[str, float]:
        """Return the means."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}
