"""Held-out likelihood: the right measure for each kind of latent, and a fitted CVAE against its closed form."""

import pyro
import pytest
import torch
from torch import Tensor, nn

from latentpg.evaluation import EXACT, HMC, LOWER_BOUND, Annealing, Independence, exact_likelihood, iwae_curve
from latentpg.imitation import (
    FitOptions,
    FitRows,
    ImportanceBound,
    MaximumLikelihood,
    VariationalBound,
    fit,
    held_out,
    step_rows,
)
from latentpg.numerics.rng import seeded
from latentpg.policies import CodeLatent, EpisodePolicy, GaussianLatent, GaussianPolicy
from latentpg.programs import DiagNormal, MultiBernoulli, log_joint
from tests.imitation.small import BOX, gaussian, made_policy, observed, tabular, two_ways, whole_episodes

QUICK = Annealing(num_temperatures=4, num_chains=4, kernels=(Independence(), HMC(num_leapfrog=2)))


def test_discrete_latents_are_enumerated() -> None:
    policy, rows = tabular()
    found = held_out(policy, rows, action_scale=None)
    assert torch.equal(
        found.likelihood.log_prob, exact_likelihood(policy, rows.obs, rows.action, rows.episode).log_prob
    )
    assert found.likelihood.kind == EXACT and found.curve is None and found.annealed is None
    assert "enumeration of the latents' 3 joint values" in found.lines()[0]


def test_few_gaussian_dimensions_are_integrated() -> None:
    """Once by a guide near enough, and once by densities of the rows' own because the guide is far too narrow."""
    policy, rows = gaussian(1)
    exact = policy.log_pi(observed(rows), rows.action).detach()
    with torch.no_grad():
        policy.guide_log_scale.fill_(-3.0)
    with seeded(6):
        found = held_out(policy, rows)
    assert torch.allclose(found.likelihood.log_prob, exact, atol=1e-4)
    assert found.likelihood.kind == EXACT and "placed by a density of each row's own" in found.why
    with torch.no_grad():
        posterior = policy.posterior(torch.arange(3), torch.zeros(3, 2, dtype=torch.float64))
        scale = (-2 * policy.log_noise).exp()[:, None, None]
        policy.guide_weight.copy_(posterior.covariance_matrix @ policy.weight.transpose(-1, -2) * scale)
        policy.guide_bias.copy_(posterior.mean)
        policy.guide_log_scale.copy_(0.5 * posterior.variance.log() + 0.2)
    found = held_out(policy, rows)
    assert torch.allclose(found.likelihood.log_prob, exact, atol=1e-4)
    assert "quadrature over 1 Gaussian dimensions, its nodes placed by the guide" in found.lines()[0]


