"""Held-out likelihood: units, exact sums, quadrature, and the curve of bounds with its bias term."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from latentpg.errors import OptionError, QuadratureError, ShapeError, SiteError, SpaceError
from latentpg.estimators import Prior
from latentpg.evaluation import likelihood as module
from latentpg.evaluation.likelihood import exact_likelihood, in_blocks, iwae_curve, quadrature_likelihood
from latentpg.evaluation.report import EXACT, LOWER_BOUND, action_scale_of, report_likelihood
from latentpg.numerics.rng import seeded
from latentpg.numerics.weights import log_mean_exp
from latentpg.oracles.enumeration import tuples
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import MixturePolicy, encode_actions
from latentpg.programs import Observations, Span, act

ROWS = 24
CLUSTER = torch.arange(ROWS) // 4


def tabular(scale: float = 1.0) -> tuple[TabularLatentPolicy, Tensor, Tensor]:
    with seeded(0):
        policy = TabularLatentPolicy.random(num_states=4, num_latents=3, num_actions=3, scale=scale)
        obs = torch.arange(ROWS) % 4
        return policy, obs, act(policy, obs).action


def gaussian(latent: int = 2) -> tuple[LinearGaussianPolicy, Tensor, Tensor]:
    with seeded(1):
        policy = LinearGaussianPolicy.random(num_states=4, latent_size=latent, action_size=2)
        obs = torch.arange(ROWS) % 4
        return policy, obs, act(policy, obs).action


def test_enumeration_is_the_table_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, obs, action = tabular()
    expected = policy.log_pi()[obs, action].detach()
    found = exact_likelihood(policy, obs, action, CLUSTER)
    monkeypatch.setattr(module, "BLOCK", 7)  # two rows of three latents at a time
    assert torch.allclose(found.log_prob, expected, atol=1e-12)
    assert torch.equal(exact_likelihood(policy, obs, action, CLUSTER).log_prob, found.log_prob)
    assert (found.kind, found.method) == (EXACT, "enumerated")
    assert found.per_row.value == pytest.approx(float(expected.mean()))
    assert "exact (enumerated), 24 rows of 6 episodes" in found.lines()[0]


def test_long_rows_are_taken_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 40 steps: of rows of 6 steps with 3 values each 2 at a time, of bare steps 13, and one at the least."""
    sizes: list[int] = []

    def run(obs: Observations, action: Tensor) -> Tensor:
        sizes.append(len(action))
        return action.flatten(1).sum(1)

    monkeypatch.setattr(module, "PIECE", 40)
    span = Span(torch.zeros(5, 6, 2), torch.ones(5, 6, dtype=torch.bool))
    action = torch.arange(30.0).reshape(5, 6, 1)
    found = in_blocks(run, span, action, 3)
    assert sizes == [2, 2, 1] and torch.equal(found, action.flatten(1).sum(1))
    sizes.clear()
    in_blocks(run, torch.zeros(20, 2), torch.zeros(20, 1), 3)
    assert sizes == [13, 7]
    sizes.clear()
    in_blocks(run, span, action, 100)
    assert sizes == [1] * 5


def test_quadrature_is_the_closed_form() -> None:
    policy, obs, action = gaussian()
    with torch.no_grad():  # a guide as wide as the prior and centred on the posterior
        posterior = policy.posterior(torch.arange(4), torch.zeros(4, 2, dtype=torch.float64))
        scale = (-2 * policy.log_noise).exp()[:, None, None]
        gain = posterior.covariance_matrix @ policy.weight.transpose(-1, -2) * scale
        policy.guide_weight.copy_(gain)
        policy.guide_bias.copy_(posterior.mean)
        policy.guide_log_scale.copy_(0.5 * posterior.variance.log() + 0.3)
    found = quadrature_likelihood(policy, obs, action, CLUSTER, num_nodes=24)
    assert torch.allclose(found.log_prob, policy.log_pi(obs, action).detach(), atol=1e-5)
    assert found.kind == EXACT and "settled to 1e-05 nats" in found.method


def test_quadrature_that_does_not_settle_is_refused() -> None:
    policy, obs, action = gaussian()
    with torch.no_grad():
        policy.guide_log_scale.fill_(-3.0)
    with pytest.raises(QuadratureError, match="do not settle"):
        quadrature_likelihood(policy, obs, action, CLUSTER, num_nodes=4)


