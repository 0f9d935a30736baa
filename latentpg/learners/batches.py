"""Minibatches, and means of what they report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from latentpg.learners.parallel import ALONE, Group


def minibatches(index: Int[Tensor, " M"], batch_size: int, *, group: Group = ALONE) -> Iterator[Int[Tensor, " B"]]:
    """Shuffle rows by the ambient stream and yield them in parts of ``batch_size``.

    What is left over makes the last part, unless it is less than half of one: it then joins the part before, for a
    gradient from a handful of rows would count as much as one from hundreds. In a ``group`` a minibatch is of all
    workers' rows, and each worker has its share of every one: its own rows, in as many parts as the others'.

    >>> [[len(part) for part in minibatches(torch.arange(size), 4)] for size in (10, 9)]
    [[4, 4, 2], [4, 5]]
    """
    shuffled = index[torch.randperm(len(index), device=index.device)]
    if group.size > 1:
        yield from shuffled.tensor_split(num_parts(len(index), batch_size, group=group, at_most=len(index)))
        return
    parts = list(shuffled.split(batch_size))
    if len(parts) > 1 and 2 * len(parts[-1]) < batch_size:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def num_parts(rows: int, batch_size: int, *, group: Group, at_most: int) -> int:
    """Return how many minibatches the rows of all workers make, so that no worker has more of them than ``at_most``.

    >>> num_parts(9, 4, group=ALONE, at_most=9), num_parts(10, 4, group=ALONE, at_most=10)
    (2, 3)
    """
    told = group.gather(torch.tensor([rows, at_most]))
    whole, left = divmod(int(told[:, 0].sum()), batch_size)
    return max(1, min(whole + (2 * left >= batch_size), int(told[:, 1].min())))


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
