r"""What is measured in one cell: the error, the noise and the cost of a random quantity, against its exact value.

Each of R replicates poses the cell's target afresh and gives one number or one gradient :math:`\hat g_r`; the reference
g is the same target posed for the problem's exact estimator.

**The recorded latent is random too.** An estimator that keeps it is exact over z0 ~ p(z | s, a), not for the one draw
that a rollout happens to hold. So each replicate of such an estimator draws z0 anew from the exact posterior at the
acting parameters: the same law as acting again until the same (s, a) comes out. It also keeps the replicates
independent of the guide, which was trained on the draws that were recorded. Where the posterior cannot be drawn from,
the recorded latents stay, and no bias is reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import StudyError
from latentpg.estimators import Estimator, MarkovianIS, Quadrature, replicate
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
from latentpg.programs import num_rows
from latentpg.studies.catalogue import OF_ESTIMATES
from latentpg.studies.coordinate_snr import coordinate_snr_interval
from latentpg.studies.expectations import Kind, expectation_of
from latentpg.studies.guide_target import GuideGradient
from latentpg.studies.problem import Problem
from latentpg.studies.procedures import STEP, Chosen, Procedure
from latentpg.studies.retained import redrawn
from latentpg.studies.spec import Cell, kind_of
from latentpg.studies.targets import Quantity
from latentpg.studies.targets import Target as ModelTarget

BLOCK = 2**17
"""Particles (replicates times rows times K) that are run at once: what is quickest on one core's cache."""


@dataclass(frozen=True)
class Measured:
    """One measure of one cell.

    ``exact`` says that the number carries no sampling noise, so that its interval is a point. ``count`` is how many
    independent repetitions it comes from, where that is not the study's number.
    """

    cell: Cell
    measure: str
    interval: Interval
    exact: bool = False
    count: int | None = None


@dataclass(frozen=True)
class Posed:
    """A cell's question in full: the quantity, its reference if there is one, its cost, and its weights if it has any.

    ``per_row`` counts evaluations of log p(z, a | s); ``weigh`` gives the effective sample size of a fresh draw.
    """

    quantity: Quantity
    reference: Quantity | None
    is_exact: bool
    per_row: int
    weigh: Callable[[], Tensor | None]


def pose(cell: Cell, target: ModelTarget | GuideGradient, problem: Problem) -> Posed:
    """Pose a cell's target on a problem."""
    if isinstance(target, GuideGradient):
        objective, stored = cell.build_objective()
        quantity = target.pose(problem, objective, stored)
        size = getattr(stored or objective, "num_particles", None)  # its own, whether it came from an axis or not
        keeps = expectation_of(cell.line.estimator, role="objective").retains_recorded
        reference = None
        if not (keeps and problem.redraw is None):
            reference = target.reference(problem, cell.line.estimator, size)
        return Posed(quantity, reference, False, target.evaluations(objective, stored), lambda: None)
    claim = expectation_of(cell.line.estimator, kind_of(target))
    plain = cell.build()
    keeps = claim.retains_recorded or bool(getattr(plain, "retain", False))
    if not keeps:  # a chain would begin at the one latent that happens to be recorded
        problem = replace(problem, latents=None)
    estimator = redrawn(plain, problem) if keeps else plain
    comparable = problem.exact is not None and not (keeps and problem.redraw is None)
    reference = target.pose(problem, problem.exact) if comparable and problem.exact is not None else None
    evaluations = target.evaluations(problem, plain, likelihood_evaluations(plain, problem))

    def weigh() -> Tensor | None:
        particles = estimator.propose(problem.policy, problem.obs, problem.action, problem.latents)
        with torch.no_grad():
            found = estimator.estimate(problem.policy, problem.obs, problem.action, particles)
        return found.info["ess"].mean() if "ess" in found.info else None

    return Posed(target.pose(problem, estimator), reference, claim.kind is Kind.EXACT, evaluations, weigh)


def once(quantity: Quantity) -> Float[Tensor, " P"]:
    """Compute a quantity once, the plain way: its value ``[1]``, or its gradient ``[P]``."""
    if not quantity.parameters:
        with torch.no_grad():
            return torch.stack([piece() for piece in quantity.pieces]).sum().reshape(1)
    parameters = list(quantity.parameters)
    whole = []
    for piece in quantity.pieces:
        parts = torch.autograd.grad(piece(), parameters, allow_unused=True, materialize_grads=True)
        whole.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(whole).sum(0)


def measure_cell(
    cell: Cell,
    target: ModelTarget | GuideGradient,
    problem: Problem,
    *,
    num_replicates: int,
    num_timings: int,
    seed: int,
) -> list[Measured]:
    """Measure everything in one cell, on a random stream of its own."""
    with seeded(seed):
        posed = pose(cell, target, problem)
        reference = None if posed.reference is None else _checked(once(posed.reference))
        costs = [
            Measured(cell, "likelihood_evaluations", point(float(posed.per_row)), exact=True),
            *_costs(cell, posed, num_timings),
        ]
        if posed.is_exact and reference is not None:
            return [*_errors_without_noise(cell, once(posed.quantity).double(), reference), *costs]
        sample = _replicates(posed, num_replicates, num_rows(problem.obs)).double()
    return [*_errors(cell, sample, reference), *costs]