class TwoPeaks(nn.Module):
    """z ~ N(0, 1) and a ~ N(z^2, .05^2): the posterior has a peak on either side of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-3.0], dtype=torch.float64))

    def model(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        z = pyro.sample("z", DiagNormal(0.0 * obs, 0.0 * obs))
        return pyro.sample("action", DiagNormal(z.square(), self.log_scale), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", DiagNormal(0.0 * obs, 0.0 * obs))

    def prior_parameters(self) -> list[nn.Parameter]:
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        return [self.log_scale]

    def guide_parameters(self) -> list[nn.Parameter]:
        return []


def test_where_no_nodes_settle_the_bounds_take_their_place_and_say_so() -> None:
    policy = TwoPeaks()
    action = torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64)
    rows = FitRows(torch.zeros_like(action), action, torch.arange(3))
    with seeded(1):
        found = held_out(policy, rows, num_particles=(1, 4), annealing=QUICK)
    assert found.likelihood.kind == LOWER_BOUND and found.curve is not None and found.annealed is found.likelihood
    assert "quadrature did not settle (" in found.why and "in row" in found.why
    assert any("annealed" in line for line in found.lines()) and any("K = 4" in line for line in found.lines())


class ManyCoins(nn.Module):
    """Thirteen coins behind a Gaussian: 8,192 joint values, too many to list."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def model(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        z = pyro.sample("z", MultiBernoulli(torch.zeros(13)))
        return pyro.sample("action", DiagNormal(self.slope * z.sum(-1, keepdim=True), torch.zeros(1)), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", MultiBernoulli(torch.zeros(13)))

    prior_parameters = guide_parameters = TwoPeaks.prior_parameters

    def decoder_parameters(self) -> list[nn.Parameter]:
        return [self.slope]


def test_too_many_values_to_list_are_bounded_and_annealed_without_gradients() -> None:
    """Thirteen fair coins: log pi is a sum over their binomial number."""
    policy, action = ManyCoins(), torch.tensor([[1.0], [3.0], [6.0]])
    rows = FitRows(torch.zeros(3, 1), action, torch.arange(3))
    number = torch.arange(14.0)
    binomial = torch.distributions.Binomial(13, torch.tensor(0.5)).log_prob(number)
    exact = (binomial + torch.distributions.Normal(0.5 * number, 1.0).log_prob(action)).logsumexp(-1)
    with seeded(2):
        found = held_out(policy, rows, num_particles=(1, 1024), annealing=QUICK)
    assert found.curve is not None and found.annealed is not None
    assert torch.allclose(found.curve.likelihood.log_prob, exact.double(), atol=0.2)
    assert float(found.annealed.log_prob.mean()) <= float(exact.mean()) + 0.5


def test_many_dimensions_are_bounded_from_below() -> None:
    with seeded(2):
        policy = GaussianPolicy(*BOX, latent_size=5, hidden=(6,)).double()
    rows = step_rows(two_ways(episodes=4))
    with seeded(3):
        found = held_out(policy, rows, num_particles=(1, 16), annealing=None)
    assert found.curve is not None and found.annealed is None
    assert found.likelihood is found.curve.likelihood and found.why == "bounds"


def test_the_scale_of_the_data_reaches_every_measure() -> None:
    policy, rows = made_policy("mixture"), whole_episodes()
    scale = torch.tensor([0.5], dtype=torch.float64)
    plain, scaled = held_out(policy, rows), held_out(policy, rows, action_scale=scale)
    steps = rows.dimensions
    assert scaled.likelihood.per_row.value == pytest.approx(plain.likelihood.per_row.value - steps * float(scale.log()))


@pytest.mark.parametrize("objective", [VariationalBound(4), ImportanceBound(8)], ids=repr)
def test_a_fitted_linear_cvae_agrees_with_its_closed_form(objective: VariationalBound | ImportanceBound) -> None:
    """Data of one linear-Gaussian policy, fitted by another: bounds and annealing lie at its log pi, known exactly."""
    _, rows = gaussian(4, rows=60, seed=7, action=3)
    policy, _ = gaussian(4, seed=8, action=3)
    begun = float(policy.log_pi(observed(rows), rows.action).detach().mean())
    options = FitOptions(num_epochs=60, batch_size=60, learning_rate=0.05, evaluate_every=60)
    fit(policy, rows, objective=objective, options=options, seed=0)
    exact = policy.log_pi(observed(rows), rows.action).detach()
    assert float(exact.mean()) > begun + 1.0
    annealing = Annealing(num_temperatures=10, num_chains=8)
    with seeded(4):
        found = held_out(policy, rows, num_particles=(1, 16, 256), annealing=annealing, level=0.9999)
    assert found.curve is not None and found.annealed is not None
    point = found.curve.points[-1]
    # what the curve lacks is its bias term, a tenth of a nat at most here, and the noise of its particles
    assert -0.1 < point.bias < 0
    assert (
        point.noise.low <= float(exact.mean()) + point.bias + abs(point.bias)
        and float(exact.mean()) + 2 * point.bias <= point.noise.high
    )
    assert found.annealed.per_row.value == pytest.approx(float(exact.mean()), abs=0.1)


def test_a_discrete_fit_has_its_curve_within_bias_and_noise_of_the_enumerated_value() -> None:
    policy, rows = made_policy("mixture"), whole_episodes(episodes=16)
    fit(policy, rows, objective=MaximumLikelihood(), options=FitOptions(num_epochs=40, learning_rate=0.02), seed=0)
    exact = held_out(policy, rows).likelihood.per_row.value
    with seeded(5):
        curve = iwae_curve(policy, rows.obs, rows.action, rows.episode, num_particles=(16, 256), level=0.9999)
    for point in curve.points:
        assert point.noise.low - abs(point.bias) <= exact + point.bias <= point.noise.high + abs(point.bias)


def test_an_episodes_mixture_prior_is_integrated_too() -> None:
    """One z an episode under three Gaussians: quadrature against the trapezoid rule, exact here."""
    rows = whole_episodes()
    with seeded(0):
        latent = GaussianLatent(1, "mixture", num_components=3)
        policy = EpisodePolicy(*BOX, latent=latent, hidden=(4,), initial_log_std=0.5).double()
    found = held_out(policy, rows).likelihood
    grid = torch.linspace(-12.0, 12.0, 4001, dtype=torch.float64)
    with torch.no_grad():
        z = grid.reshape(-1, 1, 1).expand(-1, rows.size, 1)
        joint = log_joint(policy, rows.obs, rows.action, {"z": z})
    assert found.kind == EXACT
    assert torch.allclose(found.log_prob, torch.logsumexp(joint, 0) + float((grid[1] - grid[0]).log()), atol=1e-4)


def test_the_report_states_the_floor_of_sigma() -> None:
    rows = whole_episodes()
    for floor, told in ((-4, "at least exp(-4) = 0.01832"), (None, "without a floor")):
        with seeded(0):
            policy = EpisodePolicy(*BOX, latent=CodeLatent(3), hidden=(4,), min_log_std=floor).double()
        assert told in held_out(policy, rows).lines()[-1]
    table, plain_rows = tabular()
    assert held_out(table, plain_rows).noise is None and "sigma" not in " ".join(held_out(table, plain_rows).lines())


def test_an_empty_split_is_refused() -> None:
    policy, rows = tabular()
    with pytest.raises(ValueError, match="an empty split"):
        held_out(policy, rows.take(slice(0, 0)))
