r"""The sampling path: what torch really draws, against the exact answer, with bounds that hold.

Everything else in this folder answers the library's draws itself. Here they are torch's own. Replicates lie in rows: R
rows with equal tables of their own, so that one proposal is R independent ones and one backward pass gives R
gradients. Their mean is compared coordinate by coordinate by the empirical-Bernstein bound (Maurer and Pontil,
"Empirical Bernstein bounds and sample variance penalization", 2009): with probability at least 1 - delta, for n values
in a range of length M and their sample variance V,

.. math:: |\bar X - EX| \le \sqrt{\frac{2 V \ln(4/\delta)}{n}} + \frac{7 M \ln(4/\delta)}{3 (n - 1)} .

The range is the *true* one, by enumeration (a sample's own would leave out the rare heavy weight that matters), delta
is 1e-9 an assertion, divided among the coordinates, and n is the smallest at which the same bound with the true
variance is half of the bias that the test states it can see. Unbounded ones get a median of means with the variance by
quadrature.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentpg.estimators import ConditionalIS, Estimator, Guide, Mixture, Reparameterized
from latentpg.numerics.rng import seeded
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import act
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, Claim, EstimatorCase, GuideCase
from tests.examiner.expectations import EXACT
from tests.examiner.test_planted_bugs import RetainedDropped

ALPHA = 1e-9
"""Chance that an assertion fails though nothing is wrong."""

ADVANTAGE = torch.tensor([1.0, -0.5], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """One state with tables of its own, an old policy and a new one, that can be copied to any number of rows."""

    old: TabularLatentPolicy
    new: TabularLatentPolicy


def problem() -> Problem:
    with seeded(4):
        old, new = (TabularLatentPolicy.random(num_states=1, num_latents=3, num_actions=2) for _ in range(2))
    return Problem(old, new)


def copies(policy: TabularLatentPolicy, rows: int) -> TabularLatentPolicy:
    tables = policy.prior_logits, policy.decoder_logits, policy.guide_logits
    return TabularLatentPolicy(*(table.detach().expand(rows, *table.shape[1:]) for table in tables))


def acted_gradient(data: Problem, estimator: Estimator, rows: int) -> Tensor:
    """Act, propose, estimate: the policy gradient A(a) grad log pi of each of R independent rows, ``[R, P]``."""
    policy, obs = copies(data.old, rows), torch.arange(rows)
    acted = act(policy, obs)
    particles = estimator.propose(policy, obs, acted.action, acted.latents)
    value = ADVANTAGE[acted.action] * estimator.estimate(policy, obs, acted.action, particles).log_prob
    parts = torch.autograd.grad(value.sum(), [policy.prior_logits, policy.decoder_logits])
    return torch.cat([part.flatten(1) for part in parts], 1)


def acted_ratio(data: Problem, estimator: Estimator, rows: int) -> Tensor:
    """Act, propose, estimate twice: the ratio times the advantage, ``[R, 1]``, whose mean is J(new)."""
    old, new, obs = copies(data.old, rows), copies(data.new, rows), torch.arange(rows)
    acted = act(old, obs)
    particles = estimator.propose(old, obs, acted.action, acted.latents)
    log_ratio = estimator.estimate(new, obs, acted.action, particles).log_prob
    log_ratio = log_ratio - estimator.estimate(old, obs, acted.action, particles).log_prob
    return (ADVANTAGE[acted.action] * log_ratio.exp()).detach().unsqueeze(1)


def guide_gradients(data: Problem, case: GuideCase, rows: int) -> Tensor:
    """Act, then the guide's own gradient, ``[R, P]``."""
    policy, obs = copies(data.old, rows), torch.arange(rows)
    acted = act(policy, obs)
    particles = None
    if case.particles is not None:
        particles = case.particles(2).propose(policy, obs, acted.action, acted.latents)
    loss = case.make(2).loss(policy, obs, acted.action, particles=particles, latents=acted.latents)
    return torch.autograd.grad(loss.sum(), policy.guide_logits)[0].flatten(1)


@dataclass(frozen=True, eq=False)
class Truth:
    """Mean, variance and range of each coordinate, by enumeration."""

    mean: Tensor
    variance: Tensor
    extent: Tensor


def truth(sample: object) -> Truth:
    every = enumerate_draws(lambda row: sample(len(row)), max_outcomes=200_000)  # type: ignore[operator]
    values = every.result
    mean = every.expectation(values)[0]
    possible = values[every.log_prob > -torch.inf]
    variance = every.expectation((values - mean) ** 2)[0]
    return Truth(mean, variance, possible.amax(0) - possible.amin(0))


def width(variance: Tensor, extent: Tensor, size: int) -> Tensor:
    """Half the interval in which the mean lies, each coordinate with its share of ``ALPHA``."""
    log_term = math.log(4 * len(extent) / ALPHA)
    return (2 * variance * log_term / size).sqrt() + 7 * extent * log_term / (3 * (size - 1))


def sample_size(exact: Truth, detectable: float) -> int:
    """Find the size at which a bias of this share of each coordinate's range is seen."""
    size = 64
    while bool((2 * width(exact.variance, exact.extent, size) > detectable * exact.extent + EXACT).any()):
        size *= 2
    return size


