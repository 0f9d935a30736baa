"""Penalties to a reference: their module's table, by exact sums over actions, and over all episodes of small tasks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.divergences import k1, k2, k3
from latentpg.numerics.penalties import KLEstimator, penalty, ratio_penalty, reward_penalty
from latentpg.numerics.returns import discounted_reward_to_go
from latentpg.numerics.surrogates import reinforce
from tests.numerics.episodes import EXACT, SEEDS, Task, apart, double, off_by, random_task, short_or_long

ESTIMATORS: dict[str, KLEstimator] = {"k1": k1, "k2": k2, "k3": k3}
BETA = 0.25

tables: st.SearchStrategy[Tensor] = hnp.arrays(float, 4, elements=st.floats(-3, 3, width=16)).map(torch.from_numpy)
estimators = st.sampled_from(sorted(ESTIMATORS))


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


class State:
    """One state with a policy, the old one and a reference, and the gradients the penalties may have."""

    def __init__(self, logits: Tensor, old: Tensor, reference: Tensor) -> None:
        self.logits = logits.clone().requires_grad_()
        self.log_pi, self.log_old = self.logits.log_softmax(-1), old.log_softmax(-1)
        self.log_ref = reference.log_softmax(-1)
        self.log_ratio = self.log_pi - self.log_ref
        self.chance = self.log_pi.exp().detach()
        self.towards = self.gradient(divergence(self.log_pi, self.log_ref))  # ∇KL(pi || ref)
        self.backwards = self.gradient(divergence(self.log_ref, self.log_pi))  # ∇KL(ref || pi)

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def of_mean(self, estimator: KLEstimator) -> Tensor:
        """∇E_pi[k], through the expectation and through k."""
        return self.gradient((self.log_pi.exp() * estimator(self.log_ratio)).sum())


@given(tables, tables)
def test_in_the_loss_without_a_ratio(logits: Tensor, reference: Tensor) -> None:
    """k1: nothing; k2: KL(pi || ref); k3: KL(ref || pi)."""
    state = State(logits, logits, reference)
    expected = {"k1": torch.zeros_like(logits), "k2": state.towards, "k3": state.backwards}
    for name, estimator in ESTIMATORS.items():
        rows = penalty(state.log_ratio, beta=BETA, estimator=estimator)
        assert off_by(state.gradient((state.chance * rows).sum()), -BETA * expected[name]) < EXACT, name


@given(tables, tables, tables)
def test_in_the_loss_with_the_ratio(logits: Tensor, old: Tensor, reference: Tensor) -> None:
    """k1 and k3: KL(pi || ref), at any new policy; k2: the gradient of its own mean."""
    state = State(logits, old, reference)
    expected = {"k1": state.towards, "k2": state.of_mean(k2), "k3": state.towards}
    ratio = (state.log_pi - state.log_old).exp()
    for name, estimator in ESTIMATORS.items():
        rows = ratio_penalty(ratio, state.log_ratio, beta=BETA, estimator=estimator)
        found = state.gradient((state.log_old.exp() * rows).sum())
        assert off_by(found, -BETA * expected[name]) < EXACT, name


@given(tables, tables)
def test_in_the_reward(logits: Tensor, reference: Tensor) -> None:
    """k1: KL(pi || ref); k2 and k3: the gradient of their mean less what runs through them."""
    state = State(logits, logits, reference)
    expected = {"k1": state.towards, "k2": state.of_mean(k2) - state.towards, "k3": state.towards - state.backwards}
    for name, estimator in ESTIMATORS.items():
        rows = reinforce(state.log_pi, reward_penalty(state.log_ratio, beta=BETA, estimator=estimator))
        assert off_by(state.gradient((state.chance * rows).sum()), -BETA * expected[name]) < EXACT, name


def test_the_directions_are_not_one() -> None:
    """Policy (1/2, 1/2), reference (1/4, 3/4): the slopes in the first logit, each distinct from the others.

    ∇KL(pi||ref) = 1/4 log 3, since Σ π_a (δ - π) x_a = 1/4 (x_0 - x_1) and x_0 - x_1 = log(1/4 · 3/4 · 16) = log 3.
    ∇KL(ref||pi) = π_0 - ref_0 = 1/4. ∇E[k2] has 1/4 (k2_0 - k2_1) = (log² 2 - log² 3/2)/8 more than the first.
    """
    state = State(double([0, 0]), double([0, 0]), double([0.25, 0.75]).log())
    slope = float(double(3).log() / 4)
    assert [state.towards[0].item(), state.backwards[0].item()] == pytest.approx([slope, 0.25])
    in_reward = state.gradient(
        (state.chance * reinforce(state.log_pi, reward_penalty(state.log_ratio, beta=1, estimator=k3))).sum()
    )
    assert in_reward[0].item() == pytest.approx(-(slope - 0.25))
    of_k2 = state.of_mean(k2)
    assert of_k2[0].item() == pytest.approx(slope + float(double(2).log() ** 2 - double(1.5).log() ** 2) / 8)
    assert apart(of_k2, state.towards) > 0.1
    assert apart(of_k2 - state.towards, state.towards) > 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_in_the_reward_it_is_that_of_whole_episodes(seed: int) -> None:
    """r_t - β k1, credited as any reward: the gradient of J - β E[Σ γ^t x_t]."""
    task = random_task(seed, horizon=3)
    log_ratio = task.log_ratio
    total = task.mean((task.factors * log_ratio).sum(0))
    reward = task.found.rewards + reward_penalty(log_ratio, beta=BETA)
    credit = discounted_reward_to_go(reward, discount=task.discount, done=task.found.done)
    found = task.expected(reinforce(task.log_prob, credit).sum(0))
    assert off_by(found, task.exact - BETA * task.gradient(total)) < EXACT


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["k2", "k3"])
def test_in_the_loss_it_is_that_of_each_visited_state(seed: int, name: str) -> None:
    """Σ γ^t penalty: d(s) ∇KL at the visits of the policy, which are not differentiated.

    See the next test for
    the difference that makes.
    """
    task = random_task(seed, horizon=3)
    log_ratio = task.log_ratio
    rows = task.factors * penalty(log_ratio, beta=BETA, estimator=ESTIMATORS[name])
    found = task.expected(rows.sum(0))
    mdp, table = task.clocked(task.log_pi.detach())
    visits = mdp.visitation(table)[:-1].reshape(task.horizon, -1).sum(0)
    log_pi, log_ref = task.log_pi, task.log_old
    directions: dict[str, Callable[[], Tensor]] = {
        "k2": lambda: (log_pi.exp() * (log_pi - log_ref)).sum(-1),
        "k3": lambda: (log_ref.exp() * (log_ref - log_pi)).sum(-1),
    }
    assert off_by(found, -BETA * task.gradient((visits * directions[name]()).sum())) < EXACT


def test_a_penalty_in_the_loss_does_not_steer_around_what_is_costly() -> None:
    """Going on leads to a state where the reference is (1/4, 3/4); everything is uniform, γ = 1.

    The episode's divergence is π_0(1) · 1/2 log 4/3: its slope in state 0 is 1/8 log 4/3. In the loss there is none.
    """
    plain = short_or_long()
    task = Task(plain.mdp, 2, plain.logits, double([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]).log(), discount=1.0)
    in_loss = task.expected(penalty(task.log_ratio, beta=1, estimator=k2).sum(0))
    credit = discounted_reward_to_go(reward_penalty(task.log_ratio, beta=1), discount=1.0, done=task.found.done)
    in_reward = task.expected(reinforce(task.log_prob, credit).sum(0))
    assert in_loss[0].abs().max() < EXACT
    assert off_by(in_reward[0, 1], -double(4 / 3).log() / 8) < EXACT
    assert off_by(in_loss[1], in_reward[1]) < EXACT and in_loss[1, 0].item() < -0.1


def test_golden() -> None:
    """Log-ratio 2, β = 1/2: k1 2, k2 2, k3 e^-2 + 1; times the ratio 3; in the reward the same without a gradient."""
    x, ratio = double([2.0]).requires_grad_(), double([3.0])
    assert penalty(x, beta=0.5, estimator=k1).tolist() == [-1.0]
    assert penalty(x, beta=0.5, estimator=k2).tolist() == [-1.0]
    assert off_by(penalty(x, beta=0.5), -0.5 * (double([-2.0]).exp() + 1)) < 1e-15  # k3 unless another is named
    assert off_by(ratio_penalty(ratio, x, beta=0.5), -1.5 * (double([-2.0]).exp() + 1)) < 1e-15
    assert reward_penalty(x, beta=0.5).tolist() == [-1.0]  # k1 unless another is named
    assert not reward_penalty(x, beta=0.5, estimator=k3).requires_grad


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_the_coefficient_is_checked(beta: float) -> None:
    one = torch.ones(2)
    for refused in (
        lambda: penalty(one, beta=beta),
        lambda: ratio_penalty(one, one, beta=beta),
        lambda: reward_penalty(one, beta=beta),
    ):
        with pytest.raises(OptionError, match=r"`beta`[\s\S]*finite"):
            refused()


@pytest.mark.production
def test_the_ratio_is_of_the_rows_shape() -> None:
    with pytest.raises(ShapeError, match=r"`ratio`[\s\S]*squeeze"):
        ratio_penalty(torch.ones(3, 1), torch.ones(3), beta=1.0)
