"""Targets and GAE: written-out arithmetic, their definitions as sums, and Bellman equations solved exactly."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.returns import reward_to_go
from latentpg.numerics.surrogates import reinforce
from latentpg.numerics.targets import (
    gae,
    monte_carlo_target,
    n_step_target,
    td0_target,
    td_error,
    td_lambda_target,
)
from tests.numerics.episodes import EXACT, SEEDS, Task, apart, double, off_by, random_task, short_or_long

# Three columns with the same rewards and values: no end; termination at step 1; truncation at step 1, where the true
# next observation is worth 6 and the next episode's first one 8. What a terminal observation is worth must not count.
REWARD = double([[1, 1, 1], [2, 2, 2], [4, 4, 4], [8, 8, 8]])
VALUE = double([[2, 2, 2], [4, 4, 4], [8, 8, 8], [16, 16, 16]])
NEXT_VALUE = double([[4, 4, 4], [8, 99, 6], [16, 16, 16], [32, 32, 32]])
TERMINATED = torch.zeros(4, 3, dtype=torch.bool)
TERMINATED[1, 1] = True
TRUNCATED = torch.zeros(4, 3, dtype=torch.bool)
TRUNCATED[1, 2] = True
NONE = torch.zeros_like(TERMINATED)
ENDS = (NEXT_VALUE, TERMINATED, TRUNCATED)


def test_td0_golden() -> None:
    """γ = 1/2: 1 + 4/2, 2 + 8/2, 4 + 16/2, 8 + 32/2; a termination leaves 2, a truncation 2 + 6/2."""
    expected = [[3, 3, 3], [6, 2, 5], [12, 12, 12], [24, 24, 24]]
    assert td0_target(REWARD, NEXT_VALUE, TERMINATED, discount=0.5).tolist() == expected
    errors = [[1, 1, 1], [2, -2, 1], [4, 4, 4], [8, 8, 8]]
    assert td_error(REWARD, VALUE, NEXT_VALUE, TERMINATED, discount=0.5).tolist() == errors


def test_n_step_golden() -> None:
    """Two steps: r_t and half the one-step target behind it, (1 + 6/2, 2 + 12/2, 4 + 24/2, 24); cut, 1 + 2/2, 1 + 5/2.

    Three: the same with the two-step target, (1 + 8/2, 2 + 16/2), and no more where the episode is cut.
    """
    found = n_step_target(REWARD, *ENDS, discount=0.5, num_steps=2)
    assert found.tolist() == [[4, 2, 3.5], [8, 2, 5], [16, 16, 16], [24, 24, 24]]
    three = n_step_target(REWARD, *ENDS, discount=0.5, num_steps=3)
    assert three.tolist() == [[5, 2, 3.5], [10, 2, 5], [16, 16, 16], [24, 24, 24]]


def test_monte_carlo_golden() -> None:
    """24, 4 + 12, 2 + 8, 1 + 5 with the bootstrap 32 behind the rollout; 2 and 1 + 1; 2 + 3 and 1 + 5/2."""
    found = monte_carlo_target(REWARD, *ENDS, discount=0.5)
    assert found.tolist() == [[6, 2, 3.5], [10, 2, 5], [16, 16, 16], [24, 24, 24]]


def test_gae_golden() -> None:
    """γλ = 1/4, errors (1, 2, 4, 8): 8, 4 + 8/4, 2 + 6/4, 1 + 3.5/4; -2 and 1 - 2/4; 1 and 1 + 1/4.

    In the third column, masking δ with "done" would give -2 at step 1, not cutting the trace 1 + 6/4, and the value of
    the observation after the reset 2 + 8/2 - 4 = 2.
    """
    found = gae(REWARD, VALUE, *ENDS, discount=0.5, trace_decay=0.5)
    assert found.tolist() == [[1.875, 0.5, 1.25], [3.5, -2, 1], [6, 6, 6], [8, 8, 8]]
    targets = td_lambda_target(REWARD, *ENDS, discount=0.5, trace_decay=0.5)
    assert targets.tolist() == [[3.875, 2.5, 3.25], [7.5, 2, 5], [14, 14, 14], [24, 24, 24]]


def test_a_step_that_is_both_is_terminated() -> None:
    """The time limit struck where the task was over: nothing to bootstrap."""
    both = TERMINATED | TRUNCATED
    found = gae(REWARD, VALUE, NEXT_VALUE, both, both, discount=0.5, trace_decay=0.5)
    assert found[1].tolist() == [3.5, -2, -2]


def test_what_is_cut_off_may_be_infinite() -> None:
    """Behind an episode's end, padding neither reaches the episode nor turns it into NaN."""
    padding = torch.tensor([[False], [False], [True], [True]])
    reward, value, after = (x[:, 1:2].masked_fill(padding, torch.inf) for x in (REWARD, VALUE, NEXT_VALUE))
    after[1] = torch.nan  # what a critic says of a terminal observation
    ended = TERMINATED[:, 1:2]
    none = torch.zeros_like(ended)
    assert gae(reward, value, after, ended, none, discount=0.5, trace_decay=0.5)[:2, 0].tolist() == [0.5, -2]
    for target in (
        td_lambda_target(reward, after, ended, none, discount=0.5, trace_decay=1.0),
        n_step_target(reward, after, ended, none, discount=0.5, num_steps=9),
    ):
        assert target[:2, 0].tolist() == [2, 2]


