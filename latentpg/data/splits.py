r"""Split demonstrations by whole episodes into training, validation and test.

Steps of one episode resemble each other, so a split by steps would hold out nothing. Where modes are known every part
gets its share of each mode, up to rounding: of mode m with :math:`n_m` episodes a part with the fraction f gets
:math:`\lfloor n_m f\rfloor` or one more, and in total what the method of largest remainders gives it of all episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError
from latentpg.errors import OptionError
from latentpg.numerics.rng import seeded, stream_seed

PARTS = ("train", "validation", "test")
"""Names of the parts, in their order."""


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of demonstrations, and which ``episodes`` each has, by their numbers before the split."""

    train: Demonstrations
    validation: Demonstrations
    test: Demonstrations
    episodes: tuple[Int[Tensor, " N0"], Int[Tensor, " N1"], Int[Tensor, " N2"]]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Episodes of each part."""
        return self.train.num_episodes, self.validation.num_episodes, self.test.num_episodes


def split_episodes(
    demonstrations: Demonstrations,
    *,
    seed: int,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
) -> Split:
    """Split into training, validation and test, stratified by mode where modes are known.

    The parts depend on ``seed``, the number of episodes and their modes, and on nothing else. A part that would be
    left without an episode is an error.

    >>> demos = Demonstrations.from_episodes([[[0.0]]] * 10, [[[0.0]]] * 10, mode=[0] * 5 + [1] * 5)
    >>> split = split_episodes(demos, seed=0, fractions=(0.6, 0.2, 0.2))
    >>> split.sizes, split.train.mode.bincount().tolist()
    ((6, 2, 2), [3, 3])
    """
    fractions = _checked(fractions)
    number = demonstrations.num_episodes
    totals = largest_remainders(number, fractions)
    if 0 in totals:
        raise DataError(
            demonstrations.source,
            f"the {PARTS[totals.index(0)]} part would be empty",
            expected="one episode or more in each part",
            got=f"{number} episodes in fractions of {', '.join(f'{f:g}' for f in fractions)}",
            fix="more episodes, or larger fractions for the small parts",
        )
    mode = torch.zeros(number, dtype=torch.int64) if demonstrations.mode is None else demonstrations.mode
    with seeded(stream_seed(seed, "split")):
        order = torch.randperm(number)  # of the episodes; the modes come in the order in which they first appear in it
    members: dict[int, list[int]] = {}
    for each in order.tolist():
        members.setdefault(int(mode[each]), []).append(each)
    shares = _allot({m: len(each) for m, each in members.items()}, fractions, totals)
    parts: tuple[list[int], ...] = ([], [], [])
    for m, each in members.items():
        for part, share in zip(parts, shares[m], strict=True):
            part += each[:share]
            del each[:share]
    train, validation, test = (torch.tensor(sorted(part)) for part in parts)
    return Split(
        demonstrations.take(train),
        demonstrations.take(validation),
        demonstrations.take(test),
        (train, validation, test),
    )


def largest_remainders(number: int, fractions: Sequence[float]) -> list[int]:
    """Share ``number`` out by fractions: rounded down, then one more to those with the largest remainders.

    >>> largest_remainders(96, (0.8, 0.1, 0.1))
    [77, 10, 9]
    """
    # rounded first: 0.1 * 30 is a little more than 3, and 0.7 * 10 a little less than 7
    quotas = [round(number * f, 9) for f in fractions]
    shares = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: number - sum(shares)]:
        shares[i] += 1
    return shares


def _allot(sizes: dict[int, int], fractions: Sequence[float], totals: Sequence[int]) -> dict[int, list[int]]:
    """Share each mode out so that the parts' totals hold.

    Every mode gives each part its quota rounded down; what a mode has left goes to different parts, those that still
    lack most. Taking the modes with most left first, this fills all totals whenever they can be filled (the greedy
    construction in the theorem of Gale and Ryser), and they can: the unrounded quotas do.
    """
    shares = {m: [math.floor(round(n * f, 9)) for f in fractions] for m, n in sizes.items()}
    lacking = [total - sum(share[i] for share in shares.values()) for i, total in enumerate(totals)]
    for m in sorted(sizes, key=lambda m: sum(shares[m]) - sizes[m]):
        left = sizes[m] - sum(shares[m])
        for i in sorted(range(len(totals)), key=lambda i: -lacking[i])[:left]:
            shares[m][i] += 1
            lacking[i] -= 1
    return shares


def _checked(fractions: Sequence[float]) -> tuple[float, ...]:
    fits = len(fractions) == len(PARTS) and all(0 < f < 1 for f in fractions)
    if not fits or not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
        raise OptionError(
            "split_episodes()",
            "`fractions`",
            expected="three numbers > 0 that add up to 1: training, validation, test",
            got=repr(tuple(fractions)),
            fix="fractions=(0.8, 0.1, 0.1)",
        )
    return tuple(fractions)
