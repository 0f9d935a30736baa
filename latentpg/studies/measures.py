r"""What is measured in one cell, against the exact gradient.

The target is :math:`g = \nabla \frac1M \sum_m \log\pi(a_m | s_m)` in theta and phi over the study's M rows. Each of R
replicates proposes afresh and gives one gradient :math:`\hat g_r`.

**The recorded latent is random too.** An estimator that keeps it is exact over z0 ~ p(z | s, a), not for the one draw
that a rollout happens to hold. So each replicate of such an estimator draws z0 anew from the exact posterior at the
acting parameters, by enumeration: the same law as acting again until the same (s, a) comes out. It also keeps the
replicates independent of the guide, which was trained on the draws that were recorded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.estimators import (
    Estimate,
    Estimator,
    Exact,
    MarkovianIS,
    Particles,
    Quadrature,
    replicate_gradients,
)
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import (
    Interval,
    mean_interval,
    median_interval,
    noise_floor,
    norm_of_mean_interval,
    positive_mean_interval,
    signal_to_noise_interval,
    total_variance_interval,
)
from latentpg.programs import (
    Categorical,
    LatentPolicy,
    Latents,
    Observations,
    draw,
    log_joint,
    model_parameters,
    support,
)
from latentpg.studies.expectations import Kind, expectation_of
from latentpg.studies.spec import Cell, Problem

BLOCK = 2**17
"""Particles (replicates times rows times K) that are run at once: what is quickest on one core's cache."""


@dataclass(frozen=True)
class Measure:
    """A measured quantity: what it is called, what it is, and in which unit it comes."""

    label: str
    meaning: str
    unit: str


MEASURES: Mapping[str, Measure] = {
    "bias": Measure("bias", "length of the mean error of the gradient, the replicates' noise taken off", "nats"),
    "noise_floor": Measure("noise floor", "length that the mean error has by chance alone, √(variance / R)", "nats"),
    "variance": Measure("variance", "variance of one gradient, summed over coordinates", "nats²"),
    "mse": Measure("mean squared error", "mean squared distance of one gradient from the exact one", "nats²"),
    "snr": Measure("signal-to-noise ratio", "length of the mean gradient over the square root of its variance", "1"),
    "cosine": Measure("cosine", "mean cosine between one gradient and the exact one", "1"),
    "ess": Measure("effective sample size", "(Σw)² / Σw², averaged over rows", "particles"),
    "seconds": Measure("time", "median time of one gradient: propose, estimate, backward; one thread", "s"),
    "likelihood_evaluations": Measure(
        "likelihood evaluations", "evaluations of log p(z, a | s) for one gradient", "per row"
    ),
}
"""Every measure by its name in the table. Gradients are per unit of parameter, so their lengths are in nats."""


@dataclass(frozen=True)
class Measured:
    """One measure of one cell.

    ``exact`` says that the number carries no sampling noise, so that its interval is a point.
    """

    cell: Cell
    measure: str
    interval: Interval
    exact: bool = False


@dataclass(frozen=True)
class RedrawnLatent:
    """An estimator whose recorded latent is drawn anew at each proposal, from a posterior enumerated beforehand."""

    estimator: Estimator
    points: Latents
    log_posterior: Float[Tensor, "C B"]

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Propose with a fresh posterior draw in place of ``latents``."""
        return self.estimator.propose(policy, obs, action, self.redraw())

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Estimate as the estimator does."""
        return self.estimator.estimate(policy, obs, action, particles)

    def redraw(self) -> Latents:
        """Draw one joint latent ``[B, ...]`` a row from the posterior."""
        chosen = draw("recorded latent", Categorical(self.log_posterior.T))
        rows = torch.arange(self.log_posterior.shape[1], device=chosen.device)
        return {name: value[chosen, rows] for name, value in self.points.items()}


def redrawing(estimator: Estimator, problem: Problem) -> RedrawnLatent:
    """Enumerate the posterior of a problem's rows at its policy's parameters."""
    with torch.no_grad():
        points = support(problem.policy, problem.obs)
        log_posterior = log_joint(problem.policy, problem.obs, problem.action, points).log_softmax(0)
    return RedrawnLatent(estimator, points, log_posterior)


def gradient(problem: Problem, estimator: Estimator, latents: Latents | None) -> tuple[Float[Tensor, " P"], Estimate]:
    """Compute one gradient of the mean over rows the plain way: propose, estimate, backward."""
    particles = estimator.propose(problem.policy, problem.obs, problem.action, latents)
    estimate = estimator.estimate(problem.policy, problem.obs, problem.action, particles)
    parameters = model_parameters(problem.policy)
    parts = torch.autograd.grad(estimate.log_prob.mean(), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]), estimate