def agrees(sample: object, expected: Tensor, exact: Truth, *, detectable: float, seed: int) -> bool:
    size = sample_size(exact, detectable)
    with seeded(seed):
        values: Tensor = sample(size)  # type: ignore[operator]
    allowed = width(values.var(0), exact.extent, size)
    return bool(((values.mean(0) - expected).abs() <= allowed + EXACT).all())


def true_gradient(data: Problem) -> Tensor:
    objective = (data.old.log_pi().exp() * ADVANTAGE).sum()
    parts = torch.autograd.grad(objective, [data.old.prior_logits, data.old.decoder_logits])
    return torch.cat([part.flatten() for part in parts])


def true_objective(data: Problem) -> Tensor:
    return (data.new.log_pi().exp() * ADVANTAGE).sum().detach().unsqueeze(0)


@pytest.mark.parametrize("proposal", [Guide(), Mixture(0.25)], ids=repr)
def test_acting_and_conditional_importance_sampling_by_real_draws(proposal: Guide | Mixture) -> None:
    """It sees a bias of 5 % of a coordinate's range."""
    data, estimator = problem(), ConditionalIS(2, proposal)
    gradient = truth(lambda rows: acted_gradient(data, estimator, rows))
    assert torch.allclose(gradient.mean, true_gradient(data), atol=EXACT)
    assert agrees(
        lambda rows: acted_gradient(data, estimator, rows), true_gradient(data), gradient, detectable=0.05, seed=0
    )
    ratio = truth(lambda rows: acted_ratio(data, estimator, rows))
    assert torch.allclose(ratio.mean, true_objective(data), atol=EXACT)
    assert agrees(lambda rows: acted_ratio(data, estimator, rows), true_objective(data), ratio, detectable=0.05, seed=1)


def test_a_dropped_particle_is_seen_by_real_draws_too() -> None:
    """Its bias in some coordinate is more than 1 % of the range, which is what the test is made to see."""
    data, faulty = problem(), RetainedDropped()
    exact = truth(lambda rows: acted_gradient(data, faulty, rows))
    assert bool(((exact.mean - true_gradient(data)).abs() > 0.01 * exact.extent).any())
    assert not agrees(
        lambda rows: acted_gradient(data, faulty, rows), true_gradient(data), exact, detectable=0.01, seed=2
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in ESTIMATOR_CASES if "step" in case.kinds and not case.fixed_size], ids=lambda case: case.id
)
def test_every_estimator_by_real_draws(case: EstimatorCase) -> None:
    """Against its own enumerated mean, which is the truth where it claims to be exact; a bias of 0.5 % is seen."""
    data, estimator = problem(), case.make(2)
    exact = truth(lambda rows: acted_gradient(data, estimator, rows))
    if Claim.GRADIENT in case.claims:
        assert torch.allclose(exact.mean, true_gradient(data), atol=EXACT)
    assert agrees(lambda rows: acted_gradient(data, estimator, rows), exact.mean, exact, detectable=0.005, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in GUIDE_CASES if "step" in case.kinds], ids=lambda case: case.id)
def test_every_guide_objective_by_real_draws(case: GuideCase) -> None:
    """Against its own enumerated mean; a bias of 0.5 % is seen."""
    data = problem()
    exact = truth(lambda rows: guide_gradients(data, case, rows))
    assert agrees(lambda rows: guide_gradients(data, case, rows), exact.mean, exact, detectable=0.005, seed=4)


def test_the_ratio_of_retained_noise_by_real_draws() -> None:
    r"""Unbounded: the median of k means of n / k values is within :math:`2\sigma\sqrt{k/n}` of the mean.

    Each mean is further off with a chance of at most a quarter, by Chebyshev; more than half of them are with a chance
    of :math:`e^{-k/8}`, by Hoeffding. The standard deviation is by Gauss-Hermite nodes; n is such that a bias of a
    tenth of it is seen.
    """
    with seeded(11):
        old, new = (LinearGaussianPolicy.random(num_states=1, latent_size=1, action_size=1) for _ in range(2))
    with torch.no_grad():  # near enough for the ratio to have a moderate variance
        for table, moved in zip(old.parameters(), new.parameters(), strict=True):
            moved.copy_(table + 0.2 * moved)
    estimator = Reparameterized(2, retain=True)

    def sample(rows: int) -> Tensor:
        obs = torch.zeros(rows, dtype=torch.int64)
        acted = act(old, obs)
        particles = estimator.propose(old, obs, acted.action, acted.latents)
        log_ratio = estimator.estimate(new, obs, acted.action, particles).log_prob
        return (log_ratio - estimator.estimate(old, obs, acted.action, particles).log_prob).detach().exp()

    def moments(num_nodes: int) -> tuple[float, float]:
        every = enumerate_draws(lambda row: sample(len(row)), num_nodes=num_nodes)
        mean = float(every.expectation(every.result))
        return mean, float(every.expectation((every.result - mean) ** 2))

    (mean, variance), finer = moments(16), moments(32)
    assert mean == pytest.approx(1, abs=1e-3) and variance == pytest.approx(finer[1], rel=0.05)
    deviation = math.sqrt(1.05 * finer[1])
    groups = math.ceil(8 * math.log(1 / ALPHA))
    size = math.ceil((2 * 2 / 0.1) ** 2) * groups
    with seeded(5):
        means = sample(size).reshape(groups, -1).mean(1)
    # a ratio integrates to one over the actions of the old policy
    assert abs(float(means.median()) - 1) <= 2 * deviation * math.sqrt(groups / size)
