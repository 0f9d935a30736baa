"""The claims of ``tests/estimators.py`` as numbers: how far an estimator is from what it says of itself.

Each function takes a model and what the estimator said on every outcome, and returns the largest deviation. The
examiner asks for less than rounding of an estimator in the list, and for much more of one with a planted bug.
"""

from collections.abc import Callable

import torch

from latentpg.oracles.enumeration import Enumeration
from tests.estimators import Claim
from tests.examiner.expectations import (
    Scored,
    expected_ratio,
    log_proposal,
    model_gradient,
    moved_gradient,
    off_by,
    self_normalised,
)
from tests.examiner.models import Model

Deviation = Callable[[Model, str, int, Enumeration[Scored]], float]
"""Of a model, the name of the proposal, K, and the outcomes."""


def _from_log_pi(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    # outcomes differ only in what probes of the program have drawn: two different weightings of them must agree
    worst = 0.0
    for weight in (every.log_prob.exp(), torch.linspace(0, 1, len(every.row), dtype=torch.float64) / len(every.row)):
        value, expected = weight * every.result.log_prob, weight * model.log_pi()[every.row]
        worst = max(worst, off_by(every.result.log_prob, model.log_pi()[every.row]))
        worst = max(worst, off_by(model_gradient(model, value), model_gradient(model, expected)))
    return worst


def _from_the_gradient(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    expected = model_gradient(model, model.log_pi())
    return off_by(model_gradient(model, every.expectation(every.result.log_prob)), expected)


def _from_the_ratio(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    ratio = expected_ratio(model, every)
    # everything is relative to the true ratio, whose own relative gradient is that of its logarithm
    gradient = off_by(moved_gradient(model, ratio), moved_gradient(model, model.ratio().log()))
    return max(off_by(ratio, torch.ones_like(ratio)), gradient)


def _from_the_bound(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    log_guide = model.log_guide().detach()
    bound = (log_guide.exp() * (model.log_joint() - log_guide)).sum(0)
    value = every.expectation(every.result.log_prob)
    return max(off_by(value, bound), off_by(model_gradient(model, value), model_gradient(model, bound)))


def _from_importance_sampling(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    value = every.expectation(every.result.log_prob)
    by_hand = self_normalised(model, log_proposal(model, proposal), num_particles)
    return max(off_by(value, by_hand), off_by(model_gradient(model, value), model_gradient(model, by_hand)))


def _above_log_pi(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    return float((every.expectation(every.result.log_prob) - model.log_pi()).detach().max())


def _below_log_pi(model: Model, proposal: str, num_particles: int, every: Enumeration[Scored]) -> float:
    return float((model.log_pi() - every.expectation(every.result.log_prob)).detach().max())


DEVIATION: dict[Claim, Deviation] = {
    Claim.EXACT: _from_log_pi,
    Claim.GRADIENT: _from_the_gradient,
    Claim.RATIO: _from_the_ratio,
    Claim.BOUND: _from_the_bound,
    Claim.SELF_NORMALISED: _from_importance_sampling,
    Claim.LOWER: _above_log_pi,
    Claim.UPPER: _below_log_pi,
}
"""How far each claim is from the truth; a negative deviation is a bound that holds with room."""
