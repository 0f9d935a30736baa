"""Expectations of the real code, and what they should equal.

``examine`` runs an estimator's own ``propose`` and ``estimate`` on every outcome of their draws. Where a recorded
latent is used, it is a draw from the exact posterior of the acting policy, which is what acting leaves behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import Estimator, Particles
from latentpg.estimators.guides import GuideObjective
from latentpg.oracles.enumeration import Enumeration, enumerate_draws, tuples
from latentpg.programs import Categorical, Latents, draw, model_parameters, take_rows
from tests.examiner.models import NODES, Model

EXACT = 1e-10
"""Rounding: what float64 sums of up to a million terms of order one may be off by."""

PLANTED = 1e-3
"""A planted bug must show by more than this, ten million times the rounding."""

MAX_OUTCOMES = 16_384
"""Outcomes times rows that one test sums over; larger K are left out on the models where they exceed it."""

PARTICLES = (1, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class Scored:
    """What an estimator said on every outcome: under the policy that acted, and under the moved one."""

    log_prob: Tensor
    moved_log_prob: Tensor
    particles: Particles


def draw_recorded(model: Model, row: Tensor) -> Latents:
    """Draw the latent behind each row's action from its exact posterior."""
    log_posterior = model.log_posterior().detach().T
    return model.latents(draw("recorded", Categorical(log_posterior[row])), row)


def examine(model: Model, estimator: Estimator, *, uses_recorded: bool) -> Enumeration[Scored] | None:
    """Run an estimator on every outcome; None where there are too many."""

    def program(row: Tensor) -> Scored:
        obs, action = take_rows(model.obs, row), model.action[row]
        latents = draw_recorded(model, row) if uses_recorded else None
        particles = estimator.propose(model.policy, obs, action, latents)
        here = estimator.estimate(model.policy, obs, action, particles).log_prob
        return Scored(here, estimator.estimate(model.moved, obs, action, particles).log_prob, particles)

    try:
        return enumerate_draws(program, num_rows=model.rows, num_nodes=NODES, max_outcomes=MAX_OUTCOMES)
    except OptionError:
        return None


def examine_loss(
    model: Model, objective: GuideObjective, *, uses_recorded: bool = False, particles: Estimator | None = None
) -> Tensor | None:
    """Return a guide objective's expected loss ``[B]``, whose gradient is its expected gradient; None if too large."""

    def program(row: Tensor) -> Tensor:
        obs, action = take_rows(model.obs, row), model.action[row]
        latents = draw_recorded(model, row) if uses_recorded else None
        stored = None if particles is None else particles.propose(model.policy, obs, action, latents)
        return objective.loss(model.policy, obs, action, particles=stored, latents=latents)

    try:
        every = enumerate_draws(program, num_rows=model.rows, num_nodes=NODES, max_outcomes=MAX_OUTCOMES)
    except OptionError:
        return None
    return every.expectation(every.result)


def gradient(rows: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of the sum over rows, flat; rows have parameters of their own, so nothing is lost in the sum."""
    if not rows.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    parts = torch.autograd.grad(rows.sum(), parameters, allow_unused=True, materialize_grads=True, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def model_gradient(model: Model, rows: Tensor) -> Tensor:
    """Gradient in theta and phi of the policy that acts."""
    return gradient(rows, model_parameters(model.policy))


def moved_gradient(model: Model, rows: Tensor) -> Tensor:
    """Gradient in theta and phi of the moved policy."""
    return gradient(rows, model_parameters(model.moved))


def guide_gradient(model: Model, rows: Tensor) -> Tensor:
    """Gradient in psi."""
    return gradient(rows, model.policy.guide_parameters())


def off_by(value: Tensor, expected: Tensor) -> float:
    """Largest deviation of any entry."""
    return float((value - expected).detach().abs().max())


def expected_ratio(model: Model, every: Enumeration[Scored]) -> Tensor:
    """E[ratio] of each row over the true ratio (a constant): 1, with the gradient of log pi_new, if all is well.

    The acting policy's own estimate is a constant there, as an old log-probability is in a learner.
    """
    log_ratio = every.result.moved_log_prob - every.result.log_prob.detach()
    return every.expectation((log_ratio - model.ratio().log().detach()[every.row]).exp())


def log_proposal(model: Model, proposal: str) -> Tensor:
    """Log r at every joint latent, ``[C, B]``, by the tables."""
    prior = model.log_prior()
    if proposal == "prior":
        return prior.detach()
    guide = model.log_guide()
    if proposal == "guide":
        return guide.detach()
    assert proposal == "mixture"
    return (0.25 * prior.exp() + 0.75 * guide.exp()).log().detach()


def self_normalised(model: Model, log_r: Tensor, num_particles: int) -> Tensor:
    r"""Sum :math:`P(t)\log\frac1K\sum_k w_k` over all tuples: its gradient is the expected self-normalised one."""
    every = tuples([log_r] * num_particles)
    log_weight = (model.log_joint() - log_r)[every.index]  # [K, N, B]
    value = log_weight.exp().mean(0).log()
    return (every.log_prob.exp() * value).sum(0)
