r"""Learning one policy in several processes: what an update asks of the others, and what one process answers alone.

Each of W workers acts in environments of its own and holds its own rows; parameters are the same in all of them, and
every update moves them alike. A :class:`Group` is all that a learner knows of the others: how many they are, which one
this is, and two ways to ask, ``sum`` and ``gather``, which all workers call in the same order. :data:`ALONE` is the
group of one process and costs nothing.

What one process computes from B rows, W workers compute from the union of theirs, with the *union's* denominators:

.. math:: g = \frac{\sum_w B_w\,\bar g_w}{\sum_w B_w}, \qquad \bar g_w\ \text{the gradient of worker w's mean},

and likewise the mean and deviation of advantages, baselines over episodes, weights of episodes, the statistics of
normalisers and the divergence that ends an update's epochs. Equal to float tolerance: sums are taken in another order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.numerics.baselines import standardized
from latentpg.rollout import RunningMoments

SUMMED = ("rollout/episodes", "train/zero_variance_groups")
"""Metrics that count something, and are summed over workers; the others are averaged."""


@runtime_checkable
class Group(Protocol):
    """The workers that learn together. Every worker must ask the same things in the same order."""

    @property
    def rank(self) -> int:
        """The number of this worker, from 0, who alone writes."""
        ...

    @property
    def size(self) -> int:
        """W."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over workers of tensors of one shape, the same bits in each; no gradient goes through it."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Return ``[W, ...]``: the tensors of all workers, which have one shape; no gradient goes through it."""
        ...


@dataclass(frozen=True)
class Alone:
    """A group of one.

    >>> ALONE.gather(torch.tensor([1.0, 2.0])).tolist()
    [[1.0, 2.0]]
    """

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return the values as the only ones."""
        return values.unsqueeze(0)


ALONE: Group = Alone()
"""The group of a process that learns by itself."""


@dataclass(frozen=True, eq=False)
class Union:
    """Rows of all workers in the workers' order, and where this worker's own lie among them."""

    rows: Tensor
    start: int
    size: int

    def mine(self, values: Tensor) -> Tensor:
        """Take what belongs to this worker's rows."""
        return values[self.start : self.start + self.size]


def together(group: Group, values: Tensor) -> Union:
    """Gather rows ``[B_w, ...]`` of all workers; where further dimensions differ, zeros stand behind the shorter ones.

    >>> together(ALONE, torch.tensor([3.0])).rows.tolist()
    [3.0]
    """
    if group.size == 1:
        return Union(values, 0, len(values))
    shapes = group.gather(torch.tensor(values.shape))
    padded = values.new_zeros(shapes.amax(0).tolist())
    padded[tuple(slice(size) for size in values.shape)] = values.detach()
    lengths = shapes[:, 0].tolist()
    every = [rows[:length] for rows, length in zip(group.gather(padded), lengths, strict=True)]
    return Union(torch.cat(every), sum(lengths[: group.rank]), len(values))


def mean_of(group: Group, values: Sequence[Tensor], rows: float | int) -> list[Tensor]:
    """Return the mean over workers of each tensor, a worker counting as often as it has rows."""
    if group.size == 1:
        return list(values)
    flat = torch.cat([value.detach().reshape(-1) for value in values])
    summed = group.sum(torch.cat([flat * rows, flat.new_tensor([float(rows)])]))
    parts = (summed[:-1] / summed[-1]).split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]


def total_over(group: Group, number: float | int) -> float:
    """Return the sum of every worker's number."""
    return float(number) if group.size == 1 else float(group.sum(torch.tensor(float(number), dtype=torch.float64)))


def agreed(group: Group, flag: bool) -> bool:
    """Tell whether any worker says yes, which all then go by."""
    return flag if group.size == 1 else total_over(group, float(flag)) > 0