def test_the_jacobian_is_that_of_the_spaces_scale() -> None:
    """A density of a = h a' in the data's units: the mixture's own at a', less log h, integrates to one over a."""
    space = spaces.Box(-0.02, 0.06, (1,))
    with seeded(2):
        policy = MixturePolicy(spaces.Box(-1, 1, (1,)), space, num_components=2, hidden=(4,)).double()
    data = torch.linspace(-1.0, 1.0, 4001, dtype=torch.float64)
    policy_action = torch.as_tensor((data.numpy() - 0.02) / 0.04).unsqueeze(-1)
    assert float(encode_actions(space, np.full((1, 1), 0.06, np.float32))) == pytest.approx(1.0)
    obs = torch.zeros(4001, 1, dtype=torch.float64)
    scale = action_scale_of(space)
    assert scale is not None and float(scale) == pytest.approx(0.04)
    found = exact_likelihood(policy, obs, policy_action, torch.arange(4001), action_scale=scale)
    assert float(torch.trapezoid(found.log_prob.exp(), data)) == pytest.approx(1.0, abs=1e-5)


def test_a_span_counts_its_executed_steps() -> None:
    """Two rows of 3 and 1 steps, 2 entries each: the Jacobian once a step, 8 dimensions in all."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    obs = Span(torch.zeros(2, 3, 1), mask)
    scale = torch.tensor([0.5, 0.1])
    found = report_likelihood(
        torch.tensor([-1.0, -2.0]),
        obs,
        torch.zeros(2, 3, 2),
        torch.arange(2),
        kind=LOWER_BOUND,
        method="told",
        action_scale=scale,
    )
    volume = math.log(0.5) + math.log(0.1)
    assert found.log_prob.tolist() == pytest.approx([-1 - 3 * volume, -2 - volume])
    assert found.dimensions.tolist() == [6, 2]
    assert found.per_dimension.value == pytest.approx((-3 - 4 * volume) / 8)
    assert ">=" in found.lines()[1] and "lower bound (told)" in found.lines()[0]


def exact_bound(policy: TabularLatentPolicy, obs: Tensor, action: Tensor, size: int) -> Tensor:
    """Sum E log mean w over every tuple of the prior's draws."""
    prior = policy.log_prior()[obs].T.detach()
    weight = policy.log_decoder()[obs, :, action].T.detach()
    every = tuples([prior] * size)
    return (every.log_prob.exp() * log_mean_exp(weight[every.index])).sum(0)


