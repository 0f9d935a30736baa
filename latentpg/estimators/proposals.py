r"""Where particles come from: the prior, the guide, or an iid mixture of both.

A proposal draws K latents a row with their log-density ``[K, B]`` and can score any others. It never looks at a
recorded latent: conditional importance sampling is exact only if the fresh particles are independent of the retained
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pyro.distributions import Bernoulli
from torch import Tensor
from torch.distributions import Distribution, constraints

from latentpg.errors import OptionError, ShapeError, SiteError, SupportError
from latentpg.programs import (
    LatentPolicy,
    Latents,
    Observations,
    draw,
    draw_guide,
    draw_prior,
    num_rows,
    score_guide,
    score_prior,
)
from latentpg.programs.capture import is_real
from latentpg.programs.rows import is_concrete


@dataclass(frozen=True)
class Proposed:
    """Latents ``[K, B, ...]`` and the log-density ``[K, B]`` of the proposal they were drawn from."""

    latents: Latents
    log_prob: Float[Tensor, "K B"]


@runtime_checkable
class Proposal(Protocol):
    """A density r(z | s, a) over the latents, positive wherever the posterior is."""

    def draw(self, policy: LatentPolicy, obs: Observations, action: Tensor, num_particles: int) -> Proposed:
        """Draw K latents a row."""
        ...

    def log_prob(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents
    ) -> Float[Tensor, "K B"]:
        """Score given latents ``[K, B, ...]``."""
        ...


@dataclass(frozen=True)
class Prior:
    """r = p_phi(z | s). Covers the posterior by construction, and knows nothing of the action."""

    def draw(self, policy: LatentPolicy, obs: Observations, action: Tensor, num_particles: int) -> Proposed:
        """Draw from the prior."""
        drawn = draw_prior(policy, obs, num_particles=num_particles)
        return Proposed(drawn.latents, drawn.log_prob)

    def log_prob(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents
    ) -> Float[Tensor, "K B"]:
        """Score under the prior."""
        return score_prior(policy, obs, latents).log_prob


@dataclass(frozen=True)
class Guide:
    """r = q_psi(z | s, a). A guide whose support misses the prior's is refused."""

    def draw(self, policy: LatentPolicy, obs: Observations, action: Tensor, num_particles: int) -> Proposed:
        """Draw from the guide and compare its sites with the prior's."""
        drawn = draw_guide(policy, obs, action, num_particles=num_particles)
        # The whole line covers any prior; to run the prior for nothing would cost a twentieth of a training step.
        if not all(is_real(fn.support) for fn in drawn.distributions.values()):
            check_cover(drawn.distributions, score_prior(policy, obs, drawn.latents).distributions)
        return Proposed(drawn.latents, drawn.log_prob)

    def log_prob(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents
    ) -> Float[Tensor, "K B"]:
        """Score under the guide."""
        return score_guide(policy, obs, action, latents).log_prob


