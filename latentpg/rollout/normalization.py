r"""Running normalisation of observations and rewards, with the statistics as an explicit state.

Statistics are float64 and move only when told to: between updates, never while a rollout is collected or while it is
learnt from, so that log p(z, a | s) recomputed in the update is what it was while acting. Rollouts store raw
observations and raw rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError
from latentpg.rollout.faults import EnvironmentFault

SMALLEST_VARIANCE = 1e-8
"""Added to a variance before its root is taken, so that what never varies is divided by 1e-4 and not by zero."""


@dataclass(frozen=True)
class RunningMoments:
    r"""Count, mean and (population) variance of all rows seen so far, float64.

    Two sets of n and m rows join by

    .. math:: \mu = \mu_n + \delta\tfrac{m}{n+m},\quad
              \sigma^2 = \tfrac{n\sigma_n^2 + m\sigma_m^2}{n+m} + \delta^2\tfrac{nm}{(n+m)^2},\quad
              \delta = \mu_m - \mu_n,

    which is exact: the moments are those of all rows in one pile. Before any row they are 0 and 1.

    Source: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.

    >>> moments = RunningMoments.of_size(1).update(torch.tensor([[1.0], [3.0]])).update(torch.tensor([[8.0]]))
    >>> moments.count, moments.mean.item(), round(moments.variance.item(), 6)
    (3, 4.0, 8.666667)
    """

    count: int
    mean: Float[Tensor, " S"]
    variance: Float[Tensor, " S"]

    @classmethod
    def of_size(cls, size: int) -> RunningMoments:
        """Begin with no rows of ``size`` entries."""
        return cls(0, torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64))

    def update(self, rows: Float[Tensor, "M S"], *, joined: Joined | None = None) -> RunningMoments:
        """Join M more rows.

        ``joined`` makes the moments of what all workers saw of the moments of what this one did.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ShapeError(
                "RunningMoments.update()", "`rows`", expected=f"[M, S={len(self.mean)}]", got=str(list(rows.shape))
            )
        _check_finite("RunningMoments.update()", "`rows`", rows)
        mine = self.of_rows(rows)
        return self.join(mine if joined is None else joined(mine))

    @classmethod
    def of_rows(cls, rows: Float[Tensor, "M S"]) -> RunningMoments:
        """Take the moments of M rows alone.

        >>> RunningMoments.of_rows(torch.tensor([[1.0], [3.0]])).variance.item()
        1.0
        """
        if len(rows) == 0:
            return cls.of_size(rows.shape[1])
        rows = rows.detach().double()
        return cls(len(rows), rows.mean(0), rows.var(0, correction=0))

    def to(self, device: torch.device) -> RunningMoments:
        """Return the same on another device."""
        return RunningMoments(self.count, self.mean.to(device), self.variance.to(device))

    def join(self, other: RunningMoments) -> RunningMoments:
        """Return the moments of both piles of rows in one."""
        more = other.count
        if more == 0:
            return self
        if self.mean.device != other.mean.device:
            return self.to(other.mean.device).join(other)
        total, delta = self.count + more, other.mean - self.mean
        pooled = (self.count * self.variance + more * other.variance) / total
        return RunningMoments(
            total, self.mean + delta * (more / total), pooled + delta.square() * (self.count * more / total**2)
        )


Joined: TypeAlias = Callable[[RunningMoments], RunningMoments]
"""Makes the moments of what all workers saw of the moments of what one of them did."""


