r"""Biased estimators: the constant of their O(1/K), with what is left of it bounded by theory.

Let A be the mean over K iid particles of :math:`x = \tilde w (f - \mu)` and B that of :math:`\tilde w = p(z|a)/r(z)`,
so that A / B is the error of self-normalised importance sampling, and let :math:`y = \tilde w - 1`, :math:`u = B - 1`.
From the identity :math:`1/B = 1 - u + u^2 - u^3 + u^4/B` and :math:`|A/B| \le F = \max_z |f - \mu|`,

.. math:: \Big|K\,E\frac AB - \Big(-E xy + \frac{E xy^2}{K} - K\,E A u^3\Big)\Big| \le K F\,E u^4 = O(1/K),

and so for the square with :math:`1/B^2 = 1 - 2u + 3u^2 - 4u^3 + (5u^4 + 4u^5)/B^2`. The moments of A and u are
polynomials in those of x and y. So the leading constants :math:`-E_r[\tilde w^2 (f - \mu)]` and :math:`E_r[\tilde w^2
(f - \mu)^2]` are checked at every K within a bound that is derived, not tuned. With x = w_new - w_old, y = w_old - 1
and F = max |w_new / w_old - 1| the same holds for the ratio.

The real ``estimate`` is summed over multisets of particles: a value that occurs n times is one particle whose proposal
density is divided by n, which leaves the estimate as it is but for a constant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentpg.estimators import Particles, PosteriorIS, SplitIS
from latentpg.oracles.enumeration import Multisets, enumerate_draws, multisets
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import take_rows
from tests.examiner.expectations import EXACT, log_proposal, off_by
from tests.examiner.models import Model, models

GRID = {2: (8, 64, 512), 3: (4, 16, 64)}  # K, by the number of latent values
EXAMPLES = 7  # of thirty-two models each: 224
ROWS = 32


@dataclass(frozen=True, eq=False)
class Replicated:
    """What the estimator says of every multiset ``[N]`` of particles, for every model ``[M]``."""

    log_prob: Tensor
    gradient: Tensor
    """``[N, M, P]``"""


def over_multisets(model: Model, policy: TabularLatentPolicy, log_r: Tensor, every: Multisets) -> Replicated:
    """Run the real ``estimate`` on every multiset, each on a row of its own parameters for a gradient of its own."""
    count, rows = len(every.counts), model.rows
    row = torch.arange(rows).repeat(count)
    tables = policy.prior_logits[row], policy.decoder_logits[row], policy.guide_logits[row]
    copies = TabularLatentPolicy(*(table.detach() for table in tables))
    size = log_r.shape[0]
    repeated = every.counts.double().log().T.repeat_interleave(rows, 1)  # [C, N * M]; log 0 leaves a value out
    particles = Particles(
        {"z": torch.arange(size).unsqueeze(1).expand(size, count * rows)},
        log_r[:, row] - repeated + math.log(int(every.counts[0].sum()) / size),
    )
    estimator = PosteriorIS()
    log_prob = estimator.estimate(copies, torch.arange(count * rows), model.action[row], particles).log_prob
    parts = torch.autograd.grad(log_prob.sum(), [copies.prior_logits, copies.decoder_logits])
    flat = torch.cat([part.flatten(1) for part in parts], 1)
    return Replicated(log_prob.detach().reshape(count, rows), flat.reshape(count, rows, -1))


def mean(log_r: Tensor, values: Tensor) -> Tensor:
    """E_r over the C latent values, ``[C, M, ...]``."""
    return (log_r.exp().reshape(*log_r.shape, *[1] * (values.ndim - 2)) * values).sum(0)


@dataclass(frozen=True, eq=False)
class Expansion:
    """K times a moment of A / B: its expansion, and a bound of what is left."""

    constant: Tensor
    value: Tensor
    bound: Tensor


def expand_mean(e: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, most: Tensor, k: int) -> Expansion:
    """Expand K E[A / B]; ``e`` takes means under r."""
    constant = -e(x * y)
    cube = (e(x * y**3) + 3 * (k - 1) * e(x * y) * e(y**2)) / k**2
    fourth = (e(y**4) + 3 * (k - 1) * e(y**2) ** 2) / k**2
    return Expansion(constant, constant + e(x * y**2) / k - cube, most * fourth)


def expand_square(e: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, most: Tensor, k: int) -> Expansion:
    """Expand K E[(A / B)^2]."""
    constant = e(x**2)
    second = (e(x**2 * y**2) + (k - 1) * (constant * e(y**2) + 2 * e(x * y) ** 2)) / k**2
    mixed = constant * e(y**3) + 6 * e(x * y) * e(x * y**2) + 3 * e(y**2) * e(x**2 * y)
    third = (e(x**2 * y**3) + (k - 1) * mixed) / k**3
    fourth = (e(y**4) + 3 * (k - 1) * e(y**2) ** 2) / k**2
    fifth = (e(y**5) + 10 * (k - 1) * e(y**2) * e(y**3)) / k**3
    return Expansion(
        constant,
        constant - 2 * e(x**2 * y) / k + 3 * second - 4 * third,
        most**2 * (5 * fourth + 4 * fifth),
    )


def holds(measured: Tensor, expansion: Expansion, num_particles: int) -> bool:
    """Compare within the bound, and within the rounding of a difference of numbers of order one, times K."""
    # sums of order bound's terms round too: their relative error is that of float64
    rounding = num_particles * EXACT + EXACT * expansion.bound
    return bool(((measured - expansion.value).abs() <= expansion.bound + rounding).all())


@dataclass(frozen=True, eq=False)
class Problem:
    """Models, a proposal, and per latent value: the normalised weight ``[C, M]`` and the error f - mu ``[C, M, P]``."""

    model: Model
    log_r: Tensor
    weight: Tensor
    score_error: Tensor
    score_mean: Tensor

    def e(self, values: Tensor) -> Tensor:
        return mean(self.log_r, values)


def pose(model: Model, proposal: str) -> Problem:
    log_r = log_proposal(model, proposal)
    weight = (model.log_posterior() - log_r).exp().detach()
    assert isinstance(model.policy, TabularLatentPolicy)
    score = over_multisets(model, model.policy, log_r, multisets(model.size, 1)).gradient.flip(0)  # one particle each
    score_mean = (model.log_posterior().exp().detach().unsqueeze(-1) * score).sum(0)
    return Problem(model, log_r, weight, score - score_mean, score_mean)


@pytest.mark.parametrize("proposal", ["prior", "guide", "mixture"])
@pytest.mark.parametrize("size", GRID)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_gradient_bias_and_variance(size: int, proposal: str, data: st.DataObject) -> None:
    model = data.draw(models("step", rows=ROWS, sizes=st.just(size)))
    problem = pose(model, proposal)
    x, y = problem.weight.unsqueeze(-1) * problem.score_error, (problem.weight - 1).unsqueeze(-1)
    most = problem.score_error.abs().amax(0)
    assert off_by(problem.e(x), torch.zeros(())) < EXACT
    for k in GRID[size]:
        every = multisets(size, k)
        assert isinstance(model.policy, TabularLatentPolicy)
        error = over_multisets(model, model.policy, problem.log_r, every).gradient - problem.score_mean
        chance = every.log_prob(problem.log_r).exp().unsqueeze(-1)
        bias, square = (chance * error).sum(0), (chance * error.square()).sum(0)
        assert holds(k * bias, expand_mean(problem.e, x, y, most, k), k)
        assert holds(k * square, expand_square(problem.e, x, y, most, k), k)


def expand_log(e: Callable[[Tensor], Tensor], y: Tensor, least: Tensor, k: int) -> Expansion:
    r"""Expand K E[log B]: log(1 + u) = u - u^2/2 + u^3/3 less at most u^4 / (4 min(1, B)^4), and B >= min w."""
    constant = -e(y**2) / 2
    fourth = (e(y**4) + 3 * (k - 1) * e(y**2) ** 2) / k**2
    return Expansion(constant, constant + e(y**3) / (3 * k), fourth / (4 * least.clamp(max=1.0) ** 4))


@pytest.mark.parametrize("proposal", ["prior", "guide", "mixture"])
@pytest.mark.parametrize("size", GRID)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_value_bias(size: int, proposal: str, data: st.DataObject) -> None:
    """K (E log mean w - log pi) tends to -Var_r(w) / 2."""
    model = data.draw(models("step", rows=ROWS, sizes=st.just(size)))
    problem = pose(model, proposal)
    assert isinstance(model.policy, TabularLatentPolicy)
    for k in GRID[size]:
        every = multisets(size, k)
        error = over_multisets(model, model.policy, problem.log_r, every).log_prob - model.log_pi().detach()
        bias = (every.log_prob(problem.log_r).exp() * error).sum(0)
        assert holds(k * bias, expand_log(problem.e, problem.weight - 1, problem.weight.amin(0), k), k)


@pytest.mark.parametrize("size", GRID)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_ratio_bias(size: int, data: st.DataObject) -> None:
    """With K fresh particles E[ratio] is off by a relative E_r[w_old^2 - w_old w_new] / K."""
    model = data.draw(models("step", rows=ROWS, sizes=st.just(size)))
    problem = pose(model, "guide")
    new = (model.moved_log_joint().log_softmax(0) - problem.log_r).exp().detach()
    x, y = new - problem.weight, problem.weight - 1
    most = (new / problem.weight - 1).abs().amax(0)
    assert off_by(-mean(problem.log_r, x * y), problem.e(problem.weight**2 - problem.weight * new)) < EXACT * float(
        1 + (problem.weight * new).max()
    )
    for k in GRID[size]:
        every = multisets(size, k)
        assert isinstance(model.policy, TabularLatentPolicy) and isinstance(model.moved, TabularLatentPolicy)
        old = over_multisets(model, model.policy, problem.log_r, every).log_prob
        log_ratio = over_multisets(model, model.moved, problem.log_r, every).log_prob - old
        relative = (log_ratio - model.ratio().log().detach()).exp()
        bias = (every.log_prob(problem.log_r).exp() * (relative - 1)).sum(0)
        scale = 1 + most  # the ratio's own size, to which rounding is relative
        expansion = expand_mean(problem.e, x, y, most, k)
        scaled = Expansion(expansion.constant, expansion.value / scale, expansion.bound / scale)
        assert holds(k * bias / scale, scaled, k)


def test_the_bounds_are_narrow_enough_to_refuse_wrong_constants() -> None:
    """At K = 512 a constant with w for w^2, without the mean taken off, or a tenth too large is refused."""
    policy = TabularLatentPolicy(
        torch.tensor([[0.5, -0.5]]), torch.tensor([[[0.0, 1.0], [1.0, -0.5]]]), torch.tensor([[[0.2, 0.0], [0.0, 0.3]]])
    )
    model, k = Model(policy, policy, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)), 512
    problem = pose(model, "prior")
    weight = problem.weight.unsqueeze(-1)
    x, y, most = weight * problem.score_error, weight - 1, problem.score_error.abs().amax(0)
    every = multisets(2, k)
    error = over_multisets(model, policy, problem.log_r, every).gradient - problem.score_mean
    chance = every.log_prob(problem.log_r).exp().unsqueeze(-1)
    bias, square = k * (chance * error).sum(0), k * (chance * error.square()).sum(0)
    of_bias, of_square = expand_mean(problem.e, x, y, most, k), expand_square(problem.e, x, y, most, k)

    def shifted(expansion: Expansion, constant: Tensor) -> Expansion:
        return Expansion(constant, expansion.value - expansion.constant + constant, expansion.bound)

    assert holds(bias, of_bias, k) and holds(square, of_square, k)
    for wrong in (-of_bias.constant, 1.1 * of_bias.constant, -problem.e(weight**2 * (x / weight + problem.score_mean))):
        assert not holds(bias, shifted(of_bias, wrong), k)
    for wrong in (1.1 * of_square.constant, problem.e(weight * problem.score_error**2)):
        assert not holds(square, shifted(of_square, wrong), k)
    of_value = expand_log(problem.e, problem.weight - 1, problem.weight.amin(0), k)
    off = over_multisets(model, policy, problem.log_r, every).log_prob - model.log_pi().detach()
    value = k * (chance[..., 0] * off).sum(0)
    assert holds(value, of_value, k)
    for wrong in (-of_value.constant, 2 * of_value.constant, 1.1 * of_value.constant):
        assert not holds(value, shifted(of_value, wrong), k)


def test_multisets_of_particles_are_their_tuples() -> None:
    """Dividing a density by n is drawing its particle n times: K = 3 by multisets is K = 3 by the real draws."""
    torch.manual_seed(3)
    policy = TabularLatentPolicy.random(num_states=4, num_latents=3, num_actions=2)
    model = Model(policy, policy, torch.arange(4), torch.tensor([0, 1, 0, 1]))
    log_r = log_proposal(model, "guide")
    every = multisets(3, 3)
    by_multisets = over_multisets(model, policy, log_r, every)
    chance = every.log_prob(log_r).exp()

    def program(row: Tensor) -> Tensor:
        estimator, obs = PosteriorIS(3), take_rows(model.obs, row)
        return estimator.estimate(
            policy, obs, model.action[row], estimator.propose(policy, obs, model.action[row])
        ).log_prob

    real = enumerate_draws(program, num_rows=4)
    value = real.expectation(real.result)
    gradient = torch.autograd.grad(value.sum(), [policy.prior_logits, policy.decoder_logits])
    flat = torch.cat([part.flatten(1) for part in gradient], 1)
    assert off_by((chance * by_multisets.log_prob).sum(0), value) < EXACT
    assert off_by((chance.unsqueeze(-1) * by_multisets.gradient).sum(0), flat) < EXACT


@settings(max_examples=EXAMPLES)
@given(model=models("step", rows=8, sizes=st.integers(2, 3)))
def test_split_sets_inflate_the_ratio_where_nothing_has_changed(model: Model) -> None:
    r"""The ratio of a value to an independent one has mean E[B] E[1/B] = E[1/B] > 1, though pi_new = pi_old."""

    def program(row: Tensor) -> Tensor:
        obs, action = take_rows(model.obs, row), model.action[row]
        estimator = SplitIS(num_particles=1, num_value_particles=2)
        new, old = (
            estimator.estimate(model.policy, obs, action, estimator.propose(model.policy, obs, action)).log_prob
            for _ in range(2)
        )
        return (new - old).exp().detach()

    real = enumerate_draws(program, num_rows=model.rows)
    problem = pose(model, "guide")
    pairs = (problem.weight.unsqueeze(0) + problem.weight.unsqueeze(1)) / 2
    chance = (problem.log_r.unsqueeze(0) + problem.log_r.unsqueeze(1)).exp()
    inflation = (chance / pairs).sum((0, 1))
    assert off_by(real.expectation(real.result) / inflation, torch.ones(())) < EXACT
    spread = problem.weight.amax(0) - problem.weight.amin(0)
    assert bool((inflation > 1 - EXACT).all())
    assert bool((inflation[spread > 1e-3] > 1).all())


@settings(max_examples=EXAMPLES)
@given(model=models("step", rows=ROWS, sizes=st.just(2)))
def test_split_sets_inflate_the_ratio_by_the_weights_variance(model: Model) -> None:
    r"""K (E[1/B] - 1) tends to Var w: :math:`1/B = 1 - u + u^2 - u^3 + u^4/B`, and B is at least min w."""
    problem = pose(model, "guide")
    y, least = problem.weight - 1, problem.weight.amin(0)
    for k in GRID[2]:
        every = multisets(2, k)
        b = (every.counts.double() @ problem.weight) / k
        chance = every.log_prob(problem.log_r).exp()
        fourth = (problem.e(y**4) + 3 * (k - 1) * problem.e(y**2) ** 2) / k**2
        constant = problem.e(y**2)
        expansion = Expansion(constant, constant - problem.e(y**3) / k, fourth / least)
        assert holds(k * (chance * (1 / b - 1)).sum(0), expansion, k)
