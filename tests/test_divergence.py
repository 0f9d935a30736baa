"""Divergences and entropies of latent policies against sums over every action, latent and particle."""

import math

import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import kl_divergence

from latentpg.errors import SiteError
from latentpg.estimators import (
    ConditionalIS,
    Entropy,
    Exact,
    PosteriorIS,
    Prior,
    entropy_surrogate,
    exact_entropy,
    exact_kl,
    joint_kl,
    marginal_table,
)
from latentpg.numerics.divergences import k1, k2, k3
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import act, model_parameters, score_model

OBS_SPACE = spaces.Box(-1.0, 1.0, (2,))
ROWS = 3


def flat_grad(value: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    parts = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


@pytest.fixture
def pair() -> tuple[MixturePolicy, MixturePolicy, Tensor]:
    torch.manual_seed(0)
    make = [MixturePolicy(OBS_SPACE, spaces.Discrete(3), num_components=3, hidden=(4,)).double() for _ in range(2)]
    with torch.no_grad():  # far enough apart for the differences between the estimators to show
        for policy in make:
            for parameter in policy.parameters():
                parameter.mul_(3.0)
    return make[0], make[1], torch.randn(ROWS, 2, dtype=torch.float64)


def table_of(policy: MixturePolicy, obs: Tensor) -> Tensor:
    """Compute log pi [A, B] from networks and softmax alone."""
    log_prior = policy.prior(obs).log_softmax(-1)
    rows = []
    for z in range(3):
        index = torch.full((len(obs),), z)
        rows.append(log_prior[:, z, None] + policy.decoder.network(obs, [index]).log_softmax(-1))
    return torch.stack(rows).logsumexp(0).T


def test_marginal_table_is_the_log_of_the_summed_joint(pair: tuple[MixturePolicy, MixturePolicy, Tensor]) -> None:
    policy, _, obs = pair
    assert torch.allclose(marginal_table(policy, obs), table_of(policy, obs), atol=1e-12)


def test_exact_kl_and_entropy_and_their_gradients(pair: tuple[MixturePolicy, MixturePolicy, Tensor]) -> None:
    policy, reference, obs = pair
    ours, theirs = table_of(policy, obs), table_of(reference, obs)
    kl = (ours.exp() * (ours - theirs)).sum(0)
    entropy = -(ours.exp() * ours).sum(0)
    parameters = model_parameters(policy)
    assert torch.allclose(exact_kl(policy, reference, obs), kl, atol=1e-12)
    assert torch.allclose(exact_entropy(policy, obs), entropy, atol=1e-12)
    for mine, other in ((exact_kl(policy, reference, obs), kl), (exact_entropy(policy, obs), entropy)):
        assert (flat_grad(mine.sum(), parameters) - flat_grad(other.sum(), parameters)).norm() < 1e-10


def test_joint_kl_is_the_kl_of_the_joint_and_bounds_the_marginal(
    pair: tuple[MixturePolicy, MixturePolicy, Tensor],
) -> None:
    policy, reference, obs = pair
    joints = []
    for p in (policy, reference):
        log_prior = p.prior(obs).log_softmax(-1)
        heads = [p.decoder.network(obs, [torch.full((ROWS,), z)]).log_softmax(-1) for z in range(3)]
        joints.append(torch.stack([log_prior[:, z, None] + heads[z] for z in range(3)]))  # [C, B, A]
    expected = (joints[0].exp() * (joints[0] - joints[1])).sum((0, 2))
    bound = joint_kl(policy, reference, obs)
    assert torch.allclose(bound, expected, atol=1e-12)
    assert bool((bound > exact_kl(policy, reference, obs) + 1e-3).all()), "the bound should be strict here"
    parameters = model_parameters(policy)
    assert (flat_grad(bound.sum(), parameters) - flat_grad(expected.sum(), parameters)).norm() < 1e-10


def test_sampled_joint_kl_is_unbiased_in_value_and_gradient(
    pair: tuple[MixturePolicy, MixturePolicy, Tensor],
) -> None:
    policy, reference, obs = pair
    row = obs[:1]
    outcomes = enumerate_draws(lambda index: joint_kl(policy, reference, row[index], num_particles=2))
    expected = joint_kl(policy, reference, row)[0]
    value = outcomes.expectation(outcomes.result)[0]
    parameters = model_parameters(policy)
    assert abs(value - expected) < 1e-10
    assert (flat_grad(value, parameters) - flat_grad(expected, parameters)).norm() < 1e-10


def test_joint_kl_of_gaussian_latents_is_site_by_site() -> None:
    torch.manual_seed(1)
    make = [GaussianPolicy(OBS_SPACE, spaces.Box(-1, 1, (1,)), hidden=(4,)).double() for _ in range(2)]
    obs = torch.randn(ROWS, 2, dtype=torch.float64)
    action, latents = torch.zeros(ROWS, 1, dtype=torch.float64), {"z": torch.zeros(1, ROWS, 2, dtype=torch.float64)}
    ours, theirs = (score_model(p, obs, action, latents).distributions for p in make)
    assert bool((joint_kl(make[0], make[1], obs, num_particles=64) > kl_divergence(ours["z"], theirs["z"])).all())
    assert float(joint_kl(make[0], make[0], obs, num_particles=8).detach().abs().max()) < 1e-12


def test_what_k1_k2_k3_do_as_losses(pair: tuple[MixturePolicy, MixturePolicy, Tensor]) -> None:
    """In expectation over a ~ pi, exactly: the table in the module's docstring, entry by entry."""
    policy, reference, obs = pair
    parameters = model_parameters(policy)
    ours, theirs = table_of(policy, obs), table_of(reference, obs).detach()
    weight = ours.exp().detach()

    def expected_gradient(rows: Tensor) -> Tensor:
        return flat_grad((weight * rows).sum(), parameters)

    log_ratio = ours - theirs
    ratio = (ours - ours.detach()).exp()
    forward = flat_grad((ours.exp() * log_ratio).sum(), parameters)  # gradient of KL(pi || ref)
    reverse = flat_grad((theirs.exp() * (theirs - ours)).sum(), parameters)  # gradient of KL(ref || pi)
    assert expected_gradient(k1(log_ratio)).norm() < 1e-10
    assert (expected_gradient(k2(log_ratio)) - forward).norm() < 1e-10
    assert (expected_gradient(k3(log_ratio)) - reverse).norm() < 1e-10
    assert (expected_gradient(ratio * k1(log_ratio)) - forward).norm() < 1e-10
    assert (expected_gradient(ratio * k3(log_ratio)) - forward).norm() < 1e-10
    assert (expected_gradient(ratio * k2(log_ratio)) - forward).norm() > 1e-2
    kl = exact_kl(policy, reference, obs).detach()
    assert torch.allclose((weight * k1(log_ratio)).sum(0), kl, atol=1e-12)
    assert torch.allclose((weight * k3(log_ratio)).sum(0), kl, atol=1e-12)
    assert bool(((weight * k2(log_ratio)).sum(0) - kl).abs().max() > 1e-3)


def test_entropy_gradient_is_exact_with_exact_estimators(pair: tuple[MixturePolicy, MixturePolicy, Tensor]) -> None:
    policy, _, obs = pair
    bonus, parameters = Entropy(Exact(), Exact()), model_parameters(policy)
    table = marginal_table(policy, obs).exp().detach()
    total = torch.zeros(())
    for index in range(3):
        action = torch.full((ROWS,), index)
        rows = bonus.estimate(policy, obs, action, bonus.propose(policy, obs, action)).log_prob
        total = total + (table[index] * rows).sum()
    exact = exact_entropy(policy, obs).sum()
    assert abs(total - exact) < 1e-10
    assert (flat_grad(total, parameters) - flat_grad(exact, parameters)).norm() < 1e-10


def test_a_constant_baseline_does_not_move_the_entropy_gradient(
    pair: tuple[MixturePolicy, MixturePolicy, Tensor],
) -> None:
    policy, _, obs = pair
    table, parameters = marginal_table(policy, obs), model_parameters(policy)
    weight = table.exp().detach()
    gradients = []
    for baseline in (0.0, 7.0):
        rows = entropy_surrogate(table.flatten(), table.flatten().detach(), baseline=baseline)
        gradients.append(flat_grad((weight.flatten() * rows).sum(), parameters))
    assert (gradients[0] - gradients[1]).norm() < 1e-9


def test_mean_log_prob_has_no_expected_gradient(pair: tuple[MixturePolicy, MixturePolicy, Tensor]) -> None:
    """The popular bonus -log_prob.mean() on recorded actions: the right value, and nothing learned."""
    policy, _, obs = pair
    table, parameters = marginal_table(policy, obs), model_parameters(policy)
    assert flat_grad(-(table.exp().detach() * table).sum(), parameters).norm() < 1e-10
    assert flat_grad(exact_entropy(policy, obs).sum(), parameters).norm() > 1e-2


def entropy_error(policy: MixturePolicy, row: Tensor, *, shared: bool) -> float:
    """Relative error of the expected entropy gradient at K = 2, summed over actions, recorded latents and particles."""
    parameters = model_parameters(policy)
    log_pi = marginal_table(policy, row)[:, 0]
    # both sets are fresh draws of the prior; `shared` uses the gradient's particles for the value too
    estimator = PosteriorIS(2, Prior())
    total = torch.zeros_like(flat_grad(log_pi.sum(), parameters))
    for index in range(3):
        row_action = torch.tensor([index])

        def rows(outcome: Tensor, action: Tensor = row_action) -> Tensor:
            obs, taken = row[outcome], action[outcome]
            particles = estimator.propose(policy, obs, taken)
            slope = estimator.estimate(policy, obs, taken, particles).log_prob
            if shared:
                return entropy_surrogate(slope, slope.detach())
            value = estimator.estimate(policy, obs, taken, estimator.propose(policy, obs, taken)).log_prob
            return entropy_surrogate(slope, value)

        outcomes = enumerate_draws(rows)
        mean = outcomes.expectation(outcomes.result)[0]
        total = total + log_pi[index].exp().detach() * flat_grad(mean, parameters)
    exact = flat_grad(exact_entropy(policy, row).sum(), parameters)
    return float((total - exact).norm() / exact.norm())


def test_shared_particles_add_a_covariance_that_independent_ones_do_not_have(
    pair: tuple[MixturePolicy, MixturePolicy, Tensor],
) -> None:
    """Both are biased at K = 2; what sharing adds is E[cov(value, gradient)], computed here as the difference."""
    policy, _, obs = pair
    independent, shared = (entropy_error(policy, obs[:1], shared=flag) for flag in (False, True))
    assert abs(shared - independent) > 0.01


def test_entropy_through_conditional_is_has_only_the_bias_of_its_value(
    pair: tuple[MixturePolicy, MixturePolicy, Tensor],
) -> None:
    """With an exact value, ConditionalIS brings the exact entropy gradient, over a, z0 and the fresh draw."""
    policy, _, obs = pair
    row, parameters = obs[:1], model_parameters(policy)
    estimator, exact = ConditionalIS(2, Prior()), Exact()

    def rows(outcome: Tensor) -> Tensor:
        many = row[outcome]
        acted = act(policy, many)
        particles = estimator.propose(policy, many, acted.action, acted.latents)
        slope = estimator.estimate(policy, many, acted.action, particles).log_prob
        value = exact.estimate(policy, many, acted.action, exact.propose(policy, many, acted.action)).log_prob
        return entropy_surrogate(slope, value)

    outcomes = enumerate_draws(rows)
    mean = outcomes.expectation(outcomes.result)[0]
    target = exact_entropy(policy, row).sum()
    assert abs(mean - target) < 1e-10
    assert (flat_grad(mean, parameters) - flat_grad(target, parameters)).norm() < 1e-10


def test_what_cannot_be_enumerated_says_so() -> None:
    policy = TwoLevelPolicy(OBS_SPACE, spaces.Box(-1, 1, (1,)), hidden=(4,))
    with pytest.raises(SiteError, match="cannot be enumerated"):
        exact_entropy(policy, torch.zeros(ROWS, 2))
    with pytest.raises(SiteError, match="continuous"):
        joint_kl(policy, policy, torch.zeros(ROWS, 2))


def test_entropy_of_a_uniform_policy_is_the_log_of_its_actions() -> None:
    policy = MixturePolicy(OBS_SPACE, spaces.MultiBinary(3), hidden=(4,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert torch.allclose(exact_entropy(policy, torch.zeros(2, 2)), torch.full((2,), 3 * math.log(2)))
