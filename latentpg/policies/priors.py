r"""Priors of a latent that is drawn once for several steps, and the choices they are built from.

An episode's latent has a hard prior to meet: the decoder is taught where the guide puts z, episode by episode, and when
the policy acts z comes from the prior. What an evidence lower bound rewards most is the prior that equals the aggregate
posterior :math:`\bar q(z) = \frac1E\sum_e q_\psi(z|\tau_e)` (M. D. Hoffman and M. J. Johnson, "ELBO surgery", 2016).
:class:`NormalMixture` can: with one component an episode it *is* that mixture, and
:meth:`~latentpg.policies.episode.EpisodePolicy.match_prior` sets it so.

A latent is chosen by one of two frozen dataclasses, :class:`GaussianLatent` and :class:`CodeLatent`; each builds its
prior network and reads a guide's output. A prior maps features ``[B, F]`` to a distribution over z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.types import _size

from latentpg.errors import OptionError, ShapeError
from latentpg.policies.common import Activation, check_sizes
from latentpg.policies.networks import MLP
from latentpg.programs.distributions import Categorical, DiagNormal

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class NormalMixture(dist.TorchDistribution):
    r"""Mixture of M Gaussian vectors with independent coordinates, as one continuous variable.

    .. math:: p(z) = \sum_{m=1}^M \pi_m \prod_i \mathcal N(z_i; \mu_{mi}, \sigma_{mi})

    Weights ``logits [..., M]`` (unnormalised) and components ``loc``, ``log_scale [..., M, Z]`` broadcast over their
    batch. The component is summed out, so a program has the one continuous site z. There is no ``rsample``: a draw
    chooses a component, and no path leads through that choice to the weights.

    >>> mixture = NormalMixture(torch.zeros(5, 3), torch.zeros(3, 2), torch.zeros(3, 2))
    >>> mixture.log_prob(torch.zeros(7, 5, 2)).shape
    torch.Size([7, 5])
    """

    arg_constraints = {  # noqa: RUF012 (the base class declares it so)
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "log_scale": constraints.independent(constraints.real, 2),
    }
    support = constraints.independent(constraints.real, 1)

    def __init__(
        self,
        logits: Float[Tensor, "*BW M"],
        loc: Float[Tensor, "*BL M Z"],
        log_scale: Float[Tensor, "*BS M Z"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        """Take unnormalised log-weights, means and log standard deviations."""
        if loc.ndim < 2 or loc.shape[-2:] != log_scale.shape[-2:] or logits.shape[-1:] != loc.shape[-2:-1]:
            raise ShapeError(
                "NormalMixture()",
                "`logits`, `loc` and `log_scale`",
                expected="[..., M], [..., M, Z] and [..., M, Z]",
                got=f"{list(logits.shape)}, {list(loc.shape)} and {list(log_scale.shape)}",
            )
        self.logits, self.loc, self.log_scale = logits, loc, log_scale
        batch = torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2], log_scale.shape[:-2])
        super().__init__(batch, loc.shape[-1:], validate_args=False)

    @property
    def weights(self) -> Float[Tensor, "*B M"]:
        """Probability of each component."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`\sum_m\pi_m\mu_m`, ``[..., Z]``."""
        mean = (self.weights.unsqueeze(-1) * self.loc).sum(-2)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        r"""The variance of each coordinate, :math:`\sum_m\pi_m(\sigma_m^2 + \mu_m^2) - (\sum_m\pi_m\mu_m)^2`."""
        second = (self.weights.unsqueeze(-1) * ((2 * self.log_scale).exp() + self.loc.square())).sum(-2)
        return (second - self.mean.square()).expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: _size, _instance: Any = None) -> NormalMixture:  # noqa: ANN401 (torch's signature)
        """Broadcast to a larger batch."""
        return NormalMixture(self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-1:]), *self._components())

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draw a component, then a vector of it, without a gradient."""
        with torch.no_grad():
            weights = Categorical(self.logits.expand(self.batch_shape + self.logits.shape[-1:]))
            chosen = weights.sample(sample_shape).unsqueeze(-1).unsqueeze(-1)
            index = chosen.expand(chosen.shape[:-1] + self.event_shape)

            def pick(values: Tensor) -> Tensor:
                return values.expand(chosen.shape[:-2] + values.shape[-2:]).gather(-2, index).squeeze(-2)

            loc, log_scale = (pick(values) for values in self._components())
            return loc + log_scale.exp() * torch.randn_like(loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score ``value [..., Z]``: the component is summed out."""
        return torch.logsumexp(self._log_joint(value), -1)

    def coordinate_log_prob(self, value: Tensor) -> Tensor:
        r"""Score each coordinate of ``value [..., Z]`` by its own marginal, :math:`\log p(z_i)`, ``[..., Z]``.

        Coordinates of a mixture hang together, so these do not add up to :meth:`log_prob`.
        """
        standardized = (value.unsqueeze(-2) - self.loc) * (-self.log_scale).exp()
        each = -0.5 * standardized.square() - self.log_scale - _HALF_LOG_2_PI
        return torch.logsumexp(self.logits.log_softmax(-1).unsqueeze(-1) + each, -2)

    def responsibilities(self, value: Tensor) -> Float[Tensor, "*B M"]:
        """Return the posterior probability of each component given ``value [..., Z]``."""
        return self._log_joint(value).softmax(-1)

    def _log_joint(self, value: Tensor) -> Tensor:
        standardized = (value.unsqueeze(-2) - self.loc) * (-self.log_scale).exp()
        constant = self.log_scale.sum(-1) + _HALF_LOG_2_PI * self.event_shape[0]
        return self.logits.log_softmax(-1) - 0.5 * standardized.square().sum(-1) - constant

    def _components(self) -> tuple[Tensor, Tensor]:
        return self.loc, self.log_scale


