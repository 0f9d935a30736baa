"""What a fit is watched by: the mean log-likelihood of rows, enumerated where that is possible, and the divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpg.errors import SiteError
from latentpg.estimators import Estimator, Exact, PosteriorIS
from latentpg.evaluation.likelihood import in_blocks
from latentpg.imitation.divergences import guide_terms
from latentpg.imitation.rows import FitRows, bounded
from latentpg.programs import LatentPolicy, Observations, draw_prior, take_rows

LARGEST_SUPPORT = 4096
"""Joint values of discrete latents up to which a policy is measured by enumeration."""


def mean_log_prob(policy: LatentPolicy, rows: FitRows, estimator: Estimator) -> Tensor:
    """Return the mean of an estimator's log pi over rows, in blocks of rows."""

    def run(obs: Observations, action: Tensor) -> Tensor:
        particles = estimator.propose(policy, obs, action)
        return estimator.estimate(policy, obs, action, particles).log_prob.double()

    size = support_size(policy, rows.obs) if isinstance(estimator, Exact) else getattr(estimator, "num_particles", 1)
    with torch.no_grad(), bounded(rows):
        return in_blocks(run, rows.obs, rows.action, max(1, size)).mean()


def support_size(policy: LatentPolicy, obs: Observations) -> int:
    """Count the joint values of discrete latents; 0 where a latent is not discrete, and 1 where there is none.

    >>> from latentpg.oracles.softmax import TabularLatentPolicy
    >>> support_size(TabularLatentPolicy.random(num_states=1, num_latents=5, num_actions=2), torch.zeros(1).long())
    5
    """
    with torch.no_grad():
        drawn = draw_prior(policy, obs, num_particles=1)
    size = 1
    for fn in drawn.distributions.values():
        if not fn.has_enumerate_support:
            return 0
        try:
            size *= len(fn.enumerate_support(expand=False))
        except NotImplementedError:  # a vector of sites, or an infinite one
            return 0
    return size


def measure_for(policy: LatentPolicy, obs: Observations, num_particles: int) -> Estimator:
    """Choose enumeration up to :data:`LARGEST_SUPPORT` joint values, and importance sampling by the guide elsewhere."""
    try:
        size = support_size(policy, take_rows(obs, slice(0, 1)))
    except SiteError:
        size = 0
    return Exact() if 0 < size <= LARGEST_SUPPORT else PosteriorIS(num_particles)


def mean_kl(policy: LatentPolicy, rows: FitRows) -> float:
    """Return the mean over rows of the guide's divergence from the prior, in nats."""

    def run(obs: Observations, action: Tensor) -> Tensor:
        return guide_terms(policy, obs, action, num_particles=1).kl.sum(-1)[0].double()

    return float(in_blocks(run, rows.obs, rows.action, 8).mean())