@dataclass(frozen=True)
class Mixture:
    r"""r = alpha p_phi(z | s) + (1 - alpha) q_psi(z | s, a): the defensive mixture (Hesterberg, 1995).

    Every particle is an iid draw from the mixture, weighted by the mixture's density at the draw itself, so that with
    alpha > 0 no weight exceeds p_theta(a | s, z) / alpha.
    """

    prior_weight: float = 0.5

    def __post_init__(self) -> None:
        """Check alpha."""
        if not 0.0 < self.prior_weight < 1.0:
            raise OptionError(
                "Mixture()",
                "`prior_weight`",
                expected="a number in (0, 1)",
                got=repr(self.prior_weight),
                fix="Prior() or Guide() for the ends",
            )

    def draw(self, policy: LatentPolicy, obs: Observations, action: Tensor, num_particles: int) -> Proposed:
        """Draw from both, keep one of each pair by a coin, and weigh what was kept by the mixture."""
        prior = draw_prior(policy, obs, num_particles=num_particles)
        guide = draw_guide(policy, obs, action, num_particles=num_particles)
        chance = guide.log_prob.new_full((num_rows(obs),), self.prior_weight)
        from_prior = draw("mixture component", Bernoulli(chance, validate_args=False), (num_particles,)).bool()
        latents = {}
        for name, value in guide.latents.items():
            if name not in prior.latents:
                raise _missing_site(name, prior.latents)
            if prior.latents[name].shape != value.shape:
                raise ShapeError(
                    "guide()",
                    f"latent `{name}`",
                    expected=f"{list(prior.latents[name].shape)}, as `model` draws it",
                    got=str(list(value.shape)),
                    fix="sample the same variable in both programs",
                )
            keep = from_prior.reshape(*from_prior.shape, *[1] * (value.ndim - 2))
            latents[name] = torch.where(keep, prior.latents[name], value)
        return Proposed(latents, self.log_prob(policy, obs, action, latents))

    def log_prob(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents
    ) -> Float[Tensor, "K B"]:
        """Score under the mixture."""
        prior = score_prior(policy, obs, latents).log_prob + math.log(self.prior_weight)
        guide = score_guide(policy, obs, action, latents).log_prob + math.log1p(-self.prior_weight)
        return torch.logaddexp(prior, guide)


def check_cover(guide: Mapping[str, Distribution], prior: Mapping[str, Distribution]) -> None:
    """Refuse a guide that cannot reach what the prior can: its estimates would miss that mass at every K."""
    for name, target in prior.items():
        source = guide[name]
        if target.has_enumerate_support and source.has_enumerate_support:
            _check_discrete_cover(name, source, target)
        elif not _covers(source.support, target.support):
            raise _hole(name, str(target.support), str(source.support))


def _check_discrete_cover(name: str, source: Distribution, target: Distribution) -> None:
    sizes = len(source.enumerate_support(expand=False)), len(target.enumerate_support(expand=False))
    if sizes[0] != sizes[1]:
        raise _hole(name, f"{sizes[1]} values", f"{sizes[0]} values")
    if not is_concrete():
        return
    # every value against every row and particle: of two dependent sites one may carry particles here and not there
    dims = max(len(source.batch_shape), len(target.batch_shape))
    values = target.enumerate_support(expand=False).reshape(sizes[1], *[1] * dims, *target.event_shape)
    hole = (source.log_prob(values) == -torch.inf) & (target.log_prob(values) > -torch.inf)
    if bool(hole.any()):
        missed = values[hole.nonzero()[0, 0]].flatten()[0].tolist()
        raise _hole(name, f"positive probability wherever the prior has it, at {missed} too", "zero there")


def _covers(source: constraints.Constraint | None, target: constraints.Constraint | None) -> bool:
    """Compare the bounds of two continuous supports; what has no bounds is taken to be unbounded."""
    source, target = _base(source), _base(target)
    for bound, tighter in (("lower_bound", 1), ("upper_bound", -1)):
        here, there = getattr(source, bound, None), getattr(target, bound, None)
        if here is None:
            continue
        if there is None:
            return False
        if is_concrete() and bool((tighter * (torch.as_tensor(here) - torch.as_tensor(there)) > 0).any()):
            return False
    return True


def _base(constraint: constraints.Constraint | None) -> constraints.Constraint | None:
    while constraint is not None and hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def _hole(name: str, expected: str, got: str) -> SupportError:
    return SupportError(
        "guide()",
        f"the guide misses part of the prior's support at latent `{name}`",
        expected=expected,
        got=got,
        fix="give the guide the prior's support, or propose from Mixture() or Prior()",
    )


def _missing_site(name: str, latents: Latents) -> SiteError:
    return SiteError(
        "guide()",
        f"latent `{name}` is in `guide` but not in `model`",
        expected=str(sorted(latents)),
        got=name,
        fix="give each latent the same name in `model` and in `guide`",
    )
