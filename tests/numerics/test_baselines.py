"""Baselines: arithmetic, and what each one does to the expected gradient and to the variance."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.baselines import (
    batch_mean_baseline,
    leave_one_out_baseline,
    less_baseline,
    standardized,
    variance_optimal_baseline,
    variance_optimal_constant,
)
from latentpg.numerics.surrogates import reinforce
from latentpg.oracles.trajectories import expected_surrogate
from tests.numerics.episodes import EXACT, SEEDS, Task, apart, bandit_task, double, off_by, random_task, turned


def batch_gradient(task: Task, size: int, advantage: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Differentiate, on average over all batches of independent episodes, the mean of advantage(R, ‖g‖²) Σ_t log π."""
    index, log_prob = task.batches(size)
    credit, squared = task.returns[index], task.scores.square().sum(1)[index]
    rows = reinforce(task.log_prob.sum(0)[index], advantage(credit, squared)).mean(0)
    return task.gradient(expected_surrogate(log_prob, rows))


def test_golden() -> None:
    """Credits (1, 2, 6): mean 3, others' means (8/2, 7/2, 3/2)."""
    credit = double([1, 2, 6])
    assert batch_mean_baseline(credit).tolist() == [3, 3, 3]
    assert leave_one_out_baseline(credit).tolist() == [4, 3.5, 1.5]
    assert less_baseline(credit, double([3, 3, 3])).tolist() == [-2, -1, 3]


def test_variance_optimal_golden() -> None:
    """Credits (0, 4, 8), squared scores (5, 1, 3): 28/9 of all; of the others 28/4, 24/8, 4/6."""
    credit, squared = double([0, 4, 8]), double([5, 1, 3])
    assert off_by(variance_optimal_constant(credit, squared), double(28 / 9)) < 1e-15
    assert off_by(variance_optimal_baseline(credit, squared), double([7, 3, 2 / 3])) < 1e-15


def test_columns_are_apart() -> None:
    """With a step or an environment behind N, each column has its own baseline."""
    credit, squared = double([[0, 1], [4, 1], [8, 7]]), double([[5, 0], [1, 0], [3, 0]])
    assert off_by(leave_one_out_baseline(credit), double([[6, 4], [4, 4], [2, 1]])) < 1e-15
    assert off_by(batch_mean_baseline(credit), double([[4, 3]] * 3)) < 1e-15
    found = variance_optimal_baseline(credit, squared)
    assert off_by(found, double([[7, 0], [3, 0], [2 / 3, 0]])) < 1e-15  # no score anywhere: 0
    assert variance_optimal_constant(credit, squared)[1].item() == 0.0


def test_a_row_alone_with_a_score_has_no_baseline() -> None:
    """The others of row 0 have no score: 0, and not 0/0; the others of row 1 have row 0's."""
    assert variance_optimal_baseline(double([3, 5, 7]), double([2, 0, 0])).tolist() == [0, 3, 3]