def test_critics_are_constants() -> None:
    value, after = VALUE.clone().requires_grad_(), NEXT_VALUE.clone().requires_grad_()
    ends = (after, TERMINATED, TRUNCATED)
    for found in (
        td0_target(REWARD, after, TERMINATED, discount=0.5),
        td_error(REWARD, value, after, TERMINATED, discount=0.5),
        n_step_target(REWARD, *ends, discount=0.5, num_steps=2),
        td_lambda_target(REWARD, *ends, discount=0.5, trace_decay=0.5),
        monte_carlo_target(REWARD, *ends, discount=0.5),
        gae(REWARD, value, *ends, discount=0.5, trace_decay=0.5),
    ):
        assert not found.requires_grad


# --- by their definitions ---------------------------------------------------------------------------------------------


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, float]:
    """Rewards, values, next values, both kinds of end, a discount and a trace decay."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 3)))
    numbers = [torch.from_numpy(draw(hnp.arrays("float64", shape, elements=st.floats(-5, 5)))) for _ in range(3)]
    ends = [torch.from_numpy(draw(hnp.arrays(bool, shape))) for _ in range(2)]
    unit = st.floats(0, 1)
    return numbers[0], numbers[1], numbers[2], ends[0], ends[1], draw(unit), draw(unit)


@settings(max_examples=100)
@given(rollouts(), st.integers(1, 7))
def test_targets_are_the_sums_of_their_definition(
    case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, float], num_steps: int
) -> None:
    """Term by term: n rewards and a bootstrap; the λ-return as a mean of n-step ones; GAE as a sum of errors."""
    reward, value, after, terminated, truncated, discount, decay = case
    horizon, width = reward.shape
    ends = (after, terminated, truncated)
    by_n, by_lambda, advantage = torch.zeros_like(reward), torch.zeros_like(reward), torch.zeros_like(reward)
    for n in range(width):
        for t in range(horizon):
            last = next((k for k in range(t, horizon) if terminated[k, n] or truncated[k, n]), horizon - 1)

            def steps(count: int, t: int = t, n: int = n, last: int = last) -> float:
                end = min(t + count - 1, last)
                tail = 0.0 if terminated[end, n] else float(after[end, n])
                rewards = sum(discount ** (k - t) * float(reward[k, n]) for k in range(t, end + 1))
                return rewards + discount ** (end - t + 1) * tail

            def error(k: int, n: int = n) -> float:
                tail = 0.0 if terminated[k, n] else float(after[k, n])
                return float(reward[k, n]) + discount * tail - float(value[k, n])

            length = last - t + 1
            by_n[t, n] = steps(num_steps)
            mixed = sum((1 - decay) * decay ** (m - 1) * steps(m) for m in range(1, length))
            by_lambda[t, n] = mixed + decay ** (length - 1) * steps(length)
            advantage[t, n] = sum((discount * decay) ** (k - t) * error(k) for k in range(t, last + 1))
    assert off_by(n_step_target(reward, *ends, discount=discount, num_steps=num_steps), by_n) < 1e-12
    target = td_lambda_target(reward, *ends, discount=discount, trace_decay=decay)
    assert off_by(target, by_lambda) < 1e-12
    found = gae(reward, value, *ends, discount=discount, trace_decay=decay)
    assert off_by(found, advantage) < 1e-12
    # A critic gives one value to a state, be it the next one or the present one; then the two are one thing.
    after = torch.where(terminated | truncated, after, torch.cat([value[1:], after[-1:]]))
    ends = (after, terminated, truncated)
    target = td_lambda_target(reward, *ends, discount=discount, trace_decay=decay)
    found = gae(reward, value, *ends, discount=discount, trace_decay=decay)
    assert off_by(found, target - value) < 1e-12


@settings(max_examples=50)
@given(rollouts())
def test_their_limits(case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, float]) -> None:
    """λ = 0 and one step are TD(0); λ = 1 and many steps Monte Carlo, and with zeros to bootstrap the reward-to-go."""
    reward, _, after, terminated, truncated, discount, _ = case
    ends = (after, terminated, truncated)
    td0 = td0_target(reward, after, terminated, discount=discount)
    assert off_by(td_lambda_target(reward, *ends, discount=discount, trace_decay=0), td0) < 1e-12
    assert off_by(n_step_target(reward, *ends, discount=discount, num_steps=1), td0) < 1e-12
    whole = monte_carlo_target(reward, *ends, discount=discount)
    assert off_by(n_step_target(reward, *ends, discount=discount, num_steps=99), whole) < 1e-12
    limited = monte_carlo_target(reward, torch.zeros_like(reward), terminated, truncated, discount=discount)
    assert off_by(limited, reward_to_go(reward, discount=discount, done=terminated | truncated)) < 1e-12


# --- in expectation ---------------------------------------------------------------------------------------------------


def critic(task: Task, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values at, and behind, each step of each episode, from a table over clocked states."""
    return values[task.clocked_states], values[task.next_states]