def share_of(group: Group, number: int, *, what: str) -> range:
    """Return this worker's share of so many things: neighbours, and as many as the others' or one more.

    >>> share_of(ALONE, 3, what="groups")
    range(0, 3)
    """
    if number < group.size:
        raise OptionError(
            "parallel training",
            f"fewer {what} than workers: some would have nothing to learn from",
            expected=f"at least {group.size} {what}",
            got=str(number),
            fix="fewer workers, or more of them",
        )
    return range(number * group.rank // group.size, number * (group.rank + 1) // group.size)


def first_of(group: Group, num_envs: int) -> tuple[int, int]:
    """Return the number of this worker's first environment among those of all workers, and how many these are."""
    return group.rank * num_envs, group.size * num_envs


def stream_of(group: Group, name: str) -> str:
    """Name a random stream of this worker's own; alone, it is the one of that name.

    >>> stream_of(ALONE, "update 3")
    'update 3'
    """
    return name if group.size == 1 else f"{name} of worker {group.rank}"


def standardized_over(group: Group, advantage: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    r"""Return :math:`(A - \bar A)/(\sigma_A + 10^{-8})` with mean and deviation of the rows of all workers."""
    if group.size == 1:
        return standardized(advantage)
    mine = advantage.detach().double()
    lowest, highest = mine.aminmax()
    told = torch.stack([mine.new_tensor(float(len(mine))), mine.mean(), mine.var(correction=0), lowest, highest])
    count, mean, variance, low, high = group.gather(told).unbind(1)
    centre = (count * mean).sum() / count.sum()
    square = (count * (variance + (mean - centre).square())).sum() / (count.sum() - 1)
    if bool(low.min() == high.max()):
        return torch.zeros_like(advantage)
    return ((mine - centre) / (square.sqrt() + 1e-8)).to(advantage.dtype)


def moments_over(group: Group, moments: RunningMoments) -> RunningMoments:
    """Join the moments of what each worker has seen."""
    if group.size == 1:
        return moments
    size = len(moments.mean)
    told = torch.cat([moments.mean.new_tensor([float(moments.count)]), moments.mean, moments.variance])
    first, *others = (RunningMoments(int(x[0]), x[1 : 1 + size], x[1 + size :]) for x in group.gather(told))
    return reduce(RunningMoments.join, others, first)


def texts_over(group: Group, text: str) -> list[str]:
    """Return every worker's text.

    >>> texts_over(ALONE, "ready")
    ['ready']
    """
    return [content.decode() for content in contents_over(group, text.encode())]


def contents_over(group: Group, content: bytes) -> list[bytes]:
    """Return every worker's bytes."""
    if group.size == 1:
        return [content]
    mine = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
    lengths = group.gather(torch.tensor([len(content)])).flatten().tolist()
    padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
    padded[: len(mine)] = mine
    return [bytes(rows[:length].tolist()) for rows, length in zip(group.gather(padded), lengths, strict=True)]


def metrics_over(group: Group, metrics: Mapping[str, float], rows: float | int) -> dict[str, float]:
    """Return metrics of all workers: counts are summed, and the rest are means.

    A worker counts as often as it has rows, in means over episodes as often as it ended some; one that lacks a number
    is left out of its mean.
    """
    if group.size == 1:
        return dict(metrics)
    told = [json.loads(text) for text in texts_over(group, json.dumps({"rows": rows, "metrics": dict(metrics)}))]
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for each in told for name in each["metrics"]):
        having = [each for each in told if name in each["metrics"]]
        if name in SUMMED:
            found[name] = sum(each["metrics"][name] for each in having)
            continue
        weights = [_weight(name, each) for each in having]
        found[name] = sum(w * each["metrics"][name] for w, each in zip(weights, having, strict=True)) / sum(weights)
    return found


def _weight(name: str, told: Mapping[str, Any]) -> float:
    return float(told["metrics"]["rollout/episodes"] if name.startswith("rollout/ep_") else told["rows"])