class ObservationNormalizer(nn.Module):
    r"""Encode observations as :math:`\mathrm{clip}((s-\mu)/\sqrt{\sigma^2+10^{-8}}, \pm c)`.

    A policy takes it as its ``encoder=`` (before a network of the caller's, by ``nn.Sequential``), and a critic too;
    the statistics are buffers and no parameters. Until :meth:`update` is called nothing is changed but the clip.

    >>> normalizer = ObservationNormalizer(2)
    >>> normalizer.update(torch.tensor([[0.0, 5.0], [2.0, 7.0]]))
    >>> normalizer(torch.tensor([[2.0, 6.0]]))
    tensor([[1., 0.]])
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, size: int, *, clip: float | int = 10.0) -> None:
        """Take S, and where to clip in standard deviations."""
        super().__init__()
        if not clip > 0:
            raise OptionError("ObservationNormalizer()", "`clip`", expected="a number > 0", got=repr(clip), fix="10.0")
        self.clip = float(clip)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))

    @property
    def moments(self) -> RunningMoments:
        """The statistics; changing what is returned changes nothing here."""
        return RunningMoments(int(self.count), self.mean.clone(), self.variance.clone())

    def update(
        self, obs: Float[Tensor, "M S"], *, mask: Bool[Tensor, " M"] | None = None, joined: Joined | None = None
    ) -> None:
        """Join raw observations, those in ``mask``; call it between updates; ``joined`` as with moments."""
        moments = self.moments.update(obs if mask is None else obs[mask], joined=joined)
        self.count.fill_(moments.count)
        self.mean.copy_(moments.mean)
        self.variance.copy_(moments.variance)

    def forward(self, obs: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S"]:
        """Normalise, in the observations' own floating type."""
        mean, scale = self.mean.to(obs.dtype), (self.variance + SMALLEST_VARIANCE).rsqrt().to(obs.dtype)
        return ((obs - mean) * scale).clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class RewardScaler:
    r"""Divide rewards by the running standard deviation of the discounted return, :math:`r/\sqrt{\sigma^2_R+10^{-8}}`.

    :math:`R_t = \gamma(1-\mathrm{done}_{t-1})R_{t-1} + r_t` is carried along in each of N members from one rollout to
    the next, and :math:`\sigma^2_R` is the variance of all its values so far. The mean is not taken off: that would
    change which policy is best where episodes have different lengths. Update first, then scale the whole rollout with
    the one factor: what is learnt from in one update has one unit.

    Used by L. Engstrom et al., "Implementation matters in deep policy gradients: a case study on PPO and TRPO", 2020.

    >>> scaler = RewardScaler.of_size(1, discount=0.5).update(
    ...     torch.tensor([[1.0], [2.0]]), torch.tensor([[False], [True]])
    ... )
    >>> scaler.scale(torch.tensor([[1.5]]))  # returns 1 and 2.5 have the standard deviation 0.75
    tensor([[2.]])
    """

    discount: float | int
    moments: RunningMoments
    carried: Float[Tensor, " N"]
    clip: float | int = 10.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.discount <= 1:
            raise OptionError("RewardScaler()", "`discount`", expected="a number in [0, 1]", got=repr(self.discount))
        if not self.clip > 0:
            raise OptionError("RewardScaler()", "`clip`", expected="a number > 0", got=repr(self.clip), fix="10.0")

    @classmethod
    def of_size(cls, num_envs: int, *, discount: float | int, clip: float | int = 10.0) -> RewardScaler:
        """Begin with N members and nothing seen."""
        return cls(discount, RunningMoments.of_size(1), torch.zeros(num_envs, dtype=torch.float64), clip)

    def update(
        self,
        reward: Float[Tensor, "T N"],
        done: Bool[Tensor, "T N"],
        *,
        mask: Bool[Tensor, "T N"] | None = None,
        joined: Joined | None = None,
    ) -> RewardScaler:
        """Join a rollout's rewards; steps outside of ``mask`` are no steps, ``joined`` as with moments."""
        if reward.ndim != 2 or reward.shape[1] != len(self.carried) or done.shape != reward.shape:
            raise ShapeError(
                "RewardScaler.update()",
                "`reward` and `done`",
                expected=f"[T, N={len(self.carried)}] both",
                got=f"{list(reward.shape)} and {list(done.shape)}",
            )
        _check_finite("RewardScaler.update()", "`reward`", reward)
        taken = torch.ones_like(done) if mask is None else mask
        carried, returns = self.carried.to(reward.device), torch.zeros_like(reward, dtype=torch.float64)
        for t in range(len(reward)):
            returns[t] = torch.where(taken[t], self.discount * carried + reward[t].double(), carried)
            carried = returns[t].masked_fill(done[t], 0.0)
        moments = self.moments.update(returns[taken].unsqueeze(1), joined=joined)
        return replace(self, moments=moments, carried=carried)

    def scale(self, reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Scale and clip rewards of any shape."""
        deviation = (self.moments.variance + SMALLEST_VARIANCE).sqrt()
        return (reward / deviation.to(reward.dtype)).clamp(-self.clip, self.clip)


def _check_finite(where: str, what: str, values: Tensor) -> None:
    finite = values.isfinite()
    if not finite.all():
        row = int((~finite).reshape(len(values), -1).any(1).nonzero()[0])
        raise EnvironmentFault(
            where,
            f"{what} is not finite in row {row}",
            expected="finite numbers; the statistics are as they were",
            got=str(values[row].tolist()),
        )
