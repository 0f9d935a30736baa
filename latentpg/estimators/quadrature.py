r"""Gauss-Hermite quadrature.

An oracle for up to three Gaussian dimensions, with any discrete latents enumerated beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor
from torch.distributions import Distribution

from latentpg.errors import EstimatorError, QuadratureError, SiteError
from latentpg.estimators.base import Estimate, Particles, check_num_particles
from latentpg.estimators.importance import importance_estimate
from latentpg.numerics.quadrature import hermite_grid
from latentpg.programs import (
    DiagNormal,
    LatentPolicy,
    Latents,
    Observations,
    draw_guide,
    drawing,
    num_rows,
    parameter_dtype,
)

MAX_DIMENSIONS = 3
"""Gaussian dimensions that a product grid is allowed to cover."""


@dataclass(frozen=True)
class Quadrature:
    r"""Integrate Gaussian latents on a Gauss-Hermite grid centred and scaled by the guide; sum discrete ones.

    .. math:: \pi(a|s) \approx \sum_c \sum_i W_i \frac{p(c, z_i, a|s)}{\mathcal N(z_i; \mu_q, \sigma_q)}

    with :math:`z_i = \mu_q + \sigma_q x_i`, nodes x and weights W of the standard normal. It is
    for checking, not for training: it refuses with
    :class:`~latentpg.errors.QuadratureError` when doubling the nodes moves log pi by more than ``tolerance`` nats in
    any row, which is what happens when the guide is far from a peaked posterior.
    """

    num_nodes: int = 32
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        """Check the number of nodes."""
        check_num_particles("Quadrature() (`num_nodes`)", self.num_nodes, minimum=2, why="one node sees no spread")

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Place the nodes, and check that twice as many give the same value."""
        particles = self._place(policy, obs, action)
        with torch.no_grad():
            value = importance_estimate(policy, obs, action, particles).log_prob
            finer = replace(self, num_nodes=2 * self.num_nodes)
            refined = importance_estimate(policy, obs, action, finer._place(policy, obs, action)).log_prob
        moved = (value - refined).abs()
        if not bool((moved <= self.tolerance).all()):
            row = int(moved.nan_to_num(nan=math.inf).argmax())
            raise QuadratureError(
                "Quadrature.propose()",
                f"{self.num_nodes} nodes a dimension do not settle the integral",
                expected=f"log pi that moves by at most {self.tolerance:g} nats when the nodes are doubled",
                got=f"{float(value[row]):.6g}, then {float(refined[row]):.6g}, in row {row}",
                likely="a guide far from the posterior, or a decoder much more peaked than the guide",
                fix="train the guide first, or raise num_nodes",
            )
        return particles

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Return the weighted logsumexp over the nodes; autograd gives its gradient."""
        return importance_estimate(policy, obs, action, particles)

    def _place(self, policy: LatentPolicy, obs: Observations, action: Tensor) -> Particles:
        with torch.no_grad():
            probe = draw_guide(policy, obs, action, num_particles=1)
            sites = {name: _describe(name, fn) for name, fn in probe.distributions.items()}
            dimensions = sum(size for kind, size in sites.values() if kind == "gaussian")
            if dimensions > MAX_DIMENSIONS:
                raise EstimatorError(
                    "Quadrature.propose()",
                    "too many Gaussian dimensions for a grid",
                    expected=f"at most {MAX_DIMENSIONS}",
                    got=str(dimensions),
                    fix="a sampling estimator: ConditionalIS, or PosteriorIS with many particles",
                )
            here = action.device
            nodes, log_weight = (part.to(here) for part in hermite_grid(self.num_nodes, dimensions))
            sizes = [size for kind, size in sites.values() if kind == "discrete"]
            axes = [torch.arange(size, device=here) for size in (len(log_weight), *sizes)]
            index = torch.cartesian_prod(*axes).reshape(-1, len(axes))
            grid = _Grid(nodes[index[:, 0]], index[:, 1:], num_rows(obs), parameter_dtype(policy))
            with drawing(grid):
                drawn = draw_guide(policy, obs, action, num_particles=len(index))
            constant = (log_weight[index[:, 0]] + math.log(len(index))).to(parameter_dtype(policy))
            log_proposal = grid.log_density(drawn.log_prob_by_site) - constant.unsqueeze(1)
        return Particles(drawn.latents, log_proposal.expand(len(index), num_rows(obs)))


class _Grid:
    """A source of draws that answers with nodes of a product grid."""

    def __init__(self, nodes: Tensor, choices: Tensor, rows: int, dtype: torch.dtype) -> None:
        self.nodes, self.choices, self.rows = nodes.to(dtype), choices, rows
        self.used_nodes = self.used_choices = 0
        self.gaussian_sites: list[str] = []

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        kind, size = _describe(name, fn)
        shape = (len(self.nodes), self.rows, *fn.event_shape)
        if kind == "discrete":
            values = fn.enumerate_support(expand=False).reshape(size, *fn.event_shape)
            chosen = values[self.choices[:, self.used_choices]]
            self.used_choices += 1
            return chosen.unsqueeze(1).expand(shape)
        x = self.nodes[:, self.used_nodes : self.used_nodes + size].reshape(-1, 1, *fn.event_shape)
        self.used_nodes += size
        self.gaussian_sites.append(name)
        return (fn.mean + fn.variance.sqrt() * x).expand(shape)

    def log_density(self, by_site: Mapping[str, Tensor]) -> Tensor:
        total = self.nodes.new_zeros(())
        for name in self.gaussian_sites:
            total = total + by_site[name]
        return total


def _describe(name: str, fn: Distribution) -> tuple[str, int]:
    """Tell a site that is enumerated from one that is integrated, with its size."""
    base = fn
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, DiagNormal | Normal):
        return "gaussian", math.prod(fn.event_shape)
    if fn.has_enumerate_support:
        return "discrete", len(fn.enumerate_support(expand=False))
    raise SiteError(
        "Quadrature.propose()",
        f"latent `{name}` is neither Gaussian nor enumerable in the guide",
        expected="Normal, DiagNormal or a discrete distribution of finite support",
        got=type(base).__name__,
        fix="a sampling estimator: ConditionalIS or PosteriorIS",
    )
