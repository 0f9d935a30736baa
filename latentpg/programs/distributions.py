"""Lean Pyro distributions: shapes checked once, no validation per call, safe under ``vmap`` and ``torch.compile``.

Any Pyro distribution can be used in a program; these are what the ready-made policies use because they cost less.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property
from torch.types import _size

from latentpg.errors import ShapeError, SupportError

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class DiagNormal(dist.TorchDistribution):
    r"""Gaussian vector with independent coordinates, parametrised by ``log_scale``.

    .. math:: \log p(x) = -\tfrac12 \sum_i (x_i - \mu_i)^2 / \sigma_i^2 - \sum_i \log\sigma_i - \tfrac{D}{2}\log 2\pi

    ``loc`` and ``log_scale`` are ``[..., D]`` and broadcast; the event is the last dimension. ``rsample`` draws by
    ``randn``, which ``torch.func.vmap`` and ``torch.compile`` understand (``torch.normal``, behind the stock one, is
    not safe there).

    >>> DiagNormal(torch.zeros(3, 2), torch.zeros(2)).log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
    """

    arg_constraints = {  # noqa: RUF012 (the base class declares it so)
        "loc": constraints.independent(constraints.real, 1),
        "log_scale": constraints.independent(constraints.real, 1),
    }
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*BL D"],
        log_scale: Float[Tensor, "*BS D"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        """Take the mean and the logarithm of the standard deviation, in the units of the variable."""
        if loc.ndim == 0 or log_scale.ndim == 0 or loc.shape[-1] != log_scale.shape[-1]:
            raise ShapeError(
                "DiagNormal()",
                "`loc` and `log_scale`",
                expected="the same last dimension D",
                got=f"{list(loc.shape)} and {list(log_scale.shape)}",
                fix="expand both to [..., D]",
            )
        self.loc, self.log_scale = loc, log_scale
        shape = _broadcast(loc.shape, log_scale.shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=False)

    @lazy_property
    def scale(self) -> Tensor:
        """Standard deviation of each coordinate."""
        return self.log_scale.exp()

    @property
    def mean(self) -> Tensor:
        """The mean, ``[..., D]``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, ``[..., D]``."""
        return (2 * self.log_scale).exp().expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: _size, _instance: Any = None) -> DiagNormal:  # noqa: ANN401 (torch's signature)
        """Broadcast to a larger batch."""
        shape = torch.Size(batch_shape) + self.event_shape
        return DiagNormal(self.loc.expand(shape), self.log_scale.expand(shape))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draw differentiably: ``loc + exp(log_scale) * noise``."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draw without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score ``value [..., D]``."""
        standardized = (value - self.loc) * (-self.log_scale).exp()
        constant = self.log_scale.sum(-1) + _HALF_LOG_2_PI * self.event_shape[0]
        return -0.5 * standardized.square().sum(-1) - constant

    def entropy(self) -> Tensor:
        r"""Differential entropy :math:`\sum_i \log\sigma_i + \tfrac D2 \log 2\pi e`, in nats."""
        total = self.log_scale.sum(-1) + (0.5 + _HALF_LOG_2_PI) * self.event_shape[0]
        return total.expand(self.batch_shape)


@register_kl(DiagNormal, DiagNormal)
def _kl_diag_normal(p: DiagNormal, q: DiagNormal) -> Tensor:
    log_ratio = p.log_scale - q.log_scale
    distance = ((p.loc - q.loc) * (-q.log_scale).exp()).square()
    return (0.5 * ((2 * log_ratio).exp() + distance - 1) - log_ratio).sum(-1)


def _broadcast(larger: torch.Size, smaller: torch.Size) -> torch.Size:
    """Broadcast two shapes; what is nearly always so is told first.

    ``torch.broadcast_shapes`` takes as long as scoring a small batch.
    """
    covered = larger[len(larger) - len(smaller) :] == smaller
    return larger if covered else torch.broadcast_shapes(larger, smaller)


class Categorical(dist.Categorical):
    """Pyro's categorical, drawn by inverse cumulative sum so that it also draws under ``vmap`` and ``torch.compile``.

    >>> Categorical(torch.zeros(5, 3)).sample((2,)).shape
    torch.Size([2, 5])
    """

    def __init__(self, logits: Float[Tensor, "*B C"], *, validate_args: bool | None = None) -> None:
        """Take unnormalised log-probabilities ``[..., C]``."""
        super().__init__(logits=logits, validate_args=False)

    def expand(self, batch_shape: _size, _instance: Any = None) -> Categorical:  # noqa: ANN401 (torch's signature)
        """Broadcast to a larger batch."""
        return Categorical(self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-1:]))

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draw categories ``sample_shape + [...]`` as int64."""
        with torch.no_grad():
            cumulative = self.logits.softmax(-1).cumsum(-1)
            shape = self._extended_shape(sample_shape)
            noise = torch.rand(shape, dtype=cumulative.dtype, device=cumulative.device).unsqueeze(-1)
            # Times the total, which rounding leaves beside one: else noise above it draws the last category, which
            # may be impossible.
            return (noise * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score categories ``value [...]``, broadcasting against the batch."""
        if value.dtype not in _INTEGERS:
            raise SupportError(
                "Categorical.log_prob()",
                "the value is no category",
                expected="integers counted from zero, torch.int64",
                got=str(value.dtype),
                likely="an action or latent that went through a float tensor or a mask",
                fix="value.long()",
            )
        shape = _broadcast(value.shape, self.logits.shape[:-1])
        logits = self.logits.expand(*shape, self.logits.shape[-1])
        return logits.gather(-1, value.long().expand(shape).unsqueeze(-1)).squeeze(-1)


