"""From rows to one number: weights, masks, shares of a batch, and what each aggregation does to the gradient."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.aggregation import (
    constant_weights,
    sequence_weights,
    token_weights,
    weighted_rows,
    weighted_steps,
)
from latentpg.numerics.surrogates import reinforce
from latentpg.oracles.trajectories import expected_surrogate
from tests.numerics.episodes import EXACT, SEEDS, Task, double, off_by, random_task, short_or_long, turned

Weights = Callable[[Tensor], Tensor]
ALL: list[Weights] = [
    partial(token_weights, dtype=torch.float64),
    partial(sequence_weights, dtype=torch.float64),
    partial(constant_weights, dtype=torch.float64),
]
TOKEN, SEQUENCE, CONSTANT = ALL

# Episodes of 1, 3 and 2 steps.
LENGTH = torch.tensor([1, 3, 2])
MASK = torch.arange(3)[:, None] < LENGTH
ROWS = double([[6, 1, 3], [99, 2, 5], [99, 9, 99]])


def test_weights_golden() -> None:
    """1/6 for each; 1/3 of 1, 1/3, 1/2; 1/3 of 1, and of 1/4."""
    assert off_by(TOKEN(LENGTH), double([1, 1, 1]) / 6) < 1e-15
    assert off_by(SEQUENCE(LENGTH), double([1 / 3, 1 / 9, 1 / 6])) < 1e-15
    assert off_by(CONSTANT(LENGTH), double([1, 1, 1]) / 3) < 1e-15
    assert off_by(constant_weights(LENGTH, horizon=4, dtype=torch.float64), double([1, 1, 1]) / 12) < 1e-15
    for weights in (token_weights, sequence_weights, constant_weights):
        assert weights(LENGTH).dtype == torch.get_default_dtype()


def test_steps_golden() -> None:
    """Sums 6, 12 and 8: 26/6; (6 + 12/3 + 8/2)/3 = 14/3; 26/3."""
    found = [weighted_steps(ROWS, weights(LENGTH), mask=MASK) for weights in ALL]
    assert off_by(torch.stack(found), double([26 / 6, 14 / 3, 26 / 3])) < 1e-15


@pytest.mark.parametrize("weights", ALL)
def test_flat_rows_in_any_order_and_in_parts(weights: Weights) -> None:
    """The rows of the mask, shuffled and split into minibatches, sum to the same loss with the same gradient."""
    rows = ROWS.clone().requires_grad_()
    whole = weighted_steps(rows, weights(LENGTH), mask=MASK)
    order = torch.randperm(6)
    step, episode = (index[order] for index in MASK.nonzero(as_tuple=True))
    parts = [
        weighted_rows(rows[step[part], episode[part]], weights(LENGTH), episode=episode[part])
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert off_by(parts[0] + parts[1], whole) < 1e-12
    (by_mask,) = torch.autograd.grad(whole, rows)
    (by_rows,) = torch.autograd.grad(parts[0] + parts[1], rows)
    assert off_by(by_rows, by_mask) < 1e-12


def test_padding_neither_counts_nor_learns() -> None:
    """Not even where it is NaN."""
    rows = ROWS.masked_fill(~MASK, torch.nan).requires_grad_()
    loss = weighted_steps(rows, SEQUENCE(LENGTH), mask=MASK)
    (gradient,) = torch.autograd.grad(loss, rows)
    assert off_by(loss, double(14 / 3)) < 1e-15
    assert gradient[~MASK].tolist() == [0.0, 0.0, 0.0]


def batch_gradient(task: Task, size: int, weights: Weights) -> Tensor:
    """Differentiate the weighted sum over steps, on average over all batches of independent episodes."""
    index, log_prob = task.batches(size)
    rows = reinforce(task.log_prob, task.returns.expand_as(task.log_prob).contiguous())
    lengths = task.found.mask.sum(0)
    losses = [
        weighted_steps(rows[:, batch], weights(lengths[batch]), mask=task.found.mask[:, batch]) for batch in index.T
    ]
    return task.gradient(expected_surrogate(log_prob, torch.stack(losses)))


@pytest.mark.parametrize("seed", SEEDS)
def test_where_lengths_agree_all_are_multiples(seed: int) -> None:
    """Episodes of T = 2 steps: ∇J/2, ∇J/2, ∇J and ∇J/C."""
    task = random_task(seed, one_length=True)
    for weights, multiple in zip(ALL, (1 / 2, 1 / 2, 1), strict=True):
        assert off_by(batch_gradient(task, 1, weights), multiple * task.exact) < EXACT
    by_eight = batch_gradient(task, 1, partial(constant_weights, horizon=8, dtype=torch.float64))
    assert off_by(8 * by_eight, task.exact) < EXACT


def test_where_lengths_differ_only_the_constant_keeps_the_direction() -> None:
    """Ending at once pays 1/2, going on 0 or 1, uniform: ∇J = (0, 1/8) in the logits of action 1.

    The short episode adds -1/8 in state 0, the long one 1/8 in both. Sequence-mean divides by 1 and 2: (-1/16, 1/16),
    45 degrees off. Token-mean in pairs divides by 1 + L and 2 + L, where the other's L is 1 or 2: short
    2 (1/2 + 1/3)/2 = 5/6, long 2 (1/3 + 1/4)/2 = 7/12: (-5/48 + 7/96, 7/96) = (-3/96, 7/96), cosine 7/√58 = 0.919.
    """
    task = short_or_long()
    for size in (1, 2):
        assert off_by(batch_gradient(task, size, CONSTANT), task.exact) < EXACT
        by_sequence = batch_gradient(task, size, SEQUENCE)
        assert off_by(by_sequence[:2, 1], double([-1, 1]) / 16) < EXACT
        assert turned(by_sequence, task.exact) == pytest.approx(1 - 0.5**0.5)
    by_token = batch_gradient(task, 2, TOKEN)
    assert off_by(by_token[:2, 1], double([-3, 7]) / 96) < EXACT
    assert turned(by_token, task.exact) == pytest.approx(1 - 7 / 58**0.5)


@pytest.mark.parametrize("weights", ALL)
def test_an_episode_without_a_step_is_refused(weights: Weights) -> None:
    with pytest.raises(ShapeError, match=r"without a step[\s\S]*0 in episode 1[\s\S]*drop"):
        weights(torch.tensor([2, 0, 1]))
    with pytest.raises(ShapeError, match=r"`length`[\s\S]*at least one episode[\s\S]*\[0\]"):
        weights(torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("horizon", [0, -1.0, float("nan"), float("inf")])
def test_the_constant_is_checked(horizon: float) -> None:
    with pytest.raises(OptionError, match="`horizon`"):
        constant_weights(LENGTH, horizon=horizon)


@pytest.mark.production
def test_shapes_are_checked() -> None:
    weight = token_weights(LENGTH)
    with pytest.raises(ShapeError, match=r"`rows`[\s\S]*one episode a column[\s\S]*unsqueeze"):
        weighted_steps(ROWS[:, 0], weight, mask=MASK[:, 0])
    with pytest.raises(ShapeError, match=r"`mask`[\s\S]*T=3, N=3[\s\S]*\[3, 1\]"):
        weighted_steps(ROWS, weight, mask=MASK[:, :1])
    with pytest.raises(ShapeError, match="not a mask"):
        weighted_steps(ROWS, weight, mask=MASK.long())
    with pytest.raises(ShapeError, match=r"`weight`, one a column[\s\S]*N=3"):
        weighted_steps(ROWS, weight[:1], mask=MASK)
    with pytest.raises(ShapeError, match=r"`episode`[\s\S]*\[2\]"):
        weighted_rows(torch.ones(2), weight, episode=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"\[B\] and \[M\]"):
        weighted_rows(torch.ones(3, 1), weight, episode=torch.zeros(3, 1, dtype=torch.long))


@pytest.mark.parametrize("number", [-1, 3])
def test_episodes_are_numbered_from_zero(number: int) -> None:
    """-1 would silently be the last one's weight."""
    with pytest.raises(ShapeError, match=rf"no weight[\s\S]*M-1=2[\s\S]*{number}"):
        weighted_rows(torch.ones(2), token_weights(LENGTH), episode=torch.tensor([0, number]))
