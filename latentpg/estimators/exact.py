r"""The exact marginal of a policy whose latents are all discrete."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentpg.estimators.base import Estimate, Particles
from latentpg.estimators.importance import importance_estimate
from latentpg.programs import LatentPolicy, Latents, Observations, num_rows, parameter_dtype, support


@dataclass(frozen=True)
class Exact:
    r"""Enumerate the joint values of discrete latents: :math:`\log\sum_z p(z, a | s)`, exact in value and gradient.

    Each of the C support points is a particle of weight p(z, a | s), that is, of proposal density 1/C. The effective
    sample size it reports is that of the posterior: one when a single latent explains the action, C when all do
    equally.
    """

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """List the support, ``[C, B]``; a continuous site is a :class:`~latentpg.errors.SiteError`."""
        with torch.no_grad():
            points = support(policy, obs)
        size = next(iter(points.values())).shape[0] if points else 1
        device = next(iter(points.values())).device if points else action.device
        uniform = torch.full((size, num_rows(obs)), -math.log(size), device=device, dtype=parameter_dtype(policy))
        return Particles(points, uniform)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\log\sum_z p(z,a|s)`."""
        return importance_estimate(policy, obs, action, particles)
