"""Surrogates: values, gradients, shapes, and what each one's expected gradient is.

REINFORCE, importance weighting and the symmetric clip in expectation: tests/oracles/test_trajectories.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.divergences import kl_old_new
from latentpg.numerics.surrogates import (
    cispo,
    importance_weighted,
    ppo_clip,
    ppo_clip_dual,
    ppo_kl,
    reinforce,
    step_ratio,
    trajectory_ratio,
)
from latentpg.oracles.mdp import TabularMDP
from tests.numerics.episodes import EXACT, SEEDS, Task, apart, double, off_by, random_task

TWO_ARGUMENTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    reinforce,
    importance_weighted,
    lambda ratio, advantage: ppo_clip(ratio, advantage, epsilon=0.2),
    lambda ratio, advantage: ppo_clip_dual(ratio, advantage, epsilon=0.2),
    lambda ratio, advantage: ppo_kl(ratio, advantage, torch.zeros_like(ratio), beta=1.0),
    lambda log_prob, advantage: cispo(log_prob, torch.ones_like(log_prob), advantage, epsilon_high=2.0),
]


def _value_and_gradient(surrogate: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    variable = at.clone().requires_grad_()
    rows = surrogate(variable)
    (gradient,) = torch.autograd.grad(rows.sum(), variable)
    return rows.detach(), gradient


def test_reinforce_golden() -> None:
    """The gradient in log_prob is the advantage."""
    log_prob, advantage = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([3.0, -1.0, 0.0])
    rows, gradient = _value_and_gradient(lambda x: reinforce(x, advantage), log_prob)
    assert rows.tolist() == [-3.0, 2.0, -0.0]
    assert torch.equal(gradient, advantage)


def test_importance_weighted_golden() -> None:
    """The gradient in log pi is ratio times advantage."""
    ratio, advantage = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([4.0, -1.0, 3.0])
    rows, gradient = _value_and_gradient(lambda x: importance_weighted(x.exp(), advantage), ratio.log())
    assert torch.allclose(rows, torch.tensor([2.0, -2.0, 3.0]))
    assert torch.allclose(gradient, torch.tensor([2.0, -2.0, 3.0]))


def test_ppo_clip_golden() -> None:
    """Rows past the clip in their advantage's direction are flat; all others have slope A.

    epsilon = 0.2, so the ratio is clipped to [0.8, 1.2].
    """
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5, 0.5, 0.9, 1.0, 1.1, 1.5], dtype=torch.float64)
    advantage = torch.tensor([2.0] * 5 + [-2.0] * 5, dtype=torch.float64)
    rows, gradient = _value_and_gradient(lambda x: ppo_clip(x, advantage, epsilon=0.2), ratio)
    expected = [1.0, 1.8, 2.0, 2.2, 2.4, -1.6, -1.8, -2.0, -2.2, -3.0]
    assert torch.allclose(rows, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert gradient.tolist() == [2.0, 2.0, 2.0, 2.0, 0.0, 0.0, -2.0, -2.0, -2.0, -2.0]


def test_all_gradients_agree_at_ratio_one() -> None:
    """Where new = old the three surrogates have one gradient in log pi."""
    log_ratio = torch.zeros(4, dtype=torch.float64)
    advantage = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    surrogates: list[Callable[[Tensor], Tensor]] = [
        lambda x: reinforce(x, advantage),
        lambda x: importance_weighted(x.exp(), advantage),
        lambda x: ppo_clip(x.exp(), advantage, epsilon=0.2),
    ]
    for surrogate in surrogates:
        assert torch.equal(_value_and_gradient(surrogate, log_ratio)[1], advantage)


def test_ppo_clip_of_an_unbiased_noisy_ratio_is_biased() -> None:
    """A ratio that is 1/2 or 3/2 has mean 1, but its clipped rows have mean (0.5 + 1.2)/2 = 0.85, not 1."""
    rows = ppo_clip(torch.tensor([0.5, 1.5]), torch.ones(2), epsilon=0.2)
    assert rows.mean().item() == pytest.approx(0.85)


@pytest.mark.parametrize("surrogate", TWO_ARGUMENTS)
def test_advantages_are_constants(surrogate: Callable[[Tensor, Tensor], Tensor]) -> None:
    """No gradient reaches whatever the advantage was computed with."""
    advantage = torch.tensor([1.0, -1.0], requires_grad=True)
    first = torch.tensor([0.7, 1.3], requires_grad=True)
    surrogate(first, advantage).sum().backward()
    assert advantage.grad is None


@pytest.mark.production
@pytest.mark.parametrize("surrogate", TWO_ARGUMENTS)
def test_a_column_never_meets_a_row(surrogate: Callable[[Tensor, Tensor], Tensor]) -> None:
    """[B, 1] beside [B] is an error in either place, for B = 1 too, and the message says how to mend it."""
    for size in (1, 4):
        with pytest.raises(ShapeError, match=r"`advantage`[\s\S]*trailing dimension[\s\S]*squeeze\(-1\)"):
            surrogate(torch.ones(size), torch.ones(size, 1))
        with pytest.raises(ShapeError, match="`advantage`"):
            surrogate(torch.ones(size, 1), torch.ones(size))
    with pytest.raises(ShapeError, match=r"\[4\][\s\S]*\[\]"):
        surrogate(torch.ones(4), torch.tensor(1.0))


@pytest.mark.parametrize("epsilon", [0.0, -0.2, float("nan"), float("inf")])
def test_epsilon_is_checked(epsilon: float) -> None:
    """The clip range is a positive number."""
    with pytest.raises(OptionError, match="epsilon"):
        ppo_clip(torch.ones(2), torch.ones(2), epsilon=epsilon)


# --- the other clips, the penalised one, CISPO ------------------------------------------------------------------------


def test_ppo_clip_higher_golden() -> None:
    """The range is [0.8, 1.5]: a ratio of 1.4 still has slope A, 1.6 has not; below nothing changes."""
    ratio, advantage = double([0.5, 1.4, 1.6, 0.5, 1.6]), double([2.0, 2.0, 2.0, -2.0, -2.0])
    rows, gradient = _value_and_gradient(lambda x: ppo_clip(x, advantage, epsilon=0.2, epsilon_high=0.5), ratio)
    assert off_by(rows, double([1.0, 2.8, 3.0, -1.6, -3.2])) < 1e-15
    assert gradient.tolist() == [2.0, 2.0, 0.0, 0.0, -2.0]


def test_ppo_clip_dual_golden() -> None:
    """With c = 2, rows of A = -2 are flat at -4 beyond the ratio 2; those of A > 0 are as they were."""
    ratio, advantage = double([0.5, 1.5, 3.0, 0.5, 1.5, 3.0]), double([-2.0, -2.0, -2.0, 2.0, 2.0, 2.0])
    rows, gradient = _value_and_gradient(lambda x: ppo_clip_dual(x, advantage, epsilon=0.2, dual=2), ratio)
    assert off_by(rows, double([-1.6, -3.0, -4.0, 1.0, 2.4, 2.4])) < 1e-15
    assert gradient.tolist() == [0.0, -2.0, 0.0, 2.0, 0.0, 0.0]
    wide = ppo_clip_dual(ratio, advantage, epsilon=0.2, epsilon_high=0.6, dual=9)
    assert torch.equal(wide, ppo_clip(ratio, advantage, epsilon=0.2, epsilon_high=0.6))


def test_ppo_kl_golden() -> None:
    """2 · 3 - 4 · 1/2 = 4 and 1 · (-1) - 4 · 1/4 = -2; slope A in the ratio, -β in the divergence."""
    ratio = double([2.0, 1.0]).requires_grad_()
    kl = double([0.5, 0.25]).requires_grad_()
    rows = ppo_kl(ratio, double([3.0, -1.0]), kl, beta=4)
    rows.sum().backward()
    assert rows.tolist() == [4.0, -2.0]
    assert ratio.grad is not None and ratio.grad.tolist() == [3.0, -1.0]
    assert kl.grad is not None and kl.grad.tolist() == [-4.0, -4.0]


def test_cispo_golden() -> None:
    """Weights 1/2, 1, 3 (of 9), and with a bound below 0.8: every row keeps a gradient, and none goes to the ratio."""
    ratio, advantage = double([0.5, 1.0, 9.0]).requires_grad_(), double([2.0, -1.0, 2.0])
    at = double([-1.0, -1.0, -1.0])
    rows, gradient = _value_and_gradient(lambda x: cispo(x, ratio, advantage, epsilon_high=2), at)
    assert rows.tolist() == [-1.0, 1.0, -6.0]
    assert gradient.tolist() == [1.0, -1.0, 6.0]
    bounded = _value_and_gradient(lambda x: cispo(x, ratio, advantage, epsilon_high=2, epsilon_low=0.2), at)[1]
    assert bounded.tolist() == [1.6, -1.0, 6.0]
    assert ratio.grad is None


def surrogates(task: Task, log_ratio: Tensor, advantage: Tensor) -> dict[str, Tensor]:
    """Rows of every off-policy surrogate, summed over the steps of each episode."""
    ratio = step_ratio(log_ratio, mask=task.found.mask)
    kl = (task.log_old.exp() * (task.log_old - task.log_pi)).sum(-1)[task.found.states].masked_fill(~task.found.mask, 0)
    rows = {
        "importance_weighted": importance_weighted(ratio, advantage),
        "ppo_clip": ppo_clip(ratio, advantage, epsilon=0.2),
        "ppo_clip, higher": ppo_clip(ratio, advantage, epsilon=0.2, epsilon_high=0.4),
        "ppo_clip_dual": ppo_clip_dual(ratio, advantage, epsilon=0.2, dual=2.0),
        "ppo_kl": ppo_kl(ratio, advantage, kl, beta=0.5),
        "cispo": cispo(task.log_prob, ratio, advantage, epsilon_high=1.0),
    }
    return {name: each.sum(0) for name, each in rows.items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_where_new_is_old_all_of_them_are_the_gradient(seed: int) -> None:
    """E = ∇J with γ^t G_t: the ratio is 1, nothing is clipped, and the divergence is at its minimum."""
    drawn = random_task(seed, horizon=3)
    task = Task(drawn.mdp, drawn.horizon, drawn.logits, drawn.logits.detach())
    for name, rows in surrogates(task, task.log_ratio, task.to_go).items():
        assert off_by(task.expected(rows, behaviour=task.log_old), task.exact) < EXACT, name


def test_elsewhere_none_of_them_is_with_single_step_ratios() -> None:
    """The detour of tests/oracles/test_trajectories.py, whose new policy differs in state 1: (3/4, 1/4) to (1/4, 3/4).

    ∇J(new) in the logits of action 1 is (1/8, 3/16). A^old is (1/4, -1/4) and (-1/2, 3/2), the ratios 1 and (1/3, 3).
    State 0 always has 1/4 · (-1/2) = -1/8. State 1, visited half the time: unclipped 3/4·1/3·(-1/2)·(-3/4) +
    1/4·3·3/2·1/4 = 3/8, halved 3/16. All clips, 1.4 too, leave 0. CISPO's weight 2 in the place of 3 has 1/2 (3/32 +
    3/16) = 9/64. The divergence's slope is 3/4 - 1/4 = 1/2, so that β = 1/2 takes 1/2 · 1/4 = 1/8 off: 1/16.
    """
    task = detour()
    advantage = double([[0.25, -0.25], [-0.5, 1.5], [0, 0]])[task.found.states, task.found.actions]
    expected = dict.fromkeys(("ppo_clip", "ppo_clip, higher", "ppo_clip_dual"), 0.0)
    expected |= {"importance_weighted": 3 / 16, "cispo": 9 / 64, "ppo_kl": 1 / 16}
    assert off_by(task.exact[:2, 1], double([1 / 8, 3 / 16])) < EXACT
    for name, rows in surrogates(task, task.log_ratio, advantage).items():
        found = task.expected(rows, behaviour=task.log_old)
        assert off_by(found[:2, 1], double([-1 / 8, expected[name]])) < EXACT, name
        assert apart(found, task.exact) > 1, name


def detour() -> Task:
    """In state 0 action 1 leads to state 1, action 0 ends; there action 1 pays +1 and action 0 pays -1."""
    mdp = TabularMDP(
        transition=double([[[0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]]),
        reward=double([[0, 0], [-1, 1], [0, 0]]),
        initial=double([1, 0, 0]),
        discount=0.9,
        terminal=torch.tensor([False, False, True]),
    )
    logits, old = double([[0, 0], [0, math.log(3)], [0, 0]]), double([[0, 0], [math.log(3), 0], [0, 0]])
    return Task(mdp, 2, logits.requires_grad_(), old, discount=1.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_cispo_without_a_clip_is_importance_weighting(seed: int) -> None:
    """At any new policy, as sg[ρ] ∇log π = ∇ρ; with the whole episode's ratio and return that is ∇J(new)."""
    task = random_task(seed)
    whole = trajectory_ratio(task.log_ratio, mask=task.found.mask)
    rows = cispo(task.log_prob.sum(0), whole, task.returns, epsilon_high=1e6)
    assert off_by(task.expected(rows, behaviour=task.log_old), task.exact) < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_kl_from_extra_samples_is_ppo_kl(seed: int) -> None:
    """The old policy's actions as samples, listed with their frequencies, give the gradient of the closed form."""
    task = random_task(seed)
    log_old = double([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]).log()
    draws = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])  # the same tables, four draws each
    sampled = kl_old_new(log_old.gather(1, draws).T, task.log_pi.gather(1, draws).T)
    closed = (log_old.exp() * (log_old - task.log_pi)).sum(-1)
    assert off_by(sampled, closed) < EXACT
    assert off_by(task.gradient(sampled.sum()), task.gradient(closed.sum())) < EXACT