def exact_values(task: Task) -> Tensor:
    mdp, table = task.clocked(task.log_pi.detach())
    return mdp.state_values(table)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows", [2, 3])
def test_with_exact_values_every_target_is_of_q(seed: int, rows: int) -> None:
    """E[target_t | s_t, a_t] = Q_t(s_t, a_t), in whole episodes, and where all are cut after two steps (rows = 2)."""
    task = random_task(seed, horizon=3)
    mdp, table = task.clocked(task.log_pi.detach())
    q = mdp.action_values(table)
    chance = task.found.log_prob(task.log_pi).exp().detach()
    _, after = critic(task, exact_values(task))
    terminated, cut = task.found.done[:rows], torch.zeros_like(task.found.done[:rows])
    cut[-1] = ~terminated[-1]
    reward, ends = task.found.rewards[:rows], (after[:rows], terminated, cut)
    targets = {
        "TD(0)": td0_target(reward, *ends[:2], discount=0.9),
        "2 steps": n_step_target(reward, *ends, discount=0.9, num_steps=2),
        "lambda": td_lambda_target(reward, *ends, discount=0.9, trace_decay=0.7),
        "Monte Carlo": monte_carlo_target(reward, *ends, discount=0.9),
    }
    state, action = task.clocked_states[:rows], task.found.actions[:rows]
    for name, target in targets.items():
        miss = (chance * (target - q[state, action])).masked_fill(~task.found.mask[:rows], 0.0)
        total = torch.zeros_like(q).index_put((state, action), miss, accumulate=True)
        assert total.abs().max() < EXACT, name


def gae_gradient(task: Task, values: Tensor, trace_decay: float, *, factors: bool = True) -> Tensor:
    """Differentiate Σ_t γ^t A_t log π_t on average, with a critic given as a table."""
    value, after = critic(task, values)
    done = task.found.done
    none = torch.zeros_like(done)
    advantage = gae(task.found.rewards, value, after, done, none, discount=task.discount, trace_decay=trace_decay)
    weight = task.factors if factors else torch.ones_like(task.factors)
    advantage = (weight * advantage).masked_fill(~task.found.mask, 0.0)
    return task.expected(reinforce(task.log_prob, advantage).sum(0))


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_is_the_gradient_if_the_critic_is_exact_or_lambda_one(seed: int) -> None:
    """∇J for every λ with exact values, and with λ = 1 for any critic."""
    task = random_task(seed, horizon=3)
    exact, anything = exact_values(task), torch.randn(10, dtype=torch.float64)
    for decay in (0.0, 0.5, 1.0):
        assert off_by(gae_gradient(task, exact, decay), task.exact) < EXACT
    assert off_by(gae_gradient(task, anything, 1.0), task.exact) < EXACT


