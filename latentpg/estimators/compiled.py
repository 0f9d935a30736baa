"""Compile an estimator's scoring: the same numbers in less time, for many steps of one policy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentpg.estimators.base import Estimate, Estimator, Particles
from latentpg.programs import LatentPolicy, Latents, Observations
from latentpg.programs.compiling import compiled_scoring


@dataclass(frozen=True)
class Compiled:
    """Any estimator with its model scored by ``torch.compile``; values and gradients equal to rounding.

    The first estimate of a kind of policy takes some ten seconds, and so does the first with another number of
    dimensions or another type of input; changing the batch size, K or the parameters costs nothing. It needs a C++
    compiler. Everything that is checked without it is checked with it. A program that ``torch.compile`` cannot trace
    (as most of those from ``from_pyro``, and any policy that :class:`~latentpg.estimators.Reparameterized` rewrites) is
    an :class:`~latentpg.errors.EstimatorError`.

    >>> from latentpg.estimators.importance import ConditionalIS
    >>> Compiled(ConditionalIS(8))
    Compiled(estimator=ConditionalIS(num_particles=8, proposal=Prior()))
    """

    estimator: Estimator

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Propose as the estimator does, uncompiled."""
        return self.estimator.propose(policy, obs, action, latents)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Estimate as the estimator does, scored by compiled code."""
        with compiled_scoring():
            return self.estimator.estimate(policy, obs, action, particles)
