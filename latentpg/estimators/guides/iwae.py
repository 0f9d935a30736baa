r"""Guide objectives that maximise the importance-weighted bound :math:`L_K = \mathbb E\log\frac1K\sum_k w_k`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.estimators.base import Particles, check_num_particles
from latentpg.estimators.guides.base import bound_log_weight, path_only_log_weight, require_pathwise, with_value
from latentpg.numerics.weights import leave_one_out_log_mean_exp, log_mean_exp, normalized_weights
from latentpg.programs import LatentPolicy, Latents, Observations, draw_guide


@dataclass(frozen=True)
class IWAE:
    r"""Minimise :math:`-\log\frac1K\sum_k w_k` pathwise (Burda et al., 2016).

    Unbiased for the gradient of :math:`L_K`, but its signal-to-noise ratio in psi falls as :math:`K^{-1/2}` (Rainforth
    et al., "Tighter Variational Bounds Are Not Necessarily Better", 2018). Continuous sites only.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("IWAE()", self.num_particles)

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
        require_pathwise("IWAE.loss()", drawn.distributions, "VIMCO, which needs no pathwise gradient")
        return -log_mean_exp(bound_log_weight(policy, obs, action, drawn))


@dataclass(frozen=True)
class DoublyReparameterized:
    r"""Minimise :math:`-L_K` with the gradient :math:`\sum_k \bar w_k^2\, \partial_z\log w_k\, \partial_\psi z_k`.

    Unbiased for the same gradient as :class:`IWAE`, and its signal-to-noise ratio grows with K instead (Tucker, Lawson,
    Gu and Maddison, "Doubly Reparameterized Gradient Estimators", 2019, Eq. 9). Continuous sites only.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("DoublyReparameterized()", self.num_particles)

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
        require_pathwise("DoublyReparameterized.loss()", drawn.distributions, "VIMCO, which needs no pathwise gradient")
        log_weight = path_only_log_weight(policy, obs, action, drawn)
        squared = normalized_weights(log_weight).detach().square()
        return -with_value(log_mean_exp(log_weight), (squared * log_weight).sum(0))


@dataclass(frozen=True)
class VIMCO:
    r"""Minimise :math:`-L_K` by the score function with a leave-one-out bound as baseline.

    The surrogate is :math:`\sum_k (L - L_{-k})\log q(z_k) + L`, where :math:`L_{-k}` replaces the k-th weight by the
    geometric mean of the others; the last term brings :math:`-\sum_k\bar w_k\nabla\log q(z_k)`, without which the
    gradient is biased (Mnih and Rezende, 2016). Any sites; K >= 2.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles(
            "VIMCO()", self.num_particles, minimum=2, why="with K = 1 there is no other particle to leave in"
        )

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
        log_weight = bound_log_weight(policy, obs, action, drawn)
        bound = log_mean_exp(log_weight)
        with torch.no_grad():
            signal = bound - leave_one_out_log_mean_exp(log_weight)
        return -with_value(bound, (signal * drawn.log_prob).sum(0) + bound)
