r"""Held-out likelihood by the best measure that a policy's latents allow.

==================================  ==============================================================================
latents                             measure
==================================  ==============================================================================
discrete, up to 4,096 joint values  enumerated: exact
1 to 3 Gaussian dimensions          Gauss-Hermite quadrature, discrete ones summed beside: exact to a tolerance
any other                           the curve of K-particle bounds, and annealed importance sampling: lower bounds
==================================  ==============================================================================

Quadrature places its nodes by the guide; where that does not settle, by a density of each row's own, fitted to it
(:mod:`latentpg.imitation.per_datum`); and where that does not either (a posterior of several peaks), the bounds take
its place, and the result says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import QuadratureError
from latentpg.estimators import Quadrature
from latentpg.estimators.quadrature import MAX_DIMENSIONS
from latentpg.evaluation import (
    EXACT,
    HMC,
    Annealing,
    Independence,
    IWAECurve,
    Likelihood,
    annealed_likelihood,
    exact_likelihood,
    iwae_curve,
    report_likelihood,
)
from latentpg.evaluation.likelihood import BLOCK
from latentpg.imitation.divergences import gaussian_parameters
from latentpg.imitation.per_datum import fit_per_datum
from latentpg.imitation.rows import FitRows, bounded
from latentpg.imitation.watching import LARGEST_SUPPORT, support_size
from latentpg.numerics.statistics import LEVEL
from latentpg.policies.heads import scale_floors
from latentpg.programs import LatentPolicy, draw_guide, draw_prior
from latentpg.programs.capture import is_real

LADDER = (1, 4, 16, 64, 256)
"""Numbers of particles of the curve of bounds."""

NODES = 32
"""Nodes of quadrature a dimension."""

ANNEALING = Annealing(kernels=(Independence(), HMC()))
"""Annealing that moves every kind of latent."""


@dataclass(frozen=True)
class HeldOut:
    """The likelihood to report, why it was measured so, and the bounds beside it where it is not exact.

    ``likelihood`` is exact, or else the annealed bound, or else the curve's largest K. A difference between the two
    lower bounds says how little the smaller one is to be trusted. ``noise`` says what floor the actions' standard
    deviations have, if they have any: without one, actions that can be foretold exactly have no highest likelihood.
    """

    likelihood: Likelihood
    why: str
    curve: IWAECurve | None = None
    annealed: Likelihood | None = None
    noise: str | None = None

    def lines(self) -> list[str]:
        """Say it in words."""
        parts = [part.lines() for part in (self.curve, self.annealed) if part is not None] or [self.likelihood.lines()]
        told = [] if self.noise is None else [f"  {self.noise}"]
        return [f"measured by {self.why}", *[line for part in parts for line in part], *told]


def held_out(
    policy: LatentPolicy,
    rows: FitRows,
    *,
    action_scale: Float[Tensor, "*A"] | None = None,
    num_particles: tuple[int, ...] = LADDER,
    annealing: Annealing | None = ANNEALING,
    tolerance: float = 1e-4,
    level: float = LEVEL,
) -> HeldOut:
    """Measure log pi of rows that were held out, with intervals between episodes; see the module's docstring.

    ``action_scale`` brings the density to the data's units (:func:`~latentpg.evaluation.action_scale_of`, or a
    normaliser's standard deviations). ``annealing=None`` leaves the annealed bound out. Draws come from the ambient
    stream.
    """
    with bounded(rows):
        found = _measure(policy, rows, action_scale, num_particles, annealing, tolerance, level)
    return replace(found, noise=noise_of(policy))


def noise_of(policy: LatentPolicy) -> str | None:
    """Say what floor the standard deviations of a policy's Gaussian actions have; None where there are none.

    >>> from gymnasium import spaces
    >>> from latentpg.policies import ChunkPolicy
    >>> noise_of(ChunkPolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), min_log_std=-4))
    'sigma of an action is learnt, and at least exp(-4) = 0.01832 in policy coordinates'
    """
    floors = scale_floors(policy) if isinstance(policy, nn.Module) else []
    if not floors:
        return None
    known = [floor for floor in floors if floor is not None]
    if len(known) < len(floors):
        return "sigma of an action is learnt, without a floor"
    least = min(known)
    return f"sigma of an action is learnt, and at least exp({least:g}) = {math.exp(least):.4g} in policy coordinates"


def _measure(
    policy: LatentPolicy,
    rows: FitRows,
    action_scale: Tensor | None,
    num_particles: tuple[int, ...],
    annealing: Annealing | None,
    tolerance: float,
    level: float,
) -> HeldOut:
    obs, action, cluster = rows.obs, rows.action, rows.episode
    one = rows.take(slice(0, 1))
    size = support_size(policy, one.obs)
    if 0 < size <= LARGEST_SUPPORT:
        found = exact_likelihood(policy, obs, action, cluster, action_scale=action_scale, level=level)
        return HeldOut(found, f"enumeration of the latents' {size} joint values")
    dimensions, why = _gaussian_dimensions(policy, one), "bounds"
    if dimensions is not None and 1 <= dimensions <= MAX_DIMENSIONS:
        try:
            values, centre = _quadrature(policy, rows, Quadrature(NODES, tolerance))
            found = report_likelihood(
                values,
                obs,
                action,
                cluster,
                kind=EXACT,
                method=f"Gauss-Hermite quadrature, {NODES} nodes a dimension, settled to {tolerance:g} nats",
                action_scale=action_scale,
                level=level,
            )
            return HeldOut(found, f"quadrature over {dimensions} Gaussian dimensions, its nodes placed by {centre}")
        except QuadratureError as error:
            why = f"bounds, because quadrature did not settle ({_got(error)})"
    curve = iwae_curve(
        policy, obs, action, cluster, num_particles=num_particles, action_scale=action_scale, level=level
    )
    if annealing is None:
        return HeldOut(curve.likelihood, why, curve)
    if not _has_real(policy, one):
        annealing = replace(annealing, kernels=(Independence(),))  # no other kernel has anything to move
    annealed = annealed_likelihood(
        policy, obs, action, cluster, annealing=annealing, action_scale=action_scale, level=level
    )
    return HeldOut(annealed, why, curve, annealed)


def _quadrature(policy: LatentPolicy, rows: FitRows, rule: Quadrature) -> tuple[Tensor, str]:
    """Integrate every row, with nodes by the guide or else by rows' own densities; say which."""
    index, size = torch.arange(rows.size, device=rows.device), max(1, BLOCK // (2 * rule.num_nodes) ** 2)

    def integrate(policy_of: Callable[[Tensor], LatentPolicy]) -> Tensor:
        values = []
        with torch.no_grad():
            for part in index.split(size):
                some, view = rows.take(part), policy_of(part)
                particles = rule.propose(view, some.obs, some.action)
                values.append(rule.estimate(view, some.obs, some.action, particles).log_prob.double())
        return torch.cat(values)

    try:
        return integrate(lambda part: policy), "the guide"
    except QuadratureError:
        local = fit_per_datum(policy, rows)
        return integrate(lambda part: local.at(policy, part)), "a density of each row's own"


def _has_real(policy: LatentPolicy, one: FitRows) -> bool:
    with torch.no_grad():
        prior = draw_prior(policy, one.obs, num_particles=1)
    return any(is_real(fn.support) for fn in prior.distributions.values())


def _gaussian_dimensions(policy: LatentPolicy, one: FitRows) -> int | None:
    """Count the Gaussian dimensions of the guide beside discrete sites, or None where it has any other site."""
    with torch.no_grad():
        drawn = draw_guide(policy, one.obs, one.action, num_particles=1)
        prior = draw_prior(policy, one.obs, num_particles=1)
    total = 0
    for name, fn in drawn.distributions.items():
        if gaussian_parameters(fn) is not None:
            total += math.prod(fn.event_shape)
        elif not (fn.has_enumerate_support and prior.distributions[name].has_enumerate_support):
            return None
    return total


def _got(error: QuadratureError) -> str:
    lines = [line.split(":", 1)[1].strip() for line in str(error).splitlines() if line.startswith("  got:")]
    return lines[0] if lines else "no value"