def exact_gradient(problem: Problem) -> Float[Tensor, " P"]:
    """Compute the reference by enumeration."""
    return gradient(problem, Exact(), None)[0]


def measure_cell(
    cell: Cell, problem: Problem, reference: Float[Tensor, " P"], *, num_replicates: int, num_timings: int, seed: int
) -> list[Measured]:
    """Measure everything in one cell, on a random stream of its own."""
    estimator = cell.build()
    claim = expectation_of(cell.line.estimator)
    with seeded(seed):
        recorded: Sequence[Latents | None] = [None] * (num_timings + 1)
        if claim.retains_recorded:
            estimator = redrawing(estimator, problem)
            recorded = [estimator.redraw() for _ in recorded]
        evaluations = likelihood_evaluations(cell.build(), problem, recorded[0])
        costs = [
            Measured(cell, "likelihood_evaluations", _point(float(evaluations)), exact=True),
            *_costs(cell, problem, recorded),
        ]
        if claim.kind is Kind.EXACT:
            return [*_errors_without_noise(cell, gradient(problem, estimator, None)[0], reference), *costs]
        sample, _ = replicate_gradients(
            problem.policy,
            estimator,
            problem.obs,
            problem.action,
            num_replicates=num_replicates,
            chunk_size=max(1, min(num_replicates, BLOCK // (len(problem.obs) * evaluations))),
        )
    return [*_errors(cell, sample, reference), *costs]


def likelihood_evaluations(estimator: Estimator, problem: Problem, latents: Latents | None) -> int:
    """Count the evaluations of log p(z, a | s) that one gradient costs a row.

    One a particle, and what proposing needs besides.
    """
    particles = estimator.propose(problem.policy, problem.obs, problem.action, latents).num_particles
    match estimator:
        case MarkovianIS():  # each transition of the chain weighs its particles
            return particles * (1 + estimator.num_sweeps)
        case Quadrature():  # the nodes, and twice as many, are evaluated to see whether the value settles
            finer = replace(estimator, num_nodes=2 * estimator.num_nodes)
            return 2 * particles + finer.propose(problem.policy, problem.obs, problem.action).num_particles
        case _:
            return particles


def _errors(cell: Cell, sample: Float[Tensor, "R P"], reference: Float[Tensor, " P"]) -> list[Measured]:
    sample, reference = sample.double(), reference.double()
    error = sample - reference
    floor = noise_floor(sample)
    cosine = torch.cosine_similarity(sample, reference.unsqueeze(0))
    return [
        Measured(cell, "bias", norm_of_mean_interval(error)),
        Measured(cell, "noise_floor", _point(floor)),
        Measured(cell, "variance", total_variance_interval(sample)),
        Measured(cell, "mse", positive_mean_interval(error.square().sum(1))),
        Measured(cell, "snr", signal_to_noise_interval(sample)),
        Measured(cell, "cosine", _bounded(mean_interval(cosine), -1.0, 1.0)),
    ]


def _errors_without_noise(cell: Cell, found: Float[Tensor, " P"], reference: Float[Tensor, " P"]) -> list[Measured]:
    """Give the measures of an estimator without chance: one gradient tells all, the ratio to a noise of zero aside."""
    found, reference = found.double(), reference.double()
    length = float((found - reference).norm())
    cosine = float(torch.cosine_similarity(found, reference, dim=0))
    values = {"bias": length, "noise_floor": 0.0, "variance": 0.0, "mse": length**2, "cosine": min(cosine, 1.0)}
    return [Measured(cell, name, _point(value), exact=True) for name, value in values.items()]


def _costs(cell: Cell, problem: Problem, recorded: Sequence[Latents | None]) -> list[Measured]:
    """Time plain gradients, one for each set of recorded latents; the first warms up."""
    estimator = cell.build()
    seconds, sizes = [], []
    for latents in recorded:
        start = time.perf_counter()
        _, estimate = gradient(problem, estimator, latents)
        seconds.append(time.perf_counter() - start)
        sizes.append(float(estimate.info["ess"].mean()) if "ess" in estimate.info else math.nan)
    found = [Measured(cell, "seconds", median_interval(torch.tensor(seconds[1:], dtype=torch.float64)))]
    effective = torch.tensor(sizes[1:], dtype=torch.float64)
    if not bool(effective.isnan().any()):
        varies = bool((effective != effective[0]).any())
        interval = _bounded(mean_interval(effective), 1.0, float(cell.num_particles or math.inf))
        found.append(Measured(cell, "ess", interval, exact=not varies))
    return found


def _point(value: float) -> Interval:
    return Interval(value, value, value)


def _bounded(interval: Interval, least: float, most: float) -> Interval:
    """Cut an interval off at what the quantity can be."""
    value, low, high = (min(max(end, least), most) for end in (interval.value, interval.low, interval.high))
    return Interval(value, low, high)
