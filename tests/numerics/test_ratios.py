"""Ratios of steps and episodes: values, masks, and what GSPO's does to the gradient.

The others in expectation: tests/oracles/test_trajectories.py.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import ShapeError
from latentpg.numerics.ratios import per_decision_ratio, sequence_ratio, step_ratio, trajectory_ratio
from latentpg.numerics.surrogates import importance_weighted, ppo_clip
from tests.numerics.episodes import EXACT, SEEDS, apart, double, off_by, random_task, short_or_long, turned

RATIOS: list[Callable[..., Tensor]] = [step_ratio, per_decision_ratio, trajectory_ratio, sequence_ratio]


def test_ratios_golden() -> None:
    """Steps with ratios 2, 3, 1/2: alone, cumulated (2, 6, 3), whole (3), by geometric mean; masked from 1 on: 2."""
    log_ratio = torch.tensor([[2.0, 2.0], [3.0, 3.0], [0.5, 0.5]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False], [True, False]])
    cases = [
        (step_ratio, [[2.0, 2.0], [3.0, 1.0], [0.5, 1.0]]),
        (per_decision_ratio, [[2.0, 2.0], [6.0, 2.0], [3.0, 2.0]]),
        (trajectory_ratio, [3.0, 2.0]),
        (sequence_ratio, [3.0 ** (1 / 3), 2.0]),
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


@pytest.mark.production
@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_want_time_first(ratio: Callable[..., Tensor]) -> None:
    """A log ratio is [T, N], its mask of the same shape."""
    with pytest.raises(ShapeError, match=r"`log_ratio`[\s\S]*unsqueeze"):
        ratio(torch.zeros(3))
    with pytest.raises(ShapeError, match="`mask`"):
        ratio(torch.zeros(3, 2), mask=torch.ones(3, 1, dtype=torch.bool))


def test_an_episode_without_a_step_has_no_sequence_ratio() -> None:
    mask = torch.tensor([[True, False, True], [True, False, False]])
    with pytest.raises(ShapeError, match=r"without a step[\s\S]*columns \[1\][\s\S]*drop"):
        sequence_ratio(torch.zeros(2, 3), mask=mask)


@pytest.mark.parametrize("seed", SEEDS)
def test_sequence_ratio_where_new_is_old_and_lengths_agree(seed: int) -> None:
    """Episodes of T = 3 steps: ∇J / 3, clipped or not."""
    task = random_task(seed, horizon=3, one_length=True)
    ratio = sequence_ratio(task.unmoved, mask=task.found.mask)
    for rows in (importance_weighted(ratio, task.returns), ppo_clip(ratio, task.returns, epsilon=3e-4)):
        assert off_by(3 * task.expected(rows), task.exact) < EXACT


def test_sequence_ratio_turns_the_gradient_where_lengths_differ() -> None:
    """Ending at once pays 1/2, going on 0 or 1, uniform: ∇J = (0, 1/8) in the logits of action 1.

    The short episode adds 1/2 · 1/2 · (-1/2) = -1/8 in state 0, the long one that pays 1/4 · 1/2 = 1/8 in both states,
    halved by its length: (-1/16, 1/16), at an angle of 45 degrees.
    """
    task = short_or_long()
    assert off_by(task.exact[:2, 1], double([0, 1 / 8])) < EXACT
    found = task.expected(importance_weighted(sequence_ratio(task.unmoved, mask=task.found.mask), task.returns))
    assert off_by(found[:2, 1], double([-1 / 16, 1 / 16])) < EXACT
    assert turned(found, task.exact) == pytest.approx(1 - 0.5**0.5, abs=EXACT)


def test_sequence_ratio_is_not_the_new_policys_gradient() -> None:
    """One length or not: its mean under the old policy is not 1, and 3 times its gradient is not ∇J(new)."""
    task = random_task(0, horizon=3, one_length=True)
    ratio = sequence_ratio(task.log_ratio)
    mean = (task.found.log_prob(task.log_old).exp() * ratio).sum()
    assert abs(mean.item() - 1) > 0.05
    found = task.expected(importance_weighted(ratio, task.returns), behaviour=task.log_old)
    assert apart(3 * found, task.exact) > 0.05
