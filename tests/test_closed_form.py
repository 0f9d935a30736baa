"""ClosedForm reads log pi off the policy."""

import dataclasses

import pytest
import torch
from gymnasium import spaces

from latentpg.errors import EstimatorError
from latentpg.estimators import ClosedForm, Estimator
from latentpg.policies import MixturePolicy, PlainPolicy
from latentpg.programs import act

SEEN, ACTS = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)


def test_the_estimate_is_log_pi_with_its_gradient() -> None:
    policy, obs = PlainPolicy(SEEN, ACTS, hidden=(5,)), torch.randn(6, 3)
    action, estimator = act(policy, obs).action, ClosedForm()
    particles = estimator.propose(policy, obs, action)
    assert (particles.num_particles, particles.num_rows, dict(particles.latents)) == (1, 6, {})
    estimate = estimator.estimate(policy, obs, action, particles)
    log_pi = policy.network(obs).log_softmax(-1)[torch.arange(6), action]
    torch.testing.assert_close(estimate.log_prob, log_pi)
    weights = torch.randn(6)
    found, expected = (
        torch.autograd.grad((weights * value).sum(), list(policy.parameters())) for value in (estimate.log_prob, log_pi)
    )
    torch.testing.assert_close(found, expected)
    assert not estimate.info


def test_it_is_an_estimator_without_options() -> None:
    assert isinstance(ClosedForm(), Estimator) and repr(ClosedForm()) == "ClosedForm()"
    assert not dataclasses.fields(ClosedForm)


def test_nothing_is_drawn() -> None:
    policy, obs = PlainPolicy(SEEN, ACTS), torch.randn(2, 3)
    state = torch.get_rng_state()
    ClosedForm().propose(policy, obs, torch.zeros(2, dtype=torch.int64), {})
    assert torch.equal(torch.get_rng_state(), state)


def test_a_policy_without_a_closed_form_is_refused() -> None:
    policy, obs = MixturePolicy(SEEN, ACTS), torch.zeros(2, 3)
    action, estimator = torch.zeros(2, dtype=torch.int64), ClosedForm()
    with pytest.raises(
        EstimatorError, match=r"no closed form(.|\n)*got:      MixturePolicy\n  fix:      Exact"
    ) as caught:
        estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action))
    assert "ClosedForm.estimate()" in str(caught.value)
