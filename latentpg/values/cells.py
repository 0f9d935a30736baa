"""Features that say in which cell an observation lies: one grid, or several shifted ones.

Both are 1 in a few places and 0 elsewhere, and name those places by ``active``, so that a linear critic adds up a few
weights a row instead of multiplying by all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.policies.common import check_sizes
from latentpg.values._checks import check_map_size, per_dimension
from latentpg.values.ranges import Ranges


@dataclass(frozen=True)
class GridCells:
    """Divide each range into ``cells`` equal intervals, and say in which cell of the grid the observation lies.

    ``cells`` is one number for all dimensions or one for each. The last cell includes its upper end.

    >>> GridCells(Ranges((0.0,), (1.0,)), cells=4)(torch.tensor([[0.3], [1.0]])).tolist()
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """

    ranges: Ranges
    cells: int | tuple[int, ...] = 8

    def __post_init__(self) -> None:
        """Refuse grids without cells, and with too many."""
        check_map_size("GridCells()", math.prod(self._cells))

    @property
    def in_features(self) -> int:
        """Size S of an observation."""
        return self.ranges.size

    @property
    def out_features(self) -> int:
        """Number of cells of the grid."""
        return math.prod(self._cells)

    def active(self, obs: Float[Tensor, "B S"]) -> Int[Tensor, "B 1"]:
        """Return the number of the cell, in reading order: the last dimension runs fastest."""
        cells = torch.tensor(self._cells, device=obs.device)
        place = torch.minimum((self.ranges.unit(obs) * cells).long(), cells - 1)
        return _in_reading_order(place, self._cells).unsqueeze(-1)

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        """Return the one-hot rows."""
        return _ones_at(self.active(obs), self.out_features, obs)

    @property
    def _cells(self) -> tuple[int, ...]:
        return per_dimension("GridCells()", "cells", self.cells, self.ranges.size)


@dataclass(frozen=True)
class TileCoding:
    r"""Lay ``tilings`` J grids of ``tiles`` n intervals over the ranges, each shifted by a fraction of a tile.

    Tiling j is shifted in dimension d by :math:`((2d + 1)\,j \bmod J) / J` tiles: the odd displacement vector, which
    avoids the diagonal artefacts of equal shifts. Exactly J features of a row are 1. A power of two of at least 4S
    tilings is advised.

    Source: W. T. Miller and F. H. Glanz, "UNH_CMAC version 2.1", 1996; Sutton and Barto 2018, section 9.5.4.

    >>> tiles = TileCoding(Ranges((0.0,), (1.0,)), tilings=2, tiles=2)
    >>> tiles(torch.tensor([[0.1], [0.3]])).tolist()
    [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]]
    """

    ranges: Ranges
    tilings: int = 8
    tiles: int | tuple[int, ...] = 8

    def __post_init__(self) -> None:
        """Refuse tilings without tiles, and with too many."""
        check_sizes("TileCoding()", tilings=self.tilings)
        check_map_size("TileCoding()", self.out_features)

    @property
    def in_features(self) -> int:
        """Size S of an observation."""
        return self.ranges.size

    @property
    def out_features(self) -> int:
        """Number of tiles of all tilings; a shifted one has one more in each dimension."""
        return self.tilings * math.prod(self._places)

    def active(self, obs: Float[Tensor, "B S"]) -> Int[Tensor, "B J"]:
        """Return the tile of each tiling that holds the observation."""
        tiling = torch.arange(self.tilings, device=obs.device)
        odd = 2 * torch.arange(self.ranges.size, device=obs.device) + 1
        shift = (tiling[:, None] * odd % self.tilings).to(obs.dtype) / self.tilings
        tiles = torch.tensor([places - 1 for places in self._places], device=obs.device)
        place = (self.ranges.unit(obs)[:, None] * tiles + shift).long()
        return _in_reading_order(torch.minimum(place, tiles), self._places) + tiling * math.prod(self._places)

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        """Return rows with a 1 for each tiling."""
        return _ones_at(self.active(obs), self.out_features, obs)

    @property
    def _places(self) -> tuple[int, ...]:
        tiles = per_dimension("TileCoding()", "tiles", self.tiles, self.ranges.size)
        return tuple(number + 1 for number in tiles)


def _in_reading_order(place: Int[Tensor, "*B S"], sizes: Sequence[int]) -> Int[Tensor, "*B"]:
    strides = [math.prod(sizes[dimension + 1 :]) for dimension in range(len(sizes))]
    return (place * torch.tensor(strides, device=place.device)).sum(-1)


def _ones_at(active: Int[Tensor, "B J"], size: int, like: Tensor) -> Float[Tensor, "B F"]:
    return like.new_zeros(len(like), size).scatter_(1, active, 1.0)
