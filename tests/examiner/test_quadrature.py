"""Quadrature against the two families where the truth has a closed form, and its refusals where nodes do not settle."""

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from latentpg.errors import EstimatorError, QuadratureError, SiteError
from latentpg.estimators import Exact, Quadrature
from latentpg.numerics.quadrature import hermite_grid
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.programs import model_parameters
from tests.examiner.expectations import EXACT, gradient, model_gradient, off_by
from tests.examiner.models import (
    ModeAndStyle,
    Model,
    log_likelihood,
    mode_and_style_models,
    models,
    near_the_posterior,
)

EXAMPLES = 13


def estimate(estimator: Quadrature | Exact, model: Model) -> Tensor:
    particles = estimator.propose(model.policy, model.obs, model.action)
    return estimator.estimate(model.policy, model.obs, model.action, particles).log_prob


@pytest.mark.parametrize("kind", ["step", "span", "two-site"])
def test_it_is_the_exact_estimator_on_mixtures(kind: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(model=models(kind))
    def agree(model: Model) -> None:
        quadrature, exact = estimate(Quadrature(), model), estimate(Exact(), model)
        assert off_by(quadrature, exact) < EXACT
        assert off_by(model_gradient(model, quadrature), model_gradient(model, exact)) < EXACT

    agree()


@settings(max_examples=EXAMPLES)
@given(drawn=models("noise"))
def test_it_is_the_closed_form_of_linear_gaussians(drawn: Model) -> None:
    """Under a guide within a tenth of the posterior the weights are entire functions, and 32 nodes reach rounding."""
    model = near_the_posterior(drawn)
    assert isinstance(model.policy, LinearGaussianPolicy)
    quadrature, closed = estimate(Quadrature(), model), model.policy.log_pi(model.states, model.action)
    assert off_by(quadrature, closed) < EXACT
    assert off_by(model_gradient(model, quadrature), model_gradient(model, closed)) < EXACT


@settings(max_examples=EXAMPLES)
@given(model=models("noise"))
def test_where_it_answers_it_has_settled(model: Model) -> None:
    """Under any guide: either it refuses, or twice the nodes agree with it to its tolerance."""
    assert isinstance(model.policy, LinearGaussianPolicy)
    try:
        coarse = estimate(Quadrature(16), model)
    except QuadratureError:
        return
    fine = estimate(Quadrature(32, tolerance=math.inf), model)
    assert off_by(coarse, fine) <= Quadrature().tolerance


@settings(max_examples=EXAMPLES)
@given(model=models("noise"))
def test_it_is_exact_where_the_guide_is_the_posterior(model: Model) -> None:
    """Every weight is then pi(a|s) itself, whatever the nodes."""
    policy = model.policy
    assert isinstance(policy, LinearGaussianPolicy)
    with torch.no_grad():
        posterior = policy.posterior(model.states, model.action)
        policy.guide_weight.zero_()
        policy.guide_bias.copy_(posterior.mean)
        policy.guide_log_scale.copy_(posterior.variance.sqrt().log())
    quadrature, closed = estimate(Quadrature(num_nodes=3), model), policy.log_pi(model.states, model.action)
    assert off_by(quadrature, closed) < EXACT
    # the gradient's integrand is a polynomial of degree two in z
    assert off_by(model_gradient(model, quadrature), model_gradient(model, closed)) < EXACT


@settings(max_examples=EXAMPLES)
@given(drawn=mode_and_style_models(rows=4))
def test_a_discrete_latent_beside_a_gaussian_one(drawn: tuple[ModeAndStyle, Tensor, Tensor]) -> None:
    r"""pi(a) = sum_m p(m) N(a; slope_m loc_m + bias_m, slope_m^2 scale_m^2 + 1)."""
    policy, obs, action = drawn
    variance = policy.slope**2 * (2 * policy.log_scale).exp() + 1
    error = action.unsqueeze(1) - policy.slope * policy.loc - policy.bias
    component = -0.5 * error**2 / variance - 0.5 * (2 * math.pi * variance).log()
    closed = (policy.mode.log_softmax(-1) + component).logsumexp(-1)
    with torch.no_grad():  # the guide's style is the posterior's given the mode, so that the integrand is constant
        gain = policy.slope * (2 * policy.log_scale).exp() / variance
        policy.guide_loc.copy_(policy.loc + gain * error)
        policy.guide_log_scale.copy_(policy.log_scale - 0.5 * variance.log())
    estimator = Quadrature(num_nodes=4)
    value = estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action)).log_prob
    assert off_by(value, closed) < EXACT
    parameters = model_parameters(policy)
    assert off_by(gradient(value, parameters), gradient(closed, parameters)) < EXACT


