"""log pi from the policy itself, where that has a closed form: no latent, or one that was integrated by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentpg.errors import EstimatorError
from latentpg.estimators.base import Estimate, Particles
from latentpg.programs import LatentPolicy, Latents, Observations, num_rows


@dataclass(frozen=True)
class ClosedForm:
    """Estimate log pi by the closed form that the policy itself has: ``policy.log_pi(obs, action)``, differentiable.

    There is nothing to propose; its one particle is empty.
    """

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Return a particle without latents."""
        return Particles({}, torch.zeros(1, num_rows(obs), dtype=torch.float64, device=action.device))

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Return log pi; a policy without a closed form is an :class:`~latentpg.errors.EstimatorError`."""
        log_pi = getattr(policy, "log_pi", None)
        if log_pi is None:
            raise EstimatorError(
                "ClosedForm.estimate()",
                "the policy has no closed form",
                expected="a policy with a method log_pi(obs, action)",
                got=type(policy).__name__,
                fix="Exact or Quadrature",
            )
        return Estimate(log_pi(obs, action))
