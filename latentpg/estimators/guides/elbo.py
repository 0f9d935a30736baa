r"""Guide objectives that maximise the evidence lower bound: the exclusive divergence KL(q || p(z | s, a))."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.estimators.base import Particles, check_num_particles
from latentpg.estimators.guides.base import bound_log_weight, path_only_log_weight, require_pathwise, with_value
from latentpg.numerics.weights import leave_one_out_mean
from latentpg.programs import LatentPolicy, Latents, Observations, draw_guide, log_joint


@dataclass(frozen=True)
class ELBOGuide:
    r"""Minimise :math:`-\frac1K\sum_k\log w_k`, pathwise where a site has ``rsample`` and by score function elsewhere.

    Discrete sites get the surrogate :math:`(\log w_k - b_k)\log q(z_k)` with the leave-one-out mean as baseline; K = 1
    has none. Unbiased for the gradient of the bound, for any mixture of discrete and continuous sites.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("ELBOGuide()", self.num_particles)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Draw its own particles; stored ones and recorded latents are not used."""
        drawn = draw_guide(policy, obs, action, num_particles=self.num_particles, pathwise=True)
        log_weight = bound_log_weight(policy, obs, action, drawn)
        signal = (log_weight - leave_one_out_mean(log_weight)).detach()
        gradient = log_weight
        for name, fn in drawn.distributions.items():
            if not fn.has_rsample:
                gradient = gradient + signal * drawn.log_prob_by_site[name]
        return -with_value(log_weight, gradient).mean(0)


@dataclass(frozen=True)
class ScoreELBO:
    r"""Minimise :math:`-\frac1K\sum_k\log w_k` by the score function at every site, with the leave-one-out baseline.

    The surrogate is :math:`(\log w_k - b_k)\log q_\psi(z_k)` (Mnih and Gregor, 2014; Kool et al., 2019). Unbiased for
    the bound's gradient whatever the sites, with more variance than a pathwise one.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("ScoreELBO()", self.num_particles)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Draw its own particles; stored ones and recorded latents are not used."""
        drawn = draw_guide(policy, obs, action, num_particles=self.num_particles)
        with torch.no_grad():
            log_weight = log_joint(policy, obs, action, drawn.latents) - drawn.log_prob
            signal = log_weight - leave_one_out_mean(log_weight)
        return -with_value(log_weight, signal * drawn.log_prob).mean(0)


@dataclass(frozen=True)
class StickingTheLanding:
    r"""Minimise :math:`-\frac1K\sum_k\log w_k` along the path only: psi is held fixed inside log q.

    The term left out has expectation zero for this bound, so the gradient stays unbiased, and its variance vanishes as
    q reaches the posterior (Roeder et al., 2017). Not to be carried over to the IWAE bound at K > 1, where it is
    biased: see :class:`DoublyReparameterized`. Continuous sites only.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("StickingTheLanding()", self.num_particles)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Draw its own particles; stored ones and recorded latents are not used."""
        drawn = draw_guide(policy, obs, action, num_particles=self.num_particles, pathwise=True)
        require_pathwise("StickingTheLanding.loss()", drawn.distributions, "ELBOGuide or ScoreELBO")
        return -path_only_log_weight(policy, obs, action, drawn).mean(0)
