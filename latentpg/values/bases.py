"""Features that vary smoothly over the ranges: Gaussian bumps, cosines and monomials."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.numerics._checks import positive
from latentpg.policies.common import check_sizes
from latentpg.values._checks import check_map_size, per_dimension
from latentpg.values.ranges import Ranges


@dataclass(frozen=True)
class GaussianRBF:
    r"""Place Gaussian bumps on a lattice that includes the ends of every range, and add the constant 1 last.

    :math:`\phi_i(u) = \exp(-\frac12 \sum_d ((u_d - c_{i,d}) / (w\,h_d))^2)`, with :math:`h_d = 1/(n_d - 1)` the
    lattice's spacing and ``width`` w in units of it.

    >>> bumps = GaussianRBF(Ranges((0.0,), (1.0,)), centres=2, width=1.0)
    >>> [round(feature, 4) for feature in bumps(torch.tensor([[0.0]]))[0].tolist()]  # exp(-1/2) = 0.6065
    [1.0, 0.6065, 1.0]
    """

    ranges: Ranges
    centres: int | tuple[int, ...] = 5
    width: float | int = 1.0

    def __post_init__(self) -> None:
        """Refuse lattices without spacing, and bumps without width."""
        if min(self._centres) < 2:
            raise OptionError("GaussianRBF()", "`centres`", expected="at least 2 a dimension", got=repr(self.centres))
        check_map_size("GaussianRBF()", self.out_features)
        positive("GaussianRBF()", "width", self.width)

    @property
    def in_features(self) -> int:
        """Size S of an observation."""
        return self.ranges.size

    @property
    def out_features(self) -> int:
        """Number of bumps, and one for the constant."""
        return math.prod(self._centres) + 1

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        """Return the bumps in reading order of their centres, then the constant."""
        unit = self.ranges.unit(obs)
        product = torch.ones_like(unit[:, :1])
        for dimension, number in enumerate(self._centres):  # a Gaussian of a sum of squares is a product of Gaussians
            centres = torch.linspace(0.0, 1.0, number, dtype=obs.dtype, device=obs.device)
            distance = (unit[:, dimension, None] - centres) * (number - 1) / self.width
            product = (product[:, :, None] * (-0.5 * distance.square()).exp()[:, None, :]).flatten(1)
        return torch.cat([product, torch.ones_like(unit[:, :1])], -1)

    @property
    def _centres(self) -> tuple[int, ...]:
        return per_dimension("GaussianRBF()", "centres", self.centres, self.ranges.size)


@dataclass(frozen=True)
class Fourier:
    r"""Take cosines :math:`\phi_c(u) = \cos(\pi\, c \cdot u)` for every :math:`c \in \{0, \dots, n\}^S`.

    ``order`` is n. ``coupling`` limits how many entries of c are not zero: 1 has no products of dimensions and
    :math:`nS + 1` features, ``None`` is the full basis. The constant comes first.

    Source: G. Konidaris, S. Osentoski and P. Thomas, "Value function approximation in reinforcement learning using the
    Fourier basis", 2011.

    >>> basis = Fourier(Ranges((0.0,), (1.0,)), order=2)
    >>> [round(feature, 4) for feature in basis(torch.tensor([[0.25]]))[0].tolist()]
    [1.0, 0.7071, -0.0]
    """

    ranges: Ranges
    order: int = 3
    coupling: int | None = None

    def __post_init__(self) -> None:
        """Refuse an order below one, and too many cosines."""
        _check_exponents("Fourier()", "order", self.order, self.ranges.size, self.coupling)

    @property
    def in_features(self) -> int:
        """Size S of an observation."""
        return self.ranges.size

    @property
    def out_features(self) -> int:
        """Number of cosines."""
        return _number_of_exponents(self.ranges.size, self.order, self.coupling)

    @cached_property
    def coefficients(self) -> Float[Tensor, "F S"]:
        """The vectors c, one a row, float64."""
        return _exponents(self.ranges.size, self.order, self.coupling)

    @property
    def step_scales(self) -> Float[Tensor, " F"]:
        r"""The factor :math:`1/\|c\|_2` (1 for the constant) that the source advises for each feature's step size."""
        norm = self.coefficients.norm(dim=-1)
        return torch.where(norm == 0.0, 1.0, 1.0 / norm.clamp(min=1.0))

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        """Return the cosines."""
        return (torch.pi * self.ranges.unit(obs) @ self.coefficients.to(obs).T).cos()


@dataclass(frozen=True)
class Polynomial:
    r"""Take monomials :math:`\phi_c(u) = \prod_d u_d^{c_d}` for every :math:`c \in \{0, \dots, n\}^S`.

    ``degree`` is n, of each dimension by itself. ``coupling`` limits how many entries of c are not zero, as in
    :class:`Fourier`. The constant comes first.

    >>> Polynomial(Ranges((0.0,), (1.0,)), degree=2)(torch.tensor([[0.5]])).tolist()
    [[1.0, 0.5, 0.25]]
    """

    ranges: Ranges
    degree: int = 2
    coupling: int | None = None

    def __post_init__(self) -> None:
        """Refuse a degree below one, and too many monomials."""
        _check_exponents("Polynomial()", "degree", self.degree, self.ranges.size, self.coupling)

    @property
    def in_features(self) -> int:
        """Size S of an observation."""
        return self.ranges.size

    @property
    def out_features(self) -> int:
        """Number of monomials."""
        return _number_of_exponents(self.ranges.size, self.degree, self.coupling)

    @cached_property
    def exponents(self) -> Float[Tensor, "F S"]:
        """The vectors c, one a row, float64."""
        return _exponents(self.ranges.size, self.degree, self.coupling)

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, "B F"]:
        """Return the monomials."""
        return self.ranges.unit(obs)[:, None].pow(self.exponents.to(obs)).prod(-1)


def _exponents(dimensions: int, highest: int, coupling: int | None) -> Tensor:
    """List the vectors of {0..highest}^S with at most ``coupling`` entries that are not zero, simplest first."""
    rows = []
    for together in range((dimensions if coupling is None else coupling) + 1):
        for chosen in itertools.combinations(range(dimensions), together):
            for powers in itertools.product(range(1, highest + 1), repeat=together):
                row = [0.0] * dimensions
                for place, power in zip(chosen, powers, strict=True):
                    row[place] = float(power)
                rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def _number_of_exponents(dimensions: int, highest: int, coupling: int | None) -> int:
    most = dimensions if coupling is None else coupling
    return sum(math.comb(dimensions, together) * highest**together for together in range(most + 1))


def _check_exponents(where: str, name: str, highest: int, dimensions: int, coupling: int | None) -> None:
    check_sizes(where, **{name: highest})
    if coupling is not None and not 1 <= coupling <= dimensions:
        raise OptionError(where, "`coupling`", expected=f"1..S={dimensions}, or None", got=repr(coupling))
    check_map_size(where, _number_of_exponents(dimensions, highest, coupling))
