r"""Features of flat observations: fixed maps ``[B, S] -> [B, F]`` under a linear critic.

Each map is a frozen dataclass whose ``repr`` is its configuration. All but :class:`Identity` divide stated
:class:`~latentpg.values.ranges.Ranges`, with :math:`u \in [0, 1]^S` the observation in units of them:

====================  ==================================================  ========================================
map                   features                                            F
====================  ==================================================  ========================================
:class:`Identity`     the observation itself                              :math:`S`
:class:`GridCells`    one-hot of the cell that holds :math:`u`            :math:`\prod_d n_d`
:class:`TileCoding`   one-hot in each of J shifted grids                  :math:`J \prod_d (n_d + 1)`
:class:`GaussianRBF`  bumps on a lattice, and 1                           :math:`\prod_d n_d + 1`
:class:`Fourier`      :math:`\cos(\pi\, c \cdot u)`, 1 among them         :math:`(n + 1)^S`, less when uncoupled
:class:`Polynomial`   :math:`\prod_d u_d^{c_d}`, 1 among them             the same
====================  ==================================================  ========================================

F grows with the power S, so that a map of more than 2²⁰ features is refused; in many dimensions take few cells,
``coupling=1``, or a network.

Source of the maps: R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018, section
9.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import OptionError, did_you_mean
from latentpg.policies.common import check_sizes
from latentpg.values._checks import check_observations
from latentpg.values.bases import Fourier, GaussianRBF, Polynomial
from latentpg.values.cells import GridCells, TileCoding
from latentpg.values.ranges import Ranges, ranges_of


@runtime_checkable
class Features(Protocol):
    """A fixed map from flat observations to features."""

    @property
    def in_features(self) -> int:
        """Size S of an observation."""

    @property
    def out_features(self) -> int:
        """Number of features F."""

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        """Map every row."""


@runtime_checkable
class BinaryFeatures(Features, Protocol):
    """Features that are 1 in a few places of each row and 0 elsewhere; only the places need to be looked at."""

    def active(self, obs: Float[Tensor, "B S"]) -> Int[Tensor, "B J"]:
        """Return the J places of each row at which the feature is 1."""


@dataclass(frozen=True)
class Identity:
    """Take the observation as the features: with one-hot observations, a table of values.

    >>> import torch
    >>> Identity(2)(torch.tensor([[0.5, 2.0]])).tolist()
    [[0.5, 2.0]]
    """

    size: int

    def __post_init__(self) -> None:
        """Refuse a size below one."""
        check_sizes("Identity()", size=self.size)

    @property
    def in_features(self) -> int:
        """Size S of an observation."""
        return self.size

    @property
    def out_features(self) -> int:
        """The same S."""
        return self.size

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """Return the observations."""
        check_observations("features", obs, self.size)
        return obs


FEATURES: Mapping[str, Callable[[Ranges, int], Features]] = {
    "grid-cells": lambda ranges, resolution: GridCells(ranges, cells=resolution),
    "tile-coding": lambda ranges, resolution: TileCoding(ranges, tiles=resolution),
    "rbf": lambda ranges, resolution: GaussianRBF(ranges, centres=resolution),
    "fourier": lambda ranges, resolution: Fourier(ranges, order=resolution),
    "polynomial": lambda ranges, resolution: Polynomial(ranges, degree=resolution),
}
"""Feature maps by name, each built from ranges and one integer: cells, tiles, centres, order or degree."""


def make_features(
    name: str,
    space: spaces.Space[Any],
    *,
    resolution: int,
    low: Sequence[float | int | None] | None = None,
    high: Sequence[float | int | None] | None = None,
) -> Features:
    """Build a feature map by name for a ``Box``, its ranges as :func:`~latentpg.values.ranges.ranges_of` reads them.

    ``resolution`` is the number of cells, tiles or centres a dimension, the order of the Fourier basis, or the degree.

    >>> make_features("fourier", spaces.Box(-1.0, 1.0, (2,)), resolution=3).out_features
    16
    """
    if name not in FEATURES:
        raise OptionError("make_features()", "unknown features", got=repr(name), fix=did_you_mean(name, FEATURES))
    return FEATURES[name](ranges_of(space, low=low, high=high), resolution)