class StandardPrior(nn.Module):
    """N(0, I), whatever the state; there is nothing to learn."""

    def __init__(self, size: int) -> None:
        """Take Z."""
        super().__init__()
        self.size = size

    def forward(self, features: Float[Tensor, "B F"]) -> Distribution:
        """Return the distribution of every row."""
        zeros = features.new_zeros(features.shape[0], self.size)
        return DiagNormal(zeros, zeros)


class GaussianPrior(nn.Module):
    """One Gaussian with independent coordinates, its mean and log standard deviation from a network."""

    def __init__(self, in_features: int, size: int, hidden: Sequence[int], activation: Activation) -> None:
        """Take the size of the features, Z and the network's widths."""
        super().__init__()
        self.network = MLP(in_features, hidden, 2 * size, activation)

    def forward(self, features: Float[Tensor, "B F"]) -> Distribution:
        """Return the distribution of every row."""
        return DiagNormal(*self.network(features).chunk(2, -1))


class MixturePrior(nn.Module):
    r"""Mixture whose weights depend on the state: :math:`\sum_m \pi_m(s)\,\mathcal N(z; \mu_m, \sigma_m)`.

    The components are parameters and the same in every state, so that they can be set to be the posteriors of
    demonstrations; which of them may come up where is for the weights to say. Means start apart, drawn from N(0, I).
    """

    def __init__(
        self, in_features: int, size: int, num_components: int, hidden: Sequence[int], activation: Activation
    ) -> None:
        """Take the size of the features, Z, M and the widths of the network of the weights."""
        super().__init__()
        self.weights = MLP(in_features, hidden, num_components, activation)
        self.loc = nn.Parameter(torch.randn(num_components, size))
        self.log_scale = nn.Parameter(torch.zeros(num_components, size))

    def forward(self, features: Float[Tensor, "B F"]) -> NormalMixture:
        """Return the distribution of every row."""
        return NormalMixture(self.weights(features), self.loc, self.log_scale)

    def place(self, loc: Float[Tensor, "M Z"], log_scale: Float[Tensor, "M Z"]) -> None:
        """Put the components there, and make the weights even in every state: the weights' last layer becomes zero."""
        if loc.shape != self.loc.shape or log_scale.shape != loc.shape:
            raise ShapeError(
                "MixturePrior.place()",
                "`loc` and `log_scale`",
                expected=f"[M, Z] = {list(self.loc.shape)} each",
                got=f"{list(loc.shape)} and {list(log_scale.shape)}",
                fix="num_components= the number of episodes",
            )
        with torch.no_grad():
            self.loc.copy_(loc)
            self.log_scale.copy_(log_scale)
            last = self.weights.layers[-1]
            for parameter in last.parameters():
                parameter.zero_()