def test_the_noises_nodes_are_the_closed_form_in_the_limit() -> None:
    """What the examiner calls exact on five nodes is, on many, exact for the Gaussian."""
    torch.manual_seed(0)
    policy = LinearGaussianPolicy.random(num_states=8, latent_size=1, action_size=1)
    obs, action = torch.arange(8), torch.zeros(8, 1, dtype=torch.float64)
    errors = []
    for num_nodes in (8, 32, 128):
        nodes, log_weight = hermite_grid(num_nodes, 1)
        z = policy.prior_loc[obs] + policy.prior_log_scale[obs].exp() * nodes.unsqueeze(1)
        mean = policy.weight[obs, 0] * z + policy.bias[obs]
        log_likelihood_at = torch.distributions.Normal(mean, policy.log_noise[obs].exp().unsqueeze(-1)).log_prob(action)
        value = (log_likelihood_at.squeeze(-1) + log_weight.unsqueeze(1)).logsumexp(0)
        errors.append(off_by(value, policy.log_pi(obs, action)))
    assert errors[2] < EXACT < errors[1] < errors[0]
    assert log_likelihood(policy, obs, action).shape == (5, 8)


def peaked(noise: float = 0.01) -> Model:
    """Return a decoder a hundred times narrower than the guide, or as narrow as is asked for."""
    one = torch.ones(1, 1, dtype=torch.float64)
    policy = LinearGaussianPolicy(
        prior_loc=0 * one,
        prior_log_scale=0 * one,
        weight=one[None],
        bias=0 * one,
        log_noise=math.log(noise) * one[0],
    )
    return Model(policy, policy, torch.zeros(1, dtype=torch.int64), 1.3 * one)


def test_it_refuses_a_peaked_decoder_under_a_wide_guide() -> None:
    with pytest.raises(QuadratureError, match="do not settle"):
        estimate(Quadrature(), peaked())


def test_it_accepts_the_same_decoder_under_its_posterior() -> None:
    model = peaked()
    assert isinstance(model.policy, LinearGaussianPolicy)
    with torch.no_grad():
        posterior = model.policy.posterior(model.states, model.action)
        model.policy.guide_bias.copy_(posterior.mean)
        model.policy.guide_log_scale.copy_(posterior.variance.sqrt().log())
    assert off_by(estimate(Quadrature(), model), model.policy.log_pi(model.states, model.action)) < EXACT


def test_many_nodes_settle_what_few_do_not() -> None:
    """They are checked against 512, whose outer weights are below the smallest float."""
    model = peaked(0.3)
    assert isinstance(model.policy, LinearGaussianPolicy)
    with pytest.raises(QuadratureError, match="do not settle"):
        estimate(Quadrature(32), model)
    closed = model.policy.log_pi(model.states, model.action)
    assert off_by(estimate(Quadrature(256), model), closed) < EXACT


def test_it_refuses_more_than_three_gaussian_dimensions() -> None:
    torch.manual_seed(0)
    policy = LinearGaussianPolicy.random(num_states=1, latent_size=4, action_size=1)
    with pytest.raises(EstimatorError, match="too many Gaussian dimensions"):
        Quadrature(2).propose(policy, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.float64))


def test_the_exact_estimator_refuses_a_gaussian_latent() -> None:
    torch.manual_seed(0)
    policy = LinearGaussianPolicy.random(num_states=1, latent_size=1, action_size=1)
    with pytest.raises(SiteError, match="continuous"):
        Exact().propose(policy, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.float64))
