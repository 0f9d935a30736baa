"""The closed forms of the linear-Gaussian policy against each other, quadrature and its own programs."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from latentpg.errors import ShapeError
from latentpg.numerics.quadrature import hermite_grid
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.programs import draw_guide, log_joint, score_model

EXACT = 1e-10


@pytest.fixture
def policy() -> LinearGaussianPolicy:
    torch.manual_seed(0)
    return LinearGaussianPolicy.random(num_states=5, latent_size=2, action_size=3)


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.tensor([4, 0, 2]), torch.randn(3, 3, dtype=torch.float64)


def test_bayes_rule(policy: LinearGaussianPolicy, data: tuple[Tensor, Tensor]) -> None:
    """Log p(z, a) = log pi(a) + log p(z | a) at any z, the joint by the Pyro program."""
    z = torch.randn(7, 3, 2, dtype=torch.float64)
    joint = log_joint(policy, *data, {"z": z})
    assert torch.allclose(joint, policy.log_pi(*data) + policy.posterior(*data).log_prob(z), atol=EXACT)


def test_the_gradient_is_autograds(policy: LinearGaussianPolicy, data: tuple[Tensor, Tensor]) -> None:
    closed = policy.log_pi_gradient(*data)
    parameters = [policy.prior_loc, policy.prior_log_scale, policy.weight, policy.bias, policy.log_noise]
    tables = torch.autograd.grad(policy.log_pi(*data).sum(), parameters)
    names = ["prior_loc", "prior_log_scale", "weight", "bias", "log_noise"]
    for name, table in zip(names, tables, strict=True):
        assert torch.allclose(getattr(closed, name), table[data[0]], atol=EXACT), name


def test_the_marginal_integrates_the_program(policy: LinearGaussianPolicy, data: tuple[Tensor, Tensor]) -> None:
    """On nodes of the posterior every weight is pi(a|s), so that a few nodes are exact."""
    nodes, log_weight = hermite_grid(4, 2)
    posterior = policy.posterior(*data)
    z = posterior.mean + (posterior.scale_tril @ nodes[:, None, :, None]).squeeze(-1)
    scores = score_model(policy, *data, {"z": z})
    log_ratio = scores.log_prior + scores.log_likelihood - posterior.log_prob(z)
    assert torch.allclose((log_ratio + log_weight.unsqueeze(1)).logsumexp(0), policy.log_pi(*data), atol=EXACT)


def test_the_bound_is_the_mean_of_its_integrand(policy: LinearGaussianPolicy, data: tuple[Tensor, Tensor]) -> None:
    """It is quadratic in z, so that two nodes a dimension are exact."""
    nodes, log_weight = hermite_grid(2, 2)
    guide = draw_guide(policy, *data, num_particles=1).distributions["z"]
    z = guide.mean + guide.variance.sqrt() * nodes.unsqueeze(1)
    integrand = log_joint(policy, *data, {"z": z}) - guide.log_prob(z)
    assert torch.allclose(log_weight.exp() @ integrand, policy.log_bound(*data), atol=EXACT)
    assert bool((policy.log_bound(*data) < policy.log_pi(*data)).all())


def test_a_guide_that_is_not_given_is_the_prior() -> None:
    zeros = torch.zeros(2, 1)
    policy = LinearGaussianPolicy(
        prior_loc=zeros + 1, prior_log_scale=zeros, weight=zeros.unsqueeze(-1), bias=zeros, log_noise=zeros[:, 0]
    )
    # the action says nothing of z, so the posterior is the prior too and the bound is tight
    obs, action = torch.arange(2), torch.ones(2, 1, dtype=torch.float64)
    assert torch.allclose(policy.log_bound(obs, action), policy.log_pi(obs, action), atol=EXACT)
    assert isinstance(policy.posterior(obs, action), MultivariateNormal)


@pytest.mark.production
def test_wrong_tables_are_refused() -> None:
    zeros = torch.zeros(2, 1)
    with pytest.raises(ShapeError, match=r"`log_noise`"):
        LinearGaussianPolicy(
            prior_loc=zeros, prior_log_scale=zeros, weight=zeros.unsqueeze(-1), bias=zeros, log_noise=zeros
        )


def test_the_guide_needs_an_action(policy: LinearGaussianPolicy) -> None:
    with pytest.raises(ShapeError, match="actions"):
        policy.guide(torch.zeros(1, dtype=torch.int64), None)
