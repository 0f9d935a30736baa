"""Advantages within groups: arithmetic, groups without differences, and what each one's expected gradient is."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.group_advantages import (
    batch_std_advantage,
    group_mean_advantage,
    group_std_advantage,
    rloo_advantage,
    zero_variance_groups,
)
from latentpg.numerics.surrogates import reinforce
from latentpg.oracles.trajectories import expected_surrogate
from tests.numerics.episodes import EXACT, SEEDS, Task, bandit_task, double, off_by, random_task, turned

Advantage = Callable[[Tensor], Tensor]
ALL: list[Advantage] = [group_mean_advantage, rloo_advantage, group_std_advantage, batch_std_advantage]


def group_gradient(task: Task, size: int, advantage: Advantage) -> Tensor:
    """Differentiate, on average over all groups, the mean over the group of A Σ_t log π."""
    index, log_prob = task.groups(size)
    rows = reinforce(task.log_prob.sum(0)[index], advantage(task.returns[index])).mean(0)
    return task.gradient(expected_surrogate(log_prob, rows))


def test_golden() -> None:
    """Returns (0, 0, 6) and (1, 3, 5), G = 3: means 2 and 3, others' means (3, 3, 0) and (4, 3, 2).

    Squared deviations 4 + 4 + 16 = 24 and 4 + 0 + 4 = 8: sample variances 12 and 4, population's 8 and 8/3. All six:
    mean 5/2, squares summed 71, so 71 - 6 · 25/4 = 33.5, by 5 or by 6.
    """
    returns = double([[0, 1], [0, 3], [6, 5]])
    centred = double([[-2, -2], [-2, 0], [4, 2]])
    assert torch.equal(group_mean_advantage(returns), centred)
    assert torch.equal(rloo_advantage(returns), double([[-3, -3], [-3, 0], [6, 3]]))
    sample, population = double([12, 4]).sqrt(), double([8, 8 / 3]).sqrt()
    assert off_by(group_std_advantage(returns, epsilon=0), centred / sample) < 1e-15
    assert off_by(group_std_advantage(returns, epsilon=0, correction=0), centred / population) < 1e-15
    assert off_by(group_std_advantage(returns, epsilon=2), centred / (sample + 2)) < 1e-15
    assert off_by(batch_std_advantage(returns, epsilon=0), centred / math.sqrt(6.7)) < 1e-15
    assert off_by(batch_std_advantage(returns, epsilon=1, correction=0), centred / (math.sqrt(33.5 / 6) + 1)) < 1e-15


def test_defaults_are_the_sample_deviation_and_a_small_epsilon() -> None:
    returns = double([[0], [2]])
    assert off_by(group_std_advantage(returns).squeeze(1), double([-1, 1]) / (math.sqrt(2) + 1e-4)) < 1e-15
    assert torch.equal(batch_std_advantage(returns), group_std_advantage(returns))


@pytest.mark.parametrize("advantage", ALL)
def test_zero_variance_is_found_by_max_and_min(advantage: Advantage) -> None:
    """Seven float32 returns of 1000000.1 have a deviation of 0.07 by arithmetic; beside them a group with differences.

    The equal ones get exactly 0 and are counted; the others are what they are alone.
    """
    equal = torch.full((7,), 1_000_000.1)
    assert equal.std() > 0.05  # or this test tests nothing
    returns = torch.stack([equal, torch.arange(7.0)], dim=1)
    flat = zero_variance_groups(returns)
    assert flat.tolist() == [True, False] and int(flat.sum()) == 1
    found = advantage(returns)
    assert found[:, 0].tolist() == [0.0] * 7
    assert found[0, 1] < 0 < found[6, 1]
    assert advantage(equal.unsqueeze(1)).abs().max() == 0.0


@pytest.mark.parametrize("advantage", ALL)
def test_epsilon_of_zero_is_safe(advantage: Advantage) -> None:
    """No division by 0, even with all of the batch equal."""
    zero = torch.zeros(3, 2)
    assert torch.equal(advantage(zero), zero)
    assert torch.equal(group_std_advantage(zero, epsilon=0), zero)
    assert torch.equal(batch_std_advantage(zero, epsilon=0), zero)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_the_gradient_and_the_mean_a_multiple(seed: int, size: int) -> None:
    """∇J and (G-1)/G ∇J, exactly."""
    task = random_task(seed)
    assert off_by(group_gradient(task, size, rloo_advantage), task.exact) < EXACT
    assert off_by(group_gradient(task, size, group_mean_advantage), (size - 1) / size * task.exact) < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_reward_to_go_compared_step_by_step(seed: int) -> None:
    """γ^t G_t less the others' at the same t: ∇J again, since their steps are independent of the member's actions."""
    task = random_task(seed)
    index, log_prob = task.groups(3)
    credit = task.to_go[:, index].movedim(0, -1)  # [G, M, T]
    rows = reinforce(task.log_prob[:, index].movedim(0, -1), rloo_advantage(credit)).sum(-1).mean(0)
    assert off_by(task.gradient(expected_surrogate(log_prob, rows)), task.exact) < EXACT


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("correction", [0, 1])
def test_the_groups_deviation_turns_the_gradient(size: int, correction: int) -> None:
    """Two fair bandits paying (0, 1) and (0, 10): ∇J is 1 : 10, this 1 : 1, for every G and divisor; cosine 11/√202."""
    task = bandit_task([[0, 1], [0, 10]])

    def advantage(returns: Tensor) -> Tensor:
        return group_std_advantage(returns, correction=1 if correction else 0, epsilon=0)

    found = group_gradient(task, size, advantage)
    assert off_by(found[0], found[1]) < EXACT
    assert turned(found, task.exact) == pytest.approx(1 - 11 / math.sqrt(202), abs=EXACT)


def batch_gradient(task: Task, groups: int) -> Tensor:
    """Differentiate, on average, the mean over batches of pairs divided by the deviation of the batch."""
    index, log_prob = task.groups(2)
    chosen = torch.cartesian_prod(*[torch.arange(index.shape[1])] * groups).reshape(-1, groups)
    score, rows = task.log_prob.sum(0), []
    for batch in chosen:
        members = index[:, batch]
        rows.append(reinforce(score[members], batch_std_advantage(task.returns[members], epsilon=0)).mean())
    return task.gradient(expected_surrogate(log_prob[chosen].sum(1), torch.stack(rows)))


def test_the_batchs_deviation_turns_it_less_and_less() -> None:
    """The same bandits, pairs: one group is the group's deviation, cosine 11/√202 = 0.774; more groups come nearer.

    By the sums themselves, 1 - cosine is 0.226, 0.108, 0.045 with one, two and three groups to a batch.
    """
    task = bandit_task([[0, 1], [0, 10]])
    angles = [turned(batch_gradient(task, groups), task.exact) for groups in (1, 2, 3)]
    assert angles[0] == pytest.approx(1 - 11 / math.sqrt(202), abs=EXACT)
    assert angles[1:] == pytest.approx([0.108, 0.045], abs=5e-4)


@pytest.mark.parametrize("advantage", [*ALL, zero_variance_groups])
def test_a_group_of_one_is_refused(advantage: Advantage) -> None:
    with pytest.raises(OptionError, match=r"G=1[\s\S]*G >= 2[\s\S]*\[1, 4\][\s\S]*at least two episodes"):
        advantage(torch.ones(1, 4))


@pytest.mark.parametrize("advantage", [*ALL, zero_variance_groups])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_an_empty_group_is_refused(advantage: Advantage, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"empty group[\s\S]*got"):
        advantage(torch.ones(shape))


@pytest.mark.parametrize("advantage", [group_std_advantage, batch_std_advantage])
@pytest.mark.parametrize("epsilon", [-1e-8, float("nan"), float("inf")])
def test_epsilon_is_checked(advantage: Callable[..., Tensor], epsilon: float) -> None:
    with pytest.raises(OptionError, match="`epsilon`"):
        advantage(torch.ones(2, 2), epsilon=epsilon)


@pytest.mark.production
@pytest.mark.parametrize("advantage", [group_std_advantage, batch_std_advantage])
def test_correction_is_checked(advantage: Callable[..., Tensor]) -> None:
    with pytest.raises(OptionError, match=r"`correction`[\s\S]*0 \(population\) or 1"):
        advantage(torch.ones(2, 2), correction=2)