OPTIONS: list[tuple[str, Callable[[float], Tensor]]] = [
    ("epsilon_high", lambda x: ppo_clip(torch.ones(2), torch.ones(2), epsilon=0.2, epsilon_high=x)),
    ("epsilon", lambda x: ppo_clip_dual(torch.ones(2), torch.ones(2), epsilon=x)),
    ("epsilon_high", lambda x: ppo_clip_dual(torch.ones(2), torch.ones(2), epsilon=0.2, epsilon_high=x)),
    ("dual", lambda x: ppo_clip_dual(torch.ones(2), torch.ones(2), epsilon=0.2, dual=x)),
    ("beta", lambda x: ppo_kl(torch.ones(2), torch.ones(2), torch.ones(2), beta=x)),
    ("epsilon_high", lambda x: cispo(torch.ones(2), torch.ones(2), torch.ones(2), epsilon_high=x)),
    ("epsilon_low", lambda x: cispo(torch.ones(2), torch.ones(2), torch.ones(2), epsilon_high=1, epsilon_low=x)),
]


@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "surrogate"), OPTIONS)
def test_coefficients_are_checked(name: str, surrogate: Callable[[float], Tensor], value: float) -> None:
    """Clip ranges are positive and finite, β is not negative and finite, c is above 1."""
    with pytest.raises(OptionError, match=f"`{name}`"):
        surrogate(value)


def test_a_dual_clip_at_one_would_clip_the_policy_itself() -> None:
    with pytest.raises(OptionError, match=r"`dual`[\s\S]*above 1[\s\S]*1\.0"):
        ppo_clip_dual(torch.ones(2), torch.ones(2), epsilon=0.2, dual=1.0)


@pytest.mark.production
def test_every_argument_of_three_is_of_one_shape() -> None:
    with pytest.raises(ShapeError, match=r"ppo_kl[\s\S]*`kl`[\s\S]*squeeze"):
        ppo_kl(torch.ones(3), torch.ones(3), torch.ones(3, 1), beta=1.0)
    with pytest.raises(ShapeError, match=r"cispo[\s\S]*`ratio`[\s\S]*squeeze"):
        cispo(torch.ones(3), torch.ones(3, 1), torch.ones(3), epsilon_high=1.0)