def test_an_advantage_is_a_constant() -> None:
    baseline = double([1.0, 2.0]).requires_grad_()
    assert not less_baseline(double([1.0, 2.0]), baseline).requires_grad
    assert not standardized(baseline).requires_grad


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [2, 3])
def test_baselines_of_the_batch(seed: int, size: int) -> None:
    """∇J with the others' mean or optimum; (N-1)/N of it with the batch's own mean."""
    task = random_task(seed)

    def expected(advantage: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return batch_gradient(task, size, advantage)

    assert off_by(expected(lambda c, _: less_baseline(c, leave_one_out_baseline(c))), task.exact) < EXACT
    assert off_by(expected(lambda c, g: less_baseline(c, variance_optimal_baseline(c, g))), task.exact) < EXACT
    own = expected(lambda c, _: less_baseline(c, batch_mean_baseline(c).contiguous()))
    assert off_by(own, (size - 1) / size * task.exact) < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_state_values_of_any_quality_are_free(seed: int) -> None:
    """γ^t (G_t - V(s_t)) with V the exact values, or numbers out of a hat: ∇J."""
    task = random_task(seed, horizon=3)
    mdp, table = task.clocked(task.log_pi.detach())
    anything = torch.randn(mdp.num_states, dtype=torch.float64)
    for values in (mdp.state_values(table), anything):
        advantage = less_baseline(task.to_go, task.factors * values[task.clocked_states])
        assert off_by(task.expected(reinforce(task.log_prob, advantage).sum(0)), task.exact) < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_the_optimal_constant_is_for_other_rows(seed: int) -> None:
    """From the second and third episode for the first: ∇J. From its own: the gradient of pairs is clearly off."""
    task = random_task(seed)

    def of_others(credit: Tensor, squared: Tensor) -> Tensor:
        constant = variance_optimal_constant(credit[1:], squared[1:])
        first = less_baseline(credit[0], constant)
        return torch.stack([3 * first, torch.zeros_like(first), torch.zeros_like(first)])

    def of_itself(credit: Tensor, squared: Tensor) -> Tensor:
        return less_baseline(credit, variance_optimal_constant(credit, squared).expand_as(credit))

    assert off_by(batch_gradient(task, 3, of_others), task.exact) < EXACT
    assert apart(batch_gradient(task, 2, of_itself), task.exact) > 0.2


def test_the_optimal_constant_has_the_least_variance() -> None:
    """Arms played with 1/4 and 3/4, paying 0 and 4: squared scores 2 · 9/16 and 2 · 1/16, so b* = 6/24 · 4 = 1.

    E‖g(R - b)‖² = (18 b² + 6 (4 - b)²)/64: 72/64 at 1, 96/64 at 0, and 168/64 at the mean return 3, which is *worse*
    than no baseline. In rows: the first arm once, the second three times.
    """
    task = bandit_task([[0, 4]], [[0, math.log(3)]])
    squared = task.scores.square().sum(1)
    assert off_by(squared, double([18, 2]) / 16) < EXACT
    rows = torch.tensor([0, 1, 1, 1])
    best = variance_optimal_constant(task.returns[rows], squared[rows])
    assert off_by(best, double(1)) < EXACT

    def second_moment(baseline: float) -> float:
        return float(task.mean(squared * (task.returns - baseline) ** 2).detach())

    assert [second_moment(b) * 64 for b in (1.0, 0.0, 3.0)] == pytest.approx([72, 96, 168])
    assert second_moment(0.9) > second_moment(1.0) < second_moment(1.1)


def test_standardized_golden() -> None:
    """(1, 3, 5) and (0, 0, 6, 6): deviations 2 and √12, sample's divisors; flat ones are 0, with rounding too."""
    assert standardized(double([1, 3, 5]), epsilon=0).tolist() == [-1, 0, 1]
    assert off_by(standardized(double([[0, 6], [0, 6]]), epsilon=0), double([[-3, 3], [-3, 3]]) / math.sqrt(12)) < EXACT
    assert off_by(standardized(double([1, 3, 5]), epsilon=2), double([-0.5, 0, 0.5])) < EXACT
    assert standardized(torch.full((7,), 1_000_000.1), epsilon=0).tolist() == [0.0] * 7


def test_standardizing_a_batch_turns_the_gradient() -> None:
    """One fair bandit paying (0, 1, 10), pairs: ±1/√2 whenever they differ, so only ranks count: cosine 60/√4368."""
    task = bandit_task([[0, 1, 10]])
    index, log_prob = task.batches(2)
    score = task.log_prob.sum(0)
    rows = torch.stack([(standardized(task.returns[pair], epsilon=0) * score[pair]).mean() for pair in index.T])
    found = task.gradient(expected_surrogate(log_prob, rows))
    assert off_by(found, double([[-2, 0, 2]]) / 9 / math.sqrt(2)) < EXACT
    assert turned(found, task.exact) == pytest.approx(1 - 60 / math.sqrt(4368), abs=EXACT)


def test_one_row_has_no_others() -> None:
    for refused in (leave_one_out_baseline, lambda c: variance_optimal_baseline(c, torch.ones_like(c))):
        with pytest.raises(OptionError, match=r"no others[\s\S]*N >= 2[\s\S]*N=1"):
            refused(torch.ones(1))
    assert batch_mean_baseline(torch.ones(1)).tolist() == [1.0]


def test_no_row_at_all_is_refused() -> None:
    for refused in (batch_mean_baseline, leave_one_out_baseline):
        with pytest.raises(ShapeError, match=r"`credit`[\s\S]*N >= 1"):
            refused(torch.ones(0))
    with pytest.raises(ShapeError, match=r"`advantage`[\s\S]*at least two"):
        standardized(torch.ones(1))


@pytest.mark.production
def test_shapes_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"`baseline`[\s\S]*trailing[\s\S]*squeeze"):
        less_baseline(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(ShapeError, match=r"`squared_score`"):
        variance_optimal_baseline(torch.ones(3), torch.ones(2))
    with pytest.raises(ShapeError, match=r"`squared_score`"):
        variance_optimal_constant(torch.ones(3), torch.ones(3, 1))


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_squared_scores_are_squares(bad: float) -> None:
    with pytest.raises(OptionError, match=r"`squared_score`[\s\S]*squared norms"):
        variance_optimal_constant(torch.ones(2), torch.tensor([1.0, bad]))


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), float("inf")])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(OptionError, match="`epsilon`"):
        standardized(torch.ones(2), epsilon=epsilon)