def carry_out(
    cells: Sequence[Cell], target: Procedure, problem: Problem, *, num_replicates: int, seed: int
) -> list[Measured]:
    """Carry out a procedure for cells that differ in the step alone, on one random stream."""
    first = cells[0]
    by_step = {cell.at(STEP): cell for cell in cells}
    steps = [int(step) for step in by_step if step is not None] or [int(getattr(target, STEP, 0))]
    keeps = expectation_of(first.line.estimator).retains_recorded
    chosen = Chosen(first.build(), first.build_objective()[0] if first.line.objective else None, keeps)
    with seeded(seed):
        found = target.carry_out(problem, chosen, steps=steps, num_replicates=num_replicates)
    return [
        Measured(by_step.get(each.step, first), each.measure, each.interval, each.exact, each.count) for each in found
    ]


def _checked(reference: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Refuse a gradient that vanishes, of which no error could be a share."""
    length, rounding = float(reference.norm()), 100 * torch.finfo(reference.dtype).eps
    if len(reference) > 1 and not length > rounding:
        raise StudyError(
            "study source",
            "the exact gradient vanishes, so that no error can be a share of it",
            expected=f"a length above {rounding:.0e}",
            got=f"{length:.3g}",
            likely="a policy with one action only, or a guide that is where its objective wants it already",
            fix="another source, or a guide of another quality",
        )
    return reference.double()


def likelihood_evaluations(estimator: Estimator, problem: Problem) -> int:
    """Count the evaluations of log p(z, a | s) that one estimate asks for a row.

    One a particle, and what proposing needs besides. It costs less where a policy names its few ``categories``:
    particles that coincide are then looked up.
    """
    latents = problem.latents
    if latents is None and problem.redraw is not None:
        latents = problem.redraw()
    particles = estimator.propose(problem.policy, problem.obs, problem.action, latents).num_particles
    match estimator:
        case MarkovianIS():  # each transition of the chain weighs its particles
            return particles * (1 + estimator.num_sweeps)
        case Quadrature():  # the nodes, and twice as many, are evaluated to see whether the value settles
            finer = replace(estimator, num_nodes=2 * estimator.num_nodes)
            return 2 * particles + finer.propose(problem.policy, problem.obs, problem.action).num_particles
        case _:
            return particles


def _replicates(posed: Posed, num_replicates: int, rows: int) -> Float[Tensor, "R P"]:
    quantity = posed.quantity
    at_once = rows * max(1, posed.per_row) // len(quantity.pieces)
    chunk = max(1, min(num_replicates, BLOCK // max(1, at_once)))
    whole = []
    for piece in quantity.pieces:
        gradients, values = replicate(
            quantity.policy, quantity.parameters, piece, num_replicates=num_replicates, chunk_size=chunk
        )
        whole.append(gradients if quantity.parameters else values.unsqueeze(1))
    return torch.stack(whole).sum(0)


def _errors(cell: Cell, sample: Float[Tensor, "R P"], reference: Float[Tensor, " P"] | None) -> list[Measured]:
    found = {
        "noise_floor": point(noise_floor(sample)),
        "variance": total_variance_interval(sample),
        "snr": signal_to_noise_interval(sample),
    }
    moves = (sample.var(0) > 0) | (sample[0] != 0)
    if reference is not None:
        moves |= reference != 0  # what should move and happened not to tells of rare events
    varying = sample[:, moves]
    if varying.shape[1] > 1:
        found["coordinate_snr"] = coordinate_snr_interval(varying)
    if reference is not None:
        error = sample - reference
        found["reference_norm"] = point(float(reference.norm()))
        found["bias"] = norm_of_mean_interval(error)
        found["mse"] = positive_mean_interval(error.square().sum(1))
        if sample.shape[1] > 1:
            cosine = torch.cosine_similarity(sample, reference.unsqueeze(0))
            found["cosine"] = _bounded(mean_interval(cosine), -1.0, 1.0)
    return [Measured(cell, name, found[name], exact=name == "reference_norm") for name in OF_ESTIMATES if name in found]


def _errors_without_noise(cell: Cell, found: Float[Tensor, " P"], reference: Float[Tensor, " P"]) -> list[Measured]:
    """Give the measures of an estimator without chance: one run tells all, the ratio to a noise of zero aside."""
    length = float((found - reference).norm())
    values = {
        "reference_norm": float(reference.norm()),
        "bias": length,
        "noise_floor": 0.0,
        "variance": 0.0,
        "mse": length**2,
    }
    if len(found) > 1:
        values["cosine"] = min(float(torch.cosine_similarity(found, reference, dim=0)), 1.0)
    return [Measured(cell, name, point(value), exact=True) for name, value in values.items()]


def _costs(cell: Cell, posed: Posed, num_timings: int) -> list[Measured]:
    """Time the plain way; the first run warms up. Weights are drawn apart from what is timed."""
    seconds, sizes = [], []
    for _ in range(num_timings + 1):
        start = time.perf_counter()
        once(posed.quantity)
        seconds.append(time.perf_counter() - start)
        size = posed.weigh()
        sizes.append(math.nan if size is None else float(size))
    found = [Measured(cell, "seconds", median_interval(torch.tensor(seconds[1:], dtype=torch.float64)))]
    effective = torch.tensor(sizes[1:], dtype=torch.float64)
    if not bool(effective.isnan().any()):
        certain = posed.is_exact or cell.num_particles in (None, 1)  # equal by chance is not equal always
        interval = _bounded(mean_interval(effective), 1.0, float(cell.num_particles or math.inf))
        found.append(Measured(cell, "ess", interval, exact=certain))
    return found


def point(value: float) -> Interval:
    """Return a number without noise."""
    return Interval(value, value, value)


def _bounded(interval: Interval, least: float, most: float) -> Interval:
    """Cut an interval off at what the quantity can be."""
    value, low, high = (min(max(end, least), most) for end in (interval.value, interval.low, interval.high))
    return Interval(value, low, high)
