"""Estimators that keep the recorded latent, on rows whose latent is drawn anew for every estimate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentpg.estimators import Estimate, Estimator, Particles
from latentpg.programs import LatentPolicy, Latents, Observations
from latentpg.studies.problem import Problem, Redraw


@dataclass(frozen=True)
class RedrawnLatent:
    """An estimator whose recorded latent is drawn anew at each proposal."""

    estimator: Estimator
    redraw: Redraw

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Propose with a fresh posterior draw in place of ``latents``."""
        return self.estimator.propose(policy, obs, action, self.redraw())

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Estimate as the estimator does."""
        return self.estimator.estimate(policy, obs, action, particles)


def redrawn(estimator: Estimator, problem: Problem) -> Estimator:
    """Give the estimator the problem's posterior draws, where they can be had."""
    return estimator if problem.redraw is None else RedrawnLatent(estimator, problem.redraw)