class MultiCategorical(dist.TorchDistribution):
    """Independent categoricals of different sizes as one event ``[D]``: Gymnasium's ``MultiDiscrete``.

    >>> MultiCategorical(torch.zeros(4, 5), (2, 3)).log_prob(torch.zeros(4, 2, dtype=torch.int64)).shape
    torch.Size([4])
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012 (as the base class)
    has_enumerate_support = True

    def __init__(
        self, logits: Float[Tensor, "*B P"], sizes: tuple[int, ...], *, validate_args: bool | None = None
    ) -> None:
        """Take the unnormalised log-probabilities of all categoricals, concatenated, and the size of each."""
        if logits.shape[-1] != sum(sizes):
            raise ShapeError(
                "MultiCategorical()", "`logits`", expected=f"[..., {sum(sizes)}]", got=str(list(logits.shape))
            )
        self.logits, self.sizes = logits, tuple(sizes)
        self.parts = [Categorical(part) for part in logits.split(list(sizes), -1)]
        super().__init__(logits.shape[:-1], torch.Size([len(sizes)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Integer vectors below the sizes."""
        return _IntegerVector(self.sizes)

    def expand(self, batch_shape: _size, _instance: Any = None) -> MultiCategorical:  # noqa: ANN401 (torch's signature)
        """Broadcast to a larger batch."""
        return MultiCategorical(self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-1:]), self.sizes)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draw ``[..., D]`` as int64."""
        return torch.stack([part.sample(sample_shape) for part in self.parts], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score integer vectors ``value [..., D]``."""
        scores = [part.log_prob(value[..., i]) for i, part in enumerate(self.parts)]
        return torch.stack(scores, -1).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy of the vector in nats: the sum over its independent coordinates."""
        return torch.stack([part.entropy() for part in self.parts], -1).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """List every vector: ``[prod(sizes), ..., D]``."""
        ranges = [torch.arange(size, device=self.logits.device) for size in self.sizes]
        grid = torch.cartesian_prod(*ranges).reshape(-1, *[1] * len(self.batch_shape), len(self.sizes))
        return grid.expand(-1, *self.batch_shape, -1) if expand else grid


class MultiBernoulli(dist.TorchDistribution):
    r"""Independent coin flips as one event ``[D]`` of zeros and ones: Gymnasium's ``MultiBinary``.

    .. math:: \log p(x) = \sum_i x_i l_i - \log(1 + e^{l_i})

    >>> MultiBernoulli(torch.zeros(4, 2)).enumerate_support().shape
    torch.Size([4, 4, 2])
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012 (as the base class)
    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True

    def __init__(self, logits: Float[Tensor, "*B D"], *, validate_args: bool | None = None) -> None:
        """Take the log-odds of a one, ``[..., D]``."""
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: _size, _instance: Any = None) -> MultiBernoulli:  # noqa: ANN401 (torch's signature)
        """Broadcast to a larger batch."""
        return MultiBernoulli(self.logits.expand(torch.Size(batch_shape) + self.event_shape))

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draw floats 0 or 1, ``[..., D]``."""
        with torch.no_grad():
            noise = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
            return (noise < self.logits.sigmoid()).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score vectors ``value [..., D]``."""
        return (value * self.logits - nn.functional.softplus(self.logits)).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy of the vector in nats."""
        return (nn.functional.softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """List every vector: ``[2 ** D, ..., D]``."""
        coin = torch.arange(2, dtype=self.logits.dtype, device=self.logits.device)
        grid = torch.cartesian_prod(*[coin] * self.event_shape[0]).reshape(
            -1, *[1] * len(self.batch_shape), self.event_shape[0]
        )
        return grid.expand(-1, *self.batch_shape, -1) if expand else grid


@register_kl(MultiBernoulli, MultiBernoulli)
def _kl_multi_bernoulli(p: MultiBernoulli, q: MultiBernoulli) -> Tensor:
    normalizers = nn.functional.softplus(q.logits) - nn.functional.softplus(p.logits)
    return (p.logits.sigmoid() * (p.logits - q.logits) + normalizers).sum(-1)


class _IntegerVector(constraints.Constraint):
    is_discrete = True
    event_dim = 1

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        sizes = torch.tensor(self.sizes, device=value.device)
        return ((value >= 0) & (value < sizes) & (value % 1 == 0)).all(-1)


@register_kl(MultiCategorical, MultiCategorical)
def _kl_multi_categorical(p: MultiCategorical, q: MultiCategorical) -> Tensor:
    parts = [torch.distributions.kl_divergence(a, b) for a, b in zip(p.parts, q.parts, strict=True)]
    return torch.stack(parts, -1).sum(-1)
