"""Surrogates and off-policy ratios: values, gradients, shapes. In expectation: tests/oracles/test_trajectories.py."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.surrogates import (
    importance_weighted,
    per_decision_ratio,
    ppo_clip,
    reinforce,
    step_ratio,
    trajectory_ratio,
)

TWO_ARGUMENTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    reinforce,
    importance_weighted,
    lambda ratio, advantage: ppo_clip(ratio, advantage, epsilon=0.2),
]
RATIOS: list[Callable[..., Tensor]] = [step_ratio, per_decision_ratio, trajectory_ratio]


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


def test_ratios_golden() -> None:
    """Steps with ratios 2, 3, 1/2: alone, cumulated (2, 6, 3), and whole (3); masked from step 1 on: 2."""
    log_ratio = torch.tensor([[2.0, 2.0], [3.0, 3.0], [0.5, 0.5]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    cases = [
        (step_ratio, [[2.0, 2.0], [3.0, 1.0], [0.5, 1.0]]),
        (per_decision_ratio, [[2.0, 2.0], [6.0, 2.0], [3.0, 2.0]]),
        (trajectory_ratio, [3.0, 2.0]),
    ]
    for function, expected in cases:
        assert torch.allclose(function(log_ratio, mask=mask), torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(trajectory_ratio(log_ratio), torch.full((2,), 3.0, dtype=torch.float64))


def test_masked_steps_send_no_gradient() -> None:
    """Padding neither counts nor learns, not even where it is infinite."""
    mask = torch.tensor([[True], [False]])
    for function in RATIOS:
        log_ratio = torch.tensor([[0.3], [torch.inf]], requires_grad=True)
        function(log_ratio, mask=mask).sum().backward()
        assert log_ratio.grad is not None
        assert log_ratio.grad[0].item() > 0.0
        assert log_ratio.grad[1].item() == 0.0


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


@pytest.mark.production
@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_want_time_first(ratio: Callable[..., Tensor]) -> None:
    """A log ratio is [T, N], its mask of the same shape."""
    with pytest.raises(ShapeError, match=r"`log_ratio`[\s\S]*unsqueeze"):
        ratio(torch.zeros(3))
    with pytest.raises(ShapeError, match="`mask`"):
        ratio(torch.zeros(3, 2), mask=torch.ones(3, 1, dtype=torch.bool))


@pytest.mark.parametrize("epsilon", [0.0, -0.2, float("nan"), float("inf")])
def test_epsilon_is_checked(epsilon: float) -> None:
    """The clip range is a positive number."""
    with pytest.raises(OptionError, match="epsilon"):
        ppo_clip(torch.ones(2), torch.ones(2), epsilon=epsilon)