def test_gae_with_lambda_below_one_believes_the_critic() -> None:
    """Ending at once pays 1/2, going on 1/2 on average: ∇J = (0, 1/8) in the logits of action 1.

    A critic that says 1 of the state ahead, and 0 of the others, makes going on worth (1-λ) + λ/2: with λ = 1/2 the
    slope in state 0 is 1/4 (3/4 - 1/2) = 1/16 in the place of 0, with λ = 0 it is 1/8. State 1 stays right.
    """
    task = short_or_long()
    values = torch.zeros(7, dtype=torch.float64)
    values[4] = 1.0  # state 1 at time 1
    for decay, slope in ((1.0, 0.0), (0.5, 1 / 16), (0.0, 1 / 8)):
        assert off_by(gae_gradient(task, values, decay)[:2, 1], double([slope, 1 / 8])) < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_without_the_discount_of_time_is_another_vector(seed: int) -> None:
    """γ^t dropped, as is common: the late steps weigh too much, even with exact values."""
    task = random_task(seed, horizon=3)
    assert apart(gae_gradient(task, exact_values(task), 0.5, factors=False), task.exact) > 0.02


# --- bad input --------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "td0_target": lambda r, v, a, b: td0_target(r, v, a, discount=0.5),
    "td_error": lambda r, v, a, b: td_error(r, v, v, a, discount=0.5),
    "n_step_target": lambda r, v, a, b: n_step_target(r, v, a, b, discount=0.5, num_steps=2),
    "td_lambda_target": lambda r, v, a, b: td_lambda_target(r, v, a, b, discount=0.5, trace_decay=0.5),
    "gae": lambda r, v, a, b: gae(r, v, v, a, b, discount=0.5, trace_decay=0.5),
}


@pytest.mark.production
@pytest.mark.parametrize("name", CALLS)
def test_shapes_are_checked(name: str) -> None:
    """Nothing is broadcast: [T, N] all of them, and masks that are masks."""
    call = CALLS[name]
    with pytest.raises(ShapeError, match=rf"{name}|td0_target[\s\S]*`reward`[\s\S]*unsqueeze"):
        call(REWARD[:, 0], VALUE[:, 0], NONE[:, 0], NONE[:, 0])
    with pytest.raises(ShapeError, match=r"`(next_)?value`[\s\S]*\[4, 3\][\s\S]*\[4, 1\]"):
        call(REWARD, VALUE[:, :1], NONE, NONE)
    with pytest.raises(ShapeError, match=r"`terminated`[\s\S]*T=4, N=3[\s\S]*\[4, 1\]"):
        call(REWARD, VALUE, NONE[:, :1], NONE)
    with pytest.raises(ShapeError, match=r"`terminated` is not a mask[\s\S]*bool\(\)"):
        call(REWARD, VALUE, NONE.double(), NONE)
    if name not in ("td0_target", "td_error"):
        with pytest.raises(ShapeError, match=r"`truncated`[\s\S]*T=4, N=3"):
            call(REWARD, VALUE, NONE, NONE[:2])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_coefficients_are_checked(value: float) -> None:
    with pytest.raises(OptionError, match="`discount`"):
        gae(REWARD, VALUE, *ENDS, discount=value, trace_decay=0.5)
    with pytest.raises(OptionError, match="`discount`"):
        td0_target(REWARD, NEXT_VALUE, TERMINATED, discount=value)
    with pytest.raises(OptionError, match="`trace_decay`"):
        gae(REWARD, VALUE, *ENDS, discount=0.5, trace_decay=value)
    with pytest.raises(OptionError, match="`trace_decay`"):
        td_lambda_target(REWARD, *ENDS, discount=0.5, trace_decay=value)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_at_least_one_step(num_steps: int) -> None:
    with pytest.raises(OptionError, match=r"`num_steps`[\s\S]*at least 1"):
        n_step_target(REWARD, *ENDS, discount=0.5, num_steps=num_steps)