def moments(policy: TabularLatentPolicy, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Second and third central moments of w / pi under the prior, ``[B]`` each."""
    prior = policy.log_prior()[obs].detach().exp()
    excess = (policy.log_decoder()[obs, :, action] - policy.log_pi()[obs, action].unsqueeze(-1)).detach().exp() - 1
    return (prior * excess**2).sum(-1), (prior * excess**3).sum(-1)


def test_the_bias_term_is_the_first_of_the_expansion() -> None:
    """What L_K + Var/2K still lacks is (4 mu_3 - 9 Var^2) / 12 K^2 and less beyond: 20 % of it at K = 7 and here."""
    policy, obs, action = tabular(0.4)
    variance, third = moments(policy, obs, action)
    size, truth = 7, policy.log_pi()[obs, action].detach()
    rest = exact_bound(policy, obs, action, size) + variance / (2 * size) - truth
    second = (4 * third - 9 * variance**2) / (12 * size**2)
    assert float((rest - second).abs().mean()) < 0.2 * float(second.abs().mean())
    assert float(rest.abs().max()) < 0.1 * float((variance / (2 * size)).max())


def test_the_curve_lies_within_its_bias_and_its_noise() -> None:
    """On discrete z: the enumerated value is the bound less its bias term, within the noise and the next term."""
    policy, obs, action = tabular()
    truth = exact_likelihood(policy, obs, action, CLUSTER).per_row.value
    variance, third = moments(policy, obs, action)
    with seeded(3):
        curve = iwae_curve(
            policy, obs, action, CLUSTER, num_particles=(8, 32, 128, 512), proposal=Prior(), level=0.9999
        )
    for point in curve.points:
        exact_bias = -float(variance.mean()) / (2 * point.num_particles)
        assert point.bias == pytest.approx(exact_bias, rel=0.1)  # 2,048 weights a row, 24 rows
        second = float((4 * third - 9 * variance**2).mean()) / (12 * point.num_particles**2)
        slack = 2 * abs(second) + abs(point.bias - exact_bias)
        assert point.noise.low - slack <= truth + point.bias <= point.noise.high + slack
    assert curve.points[0].bound.value < truth - 0.02  # so that the bias is seen
    assert curve.likelihood.kind == LOWER_BOUND
    assert curve.lines()[-1].startswith("  K = 512")


def test_the_noise_is_that_of_the_particles() -> None:
    """The bound of the same rows, found 60 times: its spread is what one curve says it is, within a quarter."""
    policy, obs, action = tabular()
    with seeded(4):
        curves = [
            iwae_curve(policy, obs, action, CLUSTER, num_particles=(2, 8), proposal=Prior()).points for _ in range(60)
        ]
    for column in range(2):
        values = torch.tensor([points[column].noise.value for points in curves], dtype=torch.float64)
        reach = torch.tensor([points[column].noise.high - points[column].noise.value for points in curves])
        # the standard deviation of 60 values is known to 1 / sqrt(118) = 9 %
        assert 1.73 * float(values.std()) < float(reach.mean()) < 2.5 * float(values.std())


def test_the_curve_agrees_with_the_closed_form() -> None:
    """A linear-Gaussian latent, where log pi is known: K = 2,048 prior draws leave less than .01 nats."""
    policy, obs, action = gaussian(1)
    truth = float(policy.log_pi(obs, action).detach().mean())
    with seeded(5):
        curve = iwae_curve(policy, obs, action, CLUSTER, num_particles=(2048,), proposal=Prior(), level=0.9999)
    point = curve.points[0]
    assert -0.01 < point.bias < 0
    assert point.noise.low <= truth + 0.01 and truth - 0.01 <= point.noise.high
    assert point.noise.high - point.noise.low < 0.1


def scaled_by(scale: Tensor) -> object:
    return report_likelihood(torch.zeros(ROWS), *gaussian()[1:], CLUSTER, kind=EXACT, method="", action_scale=scale)


@pytest.mark.production
@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: exact_likelihood(*gaussian(), CLUSTER), SiteError, "is continuous"),
        (lambda: exact_likelihood(*tabular(), CLUSTER[:3]), ShapeError, "one integer a row"),
        (lambda: exact_likelihood(*tabular(), CLUSTER, action_scale=torch.ones(1)), OptionError, "has no unit"),
        (lambda: exact_likelihood(tabular()[0], tabular()[1], tabular()[2][:5], CLUSTER), ShapeError, "`action`"),
        (lambda: iwae_curve(*tabular(), CLUSTER, num_particles=(3, 8)), OptionError, "divide the largest"),
        (lambda: iwae_curve(*tabular(), CLUSTER, num_particles=()), OptionError, "divide the largest"),
        (lambda: iwae_curve(*tabular(), CLUSTER, num_replicates=1), OptionError, "`num_replicates`"),
        (lambda: action_scale_of(spaces.Text(3)), SpaceError, "no such action space"),
        (lambda: scaled_by(torch.ones(3)), ShapeError, "`action_scale`"),
        (lambda: scaled_by(-torch.ones(2)), OptionError, "positive numbers"),
        (
            lambda: report_likelihood(torch.zeros(2), *tabular()[1:], CLUSTER, kind=EXACT, method=""),
            ShapeError,
            "`log_prob`",
        ),
        (
            lambda: report_likelihood(torch.zeros(ROWS), *tabular()[1:], CLUSTER, kind="upper", method=""),
            OptionError,
            "`kind`",
        ),
    ],
)
def test_what_has_no_likelihood_is_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def test_an_empty_split_is_refused() -> None:
    policy, obs, action = tabular()
    with pytest.raises(ShapeError, match="an empty split"):
        iwae_curve(policy, obs[:0], action[:0], CLUSTER[:0])


def test_discrete_actions_have_no_scale() -> None:
    assert action_scale_of(spaces.Discrete(3)) is None
