"""Every estimator held to what it claims, by exact sums over all outcomes of its own code.

An example of Hypothesis holds sixteen models. Each line of the shared list is examined on 200 models of each kind, at
every K from 1 to 4 (those that would sum over too many outcomes left out, but never K = 2).
"""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpg.estimators import ESTIMATORS, GUIDE_OBJECTIVES
from latentpg.oracles.enumeration import Enumeration
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, Claim, EstimatorCase
from tests.examiner.claims import DEVIATION
from tests.examiner.expectations import EXACT, PARTICLES, Scored, examine
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
    assert DEVIATION.keys() == set(Claim)


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
            assert DEVIATION[claim](model, case.proposal, num_particles, every) < EXACT, claim
        # whichever side of log pi the value lies on in expectation, more particles never take it further away
        nearer = (every.expectation(every.result.log_prob) - model.log_pi()).abs().detach()
        assert gap is None or bool((nearer < gap + EXACT).all())
        gap = nearer
