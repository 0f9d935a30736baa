"""Every estimator held to what it claims, by exact sums over all outcomes of its own code.

An example of Hypothesis holds sixteen models. Each line of the shared list is examined on 200 models of each kind, at
every K from 1 to 4 (those that would sum over too many outcomes left out, but never K = 2).
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpg.estimators import ESTIMATORS, GUIDE_OBJECTIVES
from latentpg.oracles.enumeration import Enumeration
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, Claim, EstimatorCase
from tests.examiner.expectations import (
    EXACT,
    PARTICLES,
    Scored,
    examine,
    expected_ratio,
    log_proposal,
    model_gradient,
    moved_gradient,
    off_by,
    self_normalised,
)
from tests.examiner.models import Model, models

EXAMPLES = 13  # of sixteen models each: 208


def examined(model: Model, case: EstimatorCase) -> Iterator[tuple[int, Enumeration[Scored]]]:
    """Yield K and what the estimator says on every outcome, for each K that can be summed over."""
    for num_particles in PARTICLES[:1] if case.fixed_size else PARTICLES:
        if num_particles >= case.fewest:
            every = examine(model, case.make(num_particles), uses_recorded=case.uses_recorded)
            assert every is not None or num_particles > 2, "too many outcomes to examine anything"
            if every is not None:
                yield num_particles, every


def is_exact(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    # whatever its probes of the program have drawn: two different weightings of the outcomes
    for chance in (every.log_prob.exp(), 1.0 + torch.arange(len(every.row))):
        value, expected = chance * every.result.log_prob, chance * model.log_pi()[every.row]
        assert off_by(value, expected) < EXACT * float(chance.max())
        assert off_by(model_gradient(model, value), model_gradient(model, expected)) < EXACT * float(chance.sum())


def has_the_gradient(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    expected = model_gradient(model, model.log_pi())
    assert off_by(model_gradient(model, every.expectation(every.result.log_prob)), expected) < EXACT


def has_the_ratio(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    ratio = expected_ratio(model, every)
    assert off_by(ratio, torch.ones_like(ratio)) < EXACT
    # everything is relative to the true ratio, whose own relative gradient is that of its logarithm
    assert off_by(moved_gradient(model, ratio), moved_gradient(model, model.ratio().log())) < EXACT


def is_the_bound(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    log_guide = model.log_guide().detach()
    bound = (log_guide.exp() * (model.log_joint() - log_guide)).sum(0)
    value = every.expectation(every.result.log_prob)
    assert off_by(value, bound) < EXACT
    assert off_by(model_gradient(model, value), model_gradient(model, bound)) < EXACT


def is_importance_sampling(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    """Hold the bias itself at each K; its limit is in ``test_rates``."""
    value = every.expectation(every.result.log_prob)
    by_hand = self_normalised(model, log_proposal(model, case.proposal), num_particles)
    assert off_by(value, by_hand) < EXACT
    assert off_by(model_gradient(model, value), model_gradient(model, by_hand)) < EXACT


def lies_below(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    assert bool((every.expectation(every.result.log_prob) < model.log_pi() + EXACT).all())


def lies_above(model: Model, case: EstimatorCase, num_particles: int, every: Enumeration[Scored]) -> None:
    assert bool((every.expectation(every.result.log_prob) > model.log_pi() - EXACT).all())


HOLDS: dict[Claim, Callable[[Model, EstimatorCase, int, Enumeration[Scored]], None]] = {
    Claim.EXACT: is_exact,
    Claim.GRADIENT: has_the_gradient,
    Claim.RATIO: has_the_ratio,
    Claim.BOUND: is_the_bound,
    Claim.SELF_NORMALISED: is_importance_sampling,
    Claim.LOWER: lies_below,
    Claim.UPPER: lies_above,
}


def test_every_registered_name_is_in_the_shared_list() -> None:
    assert {case.name for case in ESTIMATOR_CASES} == set(ESTIMATORS)
    assert {case.name for case in GUIDE_CASES} == set(GUIDE_OBJECTIVES)


def test_every_line_of_the_shared_list_is_what_its_name_says_and_claims_something() -> None:
    for case in ESTIMATOR_CASES:
        assert isinstance(case.make(2), ESTIMATORS[case.name])  # type: ignore[arg-type]
        assert case.claims and case.kinds
    for guide_case in GUIDE_CASES:
        assert isinstance(guide_case.make(2), GUIDE_OBJECTIVES[guide_case.name])  # type: ignore[arg-type]
        assert guide_case.kinds
    assert HOLDS.keys() == set(Claim)


@pytest.mark.parametrize(
    ("case", "kind"),
    [pytest.param(case, kind, id=f"{case.id}-{kind}") for case in ESTIMATOR_CASES for kind in case.kinds],
)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_claims(case: EstimatorCase, kind: str, data: st.DataObject) -> None:
    model = data.draw(models(kind))
    gap = None
    for num_particles, every in examined(model, case):
        for claim in case.claims:
            HOLDS[claim](model, case, num_particles, every)
        # whichever side of log pi the value lies on in expectation, more particles never take it further away
        nearer = (every.expectation(every.result.log_prob) - model.log_pi()).abs().detach()
        assert gap is None or bool((nearer < gap + EXACT).all())
        gap = nearer