class CodePrior(nn.Module):
    """A categorical over codes, its logits from a network."""

    def __init__(self, in_features: int, num_codes: int, hidden: Sequence[int], activation: Activation) -> None:
        """Take the size of the features, the number of codes and the network's widths."""
        super().__init__()
        self.network = MLP(in_features, hidden, num_codes, activation)

    def forward(self, features: Float[Tensor, "B F"]) -> Distribution:
        """Return the distribution of every row."""
        return Categorical(self.network(features))


@dataclass(frozen=True)
class GaussianLatent:
    """A continuous z of ``size`` dimensions; the guide is a Gaussian with independent coordinates.

    ``prior`` is ``"standard"`` for N(0, I), ``"learned"`` for one Gaussian whose moments depend on the state, or
    ``"mixture"`` for ``num_components`` of them (see :class:`MixturePrior`).

    >>> GaussianLatent(size=3).decoder_size
    3
    """

    size: int = 8
    prior: Literal["standard", "learned", "mixture"] = "mixture"
    num_components: int = 32

    def __post_init__(self) -> None:
        """Check the sizes and the name."""
        check_sizes("GaussianLatent()", size=self.size, num_components=self.num_components)
        if self.prior not in ("standard", "learned", "mixture"):
            raise OptionError(
                "GaussianLatent()", "`prior`", expected='"standard", "learned" or "mixture"', got=repr(self.prior)
            )

    @property
    def decoder_size(self) -> int:
        """Numbers by which a decoder sees z."""
        return self.size

    @property
    def num_guide_parameters(self) -> int:
        """Numbers that a guide's network gives."""
        return 2 * self.size

    def build_prior(self, in_features: int, hidden: Sequence[int], activation: Activation) -> nn.Module:
        """Build p(z | s)."""
        if self.prior == "standard":
            return StandardPrior(self.size)
        if self.prior == "learned":
            return GaussianPrior(in_features, self.size, hidden, activation)
        return MixturePrior(in_features, self.size, self.num_components, hidden, activation)

    def guide(self, parameters: Float[Tensor, "*B P"]) -> DiagNormal:
        """Read a guide's parameters."""
        return DiagNormal(*parameters.chunk(2, -1))


@dataclass(frozen=True)
class CodeLatent:
    """A discrete z, one of ``num_codes``: log pi is exact by enumeration.

    A decoder has one vector of weights a code, which is what a vector-quantised model calls its code book; here the
    choice of a code is a latent variable with a likelihood instead of the nearest neighbour.
    """

    num_codes: int = 24

    def __post_init__(self) -> None:
        """Check the number."""
        check_sizes("CodeLatent()", num_codes=self.num_codes)

    @property
    def decoder_size(self) -> int:
        """Numbers by which a decoder sees z: one a code."""
        return self.num_codes

    @property
    def num_guide_parameters(self) -> int:
        """Numbers that a guide's network gives."""
        return self.num_codes

    def build_prior(self, in_features: int, hidden: Sequence[int], activation: Activation) -> nn.Module:
        """Build p(z | s)."""
        return CodePrior(in_features, self.num_codes, hidden, activation)

    def guide(self, parameters: Float[Tensor, "*B P"]) -> Categorical:
        """Read a guide's parameters."""
        return Categorical(parameters)


Latent = GaussianLatent | CodeLatent
"""Either kind of latent."""

Prior = Callable[[Tensor], Distribution]
"""From features ``[B, F]`` to p(z | s)."""
