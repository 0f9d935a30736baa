r"""Importance-sampling estimators of log pi(a | s).

With particles :math:`z_k` of log-density :math:`\log r_k` and weights :math:`w_k = p(z_k, a | s) / r_k`, all return

.. math:: \log \frac1K \sum_k w_k, \qquad \text{whose gradient is} \quad \sum_k \bar w_k \nabla \log p(z_k, a | s),

because the particles and their density are constants. They differ only in where the particles come from, and that
decides what is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.estimators.base import (
    Estimate,
    Particles,
    check_log_weights,
    check_num_particles,
    describe,
    require_recorded,
)
from latentpg.estimators.proposals import Guide, Prior, Proposal
from latentpg.numerics.weights import log_mean_exp
from latentpg.programs import LatentPolicy, Latents, Observations, log_joint, parameter_dtype


def log_weights(policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Float[Tensor, "K B"]:
    r"""Compute :math:`\log w_k = \log p(z_k, a | s) - \log r_k`, differentiable in theta and phi."""
    return log_joint(policy, obs, action, particles.latents) - particles.log_proposal


def importance_estimate(policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
    r"""Return :math:`\log\frac1K\sum_k w_k` with its diagnostics: the body that most estimators share."""
    log_weight = log_weights(policy, obs, action, particles)
    check_log_weights("estimate()", log_weight)
    return Estimate(log_mean_exp(log_weight), describe(log_weight, retained=particles.retained))


def retain(
    proposal: Proposal,
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    latents: Latents,
    num_particles: int,
) -> Particles:
    """Put a kept latent ``[B, ...]`` into slot 0 and K - 1 fresh draws beside it.

    One set of conditional importance sampling.
    """
    kept = {name: value.unsqueeze(0) for name, value in latents.items()}
    log_kept = proposal.log_prob(policy, obs, action, kept)
    check_log_weights("propose(), density of the proposal at the recorded latent", log_kept)
    if num_particles == 1:
        return Particles(kept, log_kept, retained=True)
    fresh = proposal.draw(policy, obs, action, num_particles - 1)
    joined = {name: torch.cat([value, fresh.latents[name]]) for name, value in kept.items()}
    return Particles(joined, torch.cat([log_kept, fresh.log_prob]), retained=True)


@dataclass(frozen=True)
class JointScore:
    r"""Score the recorded latent alone: log p(z0, a | s), the latent taken as part of the action.

    The gradient is unbiased for ∇log pi(a | s) *at the parameters that acted*, where z0 is a posterior draw; the value
    is log pi plus log p(z0 | s, a), so it is not an estimate of log pi, but its differences are log-ratios of the
    joint.
    """

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Take the recorded latent as the only particle."""
        recorded = require_recorded("JointScore.propose()", latents)
        kept = {name: value.unsqueeze(0) for name, value in recorded.items()}
        first = next(iter(kept.values()))
        zero = torch.zeros(first.shape[:2], device=first.device, dtype=parameter_dtype(policy))
        return Particles(kept, zero, retained=True)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Return log p(z0, a | s)."""
        return importance_estimate(policy, obs, action, particles)


@dataclass(frozen=True)
class PosteriorIS:
    r"""Self-normalised importance sampling from K fresh draws :math:`z_k \sim r`.

    The value is a lower bound of log pi in expectation and the gradient is biased, both by O(1/K): :math:`K \cdot
    \text{bias} \to -\mathbb E_r[\tilde w^2 (f - \mu)]` with :math:`\tilde w = p(z|a)/r(z)`, f the joint score and mu
    its posterior mean. The bias does not vanish when multiplied by a constant, so reward baselines are not free under
    it. (Bornschein and Bengio, "Reweighted Wake-Sleep", 2015; Burda et al., 2016.)
    """

    num_particles: int = 8
    proposal: Proposal = field(default_factory=Guide)

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("PosteriorIS()", self.num_particles)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw K particles from the proposal; recorded latents are not used."""
        with torch.no_grad():
            drawn = self.proposal.draw(policy, obs, action, self.num_particles)
        return Particles(drawn.latents, drawn.log_prob)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\log\frac1K\sum_k w_k`."""
        return importance_estimate(policy, obs, action, particles)


@dataclass(frozen=True)
class ConditionalIS:
    r"""Importance sampling that retains the recorded latent: exact in expectation for every K and every proposal.

    z_0 is the latent recorded while acting, an exact draw from p_old(z | s, a); :math:`z_1..z_{K-1} \sim r`. Then
    :math:`\mathbb E \sum_k \bar w_k \nabla\log p_{old}(z_k, a) = \nabla\log\pi_{old}(a|s)`, and the ratio of two
    estimates on the same particles has :math:`\mathbb E[\hat r] = \pi_{new}/\pi_{old}` and the right gradient. K = 1 is
    the joint ratio, large K the marginal one, and for a fixed proposal the variance falls with K.

    It holds if the proposal covers the posterior, does not depend on z_0 (propose before the guide is updated), and the
    new parameters do not depend on these particles. The value alone is an upper bound of log pi in expectation, at the
    parameters that acted. (i-SIR: Andrieu, Lee and Vihola, 2018; BR-SNIS: Cardoso, Samsonov, Thin, Moulines and Olsson,
    2022.)
    """

    num_particles: int = 8
    proposal: Proposal = field(default_factory=Prior)

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("ConditionalIS()", self.num_particles)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Retain the recorded latents ``[B, ...]`` in slot 0 and draw K - 1 more."""
        recorded = require_recorded("ConditionalIS.propose()", latents)
        with torch.no_grad():
            return retain(self.proposal, policy, obs, action, recorded, self.num_particles)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\log\frac1K\sum_k w_k`; the share of the weight on the recorded latent is in ``info``."""
        return importance_estimate(policy, obs, action, particles)


@dataclass(frozen=True)
class SplitIS:
    r"""Two independent particle sets: K for the gradient, K' for the value. A cautionary baseline.

    The value is :math:`\log\frac1{K'}\sum w'`, the gradient :math:`\sum_k\bar w_k\nabla\log p(z_k,a)` of the other set.
    Both are biased by O(1/K), and the ratio of a value to an independent one has expectation above one even when
    nothing has changed.
    """

    num_particles: int = 8
    num_value_particles: int = 8
    proposal: Proposal = field(default_factory=Guide)

    def __post_init__(self) -> None:
        """Check K and K'."""
        check_num_particles("SplitIS()", self.num_particles)
        check_num_particles("SplitIS() (`num_value_particles`)", self.num_value_particles)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw K + K' particles; the first K are for the gradient."""
        with torch.no_grad():
            drawn = self.proposal.draw(policy, obs, action, self.num_particles + self.num_value_particles)
        return Particles(drawn.latents, drawn.log_prob)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Return the value of one set with the gradient of the other."""
        slope = importance_estimate(policy, obs, action, particles.slots(slice(0, self.num_particles)))
        with torch.no_grad():
            value = importance_estimate(policy, obs, action, particles.slots(slice(self.num_particles, None)))
        return Estimate(value.log_prob + slope.log_prob - slope.log_prob.detach(), slope.info)


@dataclass(frozen=True)
class WakeSleep:
    r"""The wake-phase estimator of reweighted wake-sleep: particles from the guide.

    The same value and gradient as ``PosteriorIS(K, Guide())``. The name says how its guide is meant to learn: by the
    ``wake`` or the ``sleep`` objective, not by a bound (Bornschein and Bengio, 2015; Le, Kosiorek, Siddharth, Teh and
    Wood, 2019).
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("WakeSleep()", self.num_particles)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw K particles from the guide."""
        return PosteriorIS(self.num_particles, Guide()).propose(policy, obs, action)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\log\frac1K\sum_k w_k`."""
        return importance_estimate(policy, obs, action, particles)


@dataclass(frozen=True)
class ELBO:
    r"""The evidence lower bound: :math:`\frac1K\sum_k \log w_k` with :math:`z_k \sim q_\psi`.

    Value and gradient are unbiased for the *bound*, which lies KL(q || p(z | s, a)) below log pi; more particles lower
    the variance, not the bias. A log-ratio of two bounds is off by the change of that KL (Kingma and Welling, 2014).
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("ELBO()", self.num_particles)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw K particles from the guide."""
        return PosteriorIS(self.num_particles, Guide()).propose(policy, obs, action)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\frac1K\sum_k\log w_k`."""
        log_weight = log_weights(policy, obs, action, particles)
        log_prob = log_weight.mean(0)
        check_log_weights("ELBO.estimate()", log_prob.unsqueeze(0))
        return Estimate(log_prob, describe(log_weight, retained=False))
