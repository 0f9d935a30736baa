r"""Pathwise estimation: particles are noise, and gradients flow through the latent into phi."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentpg.estimators.base import Estimate, Particles, check_num_particles, require_recorded
from latentpg.estimators.importance import PosteriorIS, importance_estimate, retain
from latentpg.estimators.proposals import Prior
from latentpg.programs import LatentPolicy, Latents, Observations, latents_to_noise, reparameterize


@dataclass(frozen=True)
class Reparameterized:
    r"""Importance sampling with prior proposals of the reparameterised program.

    The value is :math:`\log\frac1K\sum_k p_\theta(a|s, f_\phi(\epsilon_k, s))`; its gradient runs through the latents
    into phi. The particles are the noise, so stored ones are common random numbers for the new and the old policy.

    With fresh noise value and gradient are biased by O(1/K), as in :class:`PosteriorIS`. With ``retain=True`` the noise
    behind the recorded latent takes slot 0, and the ratio and its pathwise gradient are exact in expectation for every
    K, under the conditions of :class:`ConditionalIS`. Location-scale latents only.
    """

    num_particles: int = 8
    retain: bool = False

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("Reparameterized()", self.num_particles)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw the noise of K particles, the recorded latent's own first if it is retained."""
        over_noise = reparameterize(policy)
        if not self.retain:
            return PosteriorIS(self.num_particles, Prior()).propose(over_noise, obs, action)
        recorded = require_recorded("Reparameterized(retain=True).propose()", latents)
        with torch.no_grad():
            noise = latents_to_noise(policy, obs, recorded)
            return retain(Prior(), over_noise, obs, action, noise, self.num_particles)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\log\frac1K\sum_k p_\theta(a|s, z_k)`."""
        return importance_estimate(reparameterize(policy), obs, action, particles)
