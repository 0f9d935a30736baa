r"""The contract of an estimator, and the two results it passes on.

An estimator of :math:`\log\pi(a|s)` works in two steps, so that the particles can be stored beside a transition and
used again after the parameters have moved:

``propose(policy, obs, action, latents)``
    draws :class:`Particles`, without a gradient; ``latents`` is what was recorded while acting, if anything was;
``estimate(policy, obs, action, particles)``
    returns an :class:`Estimate`, whose ``log_prob [B]`` has a value that estimates log pi and a gradient, in theta
    and phi, that estimates its gradient.

The ratio of new to old policy is the exponential of the difference of two ``log_prob`` on the *same* particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError, RecordedLatentError, ShapeError, WeightError
from latentpg.numerics import weights
from latentpg.programs import LatentPolicy, Latents, Observations, take_rows
from latentpg.programs.rows import is_concrete


@dataclass(frozen=True)
class Particles:
    """K particles a row: each latent ``[K, B, ...]`` in its site's own dtype, and the log-density they were drawn from.

    ``retained`` says that slot 0 holds a draw that was kept, such as the latent recorded while acting.

    >>> Particles({"z": torch.zeros(3, 5)}, torch.zeros(3, 5)).rows(slice(0, 2)).num_rows
    2
    """

    latents: Latents
    log_proposal: Float[Tensor, "K B"]
    retained: bool = False

    def __post_init__(self) -> None:
        """Check every latent against ``log_proposal``."""
        shape = tuple(self.log_proposal.shape)
        if len(shape) != 2 or shape[0] < 1:
            raise ShapeError(
                "Particles()",
                "`log_proposal`",
                expected="[K, B] with K >= 1",
                got=str(list(shape)),
                likely="event dimension not summed" if len(shape) > 2 else None,
                fix="one log-density a particle and row: Normal(...).to_event(1)",
            )
        for name, value in self.latents.items():
            if tuple(value.shape[:2]) != shape:
                raise ShapeError(
                    "Particles()",
                    f"latent `{name}`",
                    expected=f"[K={shape[0]}, B={shape[1]}, ...]",
                    got=str(list(value.shape)),
                    fix="particles first, then rows",
                )

    @property
    def num_particles(self) -> int:
        """K."""
        return self.log_proposal.shape[0]

    @property
    def num_rows(self) -> int:
        """B."""
        return self.log_proposal.shape[1]

    def rows(self, index: slice | Tensor) -> Particles:
        """Take some rows, as a minibatch does."""
        latents = {name: take_rows(value, index, dim=1) for name, value in self.latents.items()}
        return Particles(latents, take_rows(self.log_proposal, index, dim=1), self.retained)

    def slots(self, index: slice | Tensor) -> Particles:
        """Take some particles; the retained one is gone unless slot 0 is still the first of them."""
        keeps_first = isinstance(index, slice) and index.start in (None, 0)
        latents = {name: value[index] for name, value in self.latents.items()}
        return Particles(latents, self.log_proposal[index], self.retained and keeps_first)

    def to(self, device: torch.device | str) -> Particles:
        """Move to another device."""
        latents = {name: value.to(device) for name, value in self.latents.items()}
        return Particles(latents, self.log_proposal.to(device), self.retained)


@dataclass(frozen=True)
class Estimate:
    """``log_prob [B]``, whose value and gradient stand for those of log pi, and diagnostics ``[B]`` without a gradient.

    ``info`` holds, where they mean something, ``ess`` (effective sample size, in ``[1, K]``), ``recorded_weight`` (the
    share of the weight on the retained particle) and ``pareto_k`` (from K = 64 on).
    """

    log_prob: Float[Tensor, " B"]
    info: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Estimator(Protocol):
    """What every estimator offers; see the module's docstring."""

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw particles, without a gradient."""
        ...

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Score them, differentiably in theta and phi."""
        ...


def check_num_particles(where: str, num_particles: int, *, minimum: int = 1, why: str | None = None) -> None:
    """Refuse fewer particles than an estimator can work with."""
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < minimum:
        kind = OptionError if why is None else EstimatorError
        raise kind(
            where,
            "`num_particles`",
            expected=f"an integer >= {minimum}",
            got=repr(num_particles),
            likely=why,
            fix=f"num_particles={max(8, minimum)}",
        )


def require_recorded(where: str, latents: Latents | None) -> Latents:
    """Refuse data that carry no recorded latent where one is needed."""
    if latents:
        return latents
    raise RecordedLatentError(
        where,
        "the data carry no recorded latent",
        expected="latents={site: [B, ...]} as recorded while acting",
        got=repr(latents),
        likely="demonstrations, or a rollout that did not store its latents",
        fix="PosteriorIS or MarkovianIS for demonstrations; keep `act(policy, obs).latents` when acting",
    )


def check_log_weights(where: str, log_weight: Float[Tensor, "K B"]) -> None:
    """Refuse NaN, +inf, and rows in which every weight is zero; nothing is looked at under ``vmap`` or ``compile``."""
    if not is_concrete():
        return
    top = log_weight.detach().amax(0)
    # One sum tells whether any term is NaN or infinite, at a fifth of the cost of asking each; it may overflow too.
    if math.isfinite(float(top.sum())) or bool(torch.isfinite(top).all()):
        return
    bad = (~torch.isfinite(top)).nonzero().flatten()
    row = int(bad[0])
    nan, zero = bool(top[row].isnan()), bool(top[row] == -torch.inf)
    raise WeightError(
        where,
        "log-weights are " + ("NaN" if nan else "-inf for every particle" if zero else "+inf"),
        expected="at least one finite log-weight a row, and none NaN or +inf",
        got=f"{log_weight[:, row].tolist()[:8]} in row {row} ({len(bad)} such rows of {len(top)})",
        likely="a NaN in observations, actions or parameters"
        if nan
        else "an action that no latent can produce"
        if zero
        else "a proposal density of zero at its own draw, or a degenerate decoder",
        fix="look at `obs`, `action` and the parameters for non-finite values"
        if nan
        else "bound the decoder's scale from below, or use a proposal that covers the posterior",
    )


class Diagnostics(Mapping[str, Tensor]):
    """Diagnostics ``[B]`` of a set of weights by name, without a gradient; each is computed when it is looked up.

    Most steps of training look at none of them, and together they cost several percent of a step.

    >>> sorted(Diagnostics(torch.zeros(4, 2), retained=True))
    ['ess', 'recorded_weight']
    """

    def __init__(self, log_weight: Float[Tensor, "K B"], *, retained: bool) -> None:
        """Keep the weights; ``retained`` says that slot 0 holds a kept draw."""
        self._log_weight = log_weight.detach()
        self._compute: dict[str, Callable[[Tensor], Tensor]] = {"ess": weights.ess}
        if retained:
            self._compute["recorded_weight"] = _first_weight
        if log_weight.shape[0] >= weights.MIN_PARTICLES_FOR_PARETO:
            self._compute["pareto_k"] = weights.pareto_k

    def __getitem__(self, name: str) -> Tensor:
        return self._compute[name](self._log_weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self._compute)

    def __len__(self) -> int:
        return len(self._compute)

    def __repr__(self) -> str:
        return repr(dict(self))


def _first_weight(log_weight: Float[Tensor, "K B"]) -> Float[Tensor, " B"]:
    return weights.normalized_weights(log_weight)[0]


def describe(log_weight: Float[Tensor, "K B"], *, retained: bool) -> Mapping[str, Tensor]:
    """Name the diagnostics of a set of weights, to be computed without a gradient when they are looked up."""
    return Diagnostics(log_weight, retained=retained)
