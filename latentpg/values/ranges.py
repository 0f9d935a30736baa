"""The ranges that features divide: one interval a dimension of a flat observation.

Every feature map of this room works on :meth:`Ranges.unit`, so that all of them state their range, read what lies
outside of it as the nearest point inside, and refuse an observation that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError, SpaceError
from latentpg.values._checks import check_observations

_UNBOUNDED = 1e30  # some environments write the largest float where they mean no bound


@dataclass(frozen=True)
class Ranges:
    """An interval ``[low, high]`` for each of the S dimensions of an observation.

    >>> Ranges((-1.0, 0.0), (1.0, 10.0)).unit(torch.tensor([[0.0, 5.0], [-7.0, 10.0]])).tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    """

    low: tuple[float | int, ...]
    high: tuple[float | int, ...]

    def __post_init__(self) -> None:
        """Refuse intervals that are empty, endless or not as many below as above."""
        if not self.low or len(self.low) != len(self.high):
            raise OptionError(
                "Ranges()",
                "`low` and `high`",
                expected="one bound a dimension in each, at least one",
                got=f"{len(self.low)} and {len(self.high)}",
            )
        for dimension, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise OptionError(
                    "Ranges()",
                    f"the interval of dimension {dimension}",
                    expected="finite bounds, low < high",
                    got=f"[{low}, {high}]",
                )

    @property
    def size(self) -> int:
        """Number of dimensions S."""
        return len(self.low)

    def unit(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """Map every interval onto [0, 1], and what lies outside of it to its nearer end."""
        check_observations("features", obs, self.size)
        if not obs.isfinite().all():
            bad = int((~obs.isfinite()).any(-1).nonzero()[0, 0])
            raise OptionError(
                "features",
                "`obs` holds NaN or infinity",
                expected="finite observations",
                got=f"{obs[bad].tolist()} in row {bad}",
            )
        low, high = (torch.tensor(bound, dtype=obs.dtype, device=obs.device) for bound in (self.low, self.high))
        return ((obs - low) / (high - low)).clamp(0.0, 1.0)


def ranges_of(
    space: spaces.Space[Any],
    *,
    low: Sequence[float | int | None] | None = None,
    high: Sequence[float | int | None] | None = None,
) -> Ranges:
    """Read the ranges off a ``Box``, flattened; a bound given here stands in for the space's.

    ``None``, for all dimensions or for one of them, leaves the space's own. A dimension without a finite bound on
    both sides is an error: a range that is made up silently would put every observation into one cell. A bound beyond
    1e30 counts as none.

    >>> ranges_of(spaces.Box(-1.0, 1.0, (2,)))
    Ranges(low=(-1.0, -1.0), high=(1.0, 1.0))
    >>> half = spaces.Box(np.float32([-1.0, -np.inf]), np.float32([1.0, np.inf]))
    >>> ranges_of(half, low=(None, -3), high=(None, 3))
    Ranges(low=(-1.0, -3), high=(1.0, 3))
    """
    if not isinstance(space, spaces.Box):
        raise SpaceError(
            "ranges_of()",
            f"a {type(space).__name__} has no ranges",
            expected="a Box",
            got=str(space),
            fix="Identity(observation_size(space)): its encoding is one-hot already",
        )
    bounds = {}
    for name, given, own in (("low", low, space.low), ("high", high, space.high)):
        flat = [float(bound) for bound in np.asarray(own).flatten()]
        given = [None] * len(flat) if given is None else given
        if len(given) != len(flat):
            raise OptionError(
                "ranges_of()", f"`{name}`", expected=f"{len(flat)} bounds, one a dimension", got=str(len(given))
            )
        bounds[name] = tuple(mine if theirs is None else theirs for mine, theirs in zip(flat, given, strict=True))
    pairs = list(zip(bounds["low"], bounds["high"], strict=True))
    unbounded = [d for d, pair in enumerate(pairs) if not all(abs(bound) < _UNBOUNDED for bound in pair)]
    if unbounded:
        raise OptionError(
            "ranges_of()",
            f"dimensions {unbounded} of the space have no finite range",
            expected="a finite bound on both sides of every dimension",
            got=", ".join(f"[{pairs[d][0]:g}, {pairs[d][1]:g}]" for d in unbounded),
            fix="give them: low=(...), high=(...), one number a dimension, None where the space's own bound will do",
        )
    return Ranges(bounds["low"], bounds["high"])
