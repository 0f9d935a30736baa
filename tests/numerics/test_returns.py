"""Discounted returns against written-out arithmetic, and against their definition as sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.returns import (
    discount_factors,
    discounted_return,
    discounted_reward_to_go,
    reward_to_go,
)

# Column 0: one episode of four steps. Column 1: an episode of two steps, then another of two.
REWARD = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0], [8.0, 8.0]], dtype=torch.float64)
DONE = torch.tensor([[False, False], [False, True], [False, False], [True, True]])


def test_reward_to_go_golden() -> None:
    """Discount 1/2: 8; 4 + 8/2 = 8; 2 + 8/2 = 6; 1 + 6/2 = 4; and, cut after step 1: 8; 8; 2; 1 + 2/2 = 2."""
    expected = [[4.0, 2.0], [6.0, 2.0], [8.0, 8.0], [8.0, 8.0]]
    assert reward_to_go(REWARD, discount=0.5, done=DONE).tolist() == expected


def test_discounted_reward_to_go_golden() -> None:
    """The same times 1, 1/2, 1/4, 1/8, the second episode of column 1 counting from its own start."""
    expected = [[4.0, 2.0], [3.0, 1.0], [2.0, 8.0], [1.0, 4.0]]
    assert discounted_reward_to_go(REWARD, discount=0.5, done=DONE).tolist() == expected


def test_discounted_return_is_the_first_episodes() -> None:
    """1 + 2/2 + 4/4 + 8/8 = 4, and 1 + 2/2 = 2 for the episode of two steps."""
    assert discounted_return(REWARD, discount=0.5, done=DONE).tolist() == [4.0, 2.0]


def test_discount_factors_restart_with_the_episode() -> None:
    """1, 1/2, 1/4, 1/8 in one episode; 1, 1/2, 1, 1/2 in two."""
    expected = [[1.0, 1.0], [0.5, 0.5], [0.25, 1.0], [0.125, 0.5]]
    assert discount_factors(DONE, discount=0.5).tolist() == expected
    assert discount_factors(DONE, discount=0.5).dtype == torch.get_default_dtype()
    assert discount_factors(DONE, discount=0.5, dtype=torch.float64).dtype == torch.float64


def test_discounts_of_zero_and_one() -> None:
    """Discount 0 keeps the reward alone; discount 1 sums; no ``done`` means one episode a column."""
    assert torch.equal(reward_to_go(REWARD, discount=0.0), REWARD)
    assert reward_to_go(REWARD, discount=1.0)[:, 0].tolist() == [15.0, 14.0, 12.0, 8.0]
    assert torch.equal(discounted_reward_to_go(REWARD, discount=1.0), reward_to_go(REWARD, discount=1.0))


def test_padding_never_reaches_the_episode() -> None:
    """Whatever lies behind ``done``, infinities included, leaves the returns before it as they were."""
    padded = REWARD.clone()
    padded[2:, 1] = torch.inf
    for function in (reward_to_go, discounted_reward_to_go):
        assert torch.equal(function(padded, discount=0.5, done=DONE)[:2], function(REWARD, discount=0.5, done=DONE)[:2])
    assert discounted_return(padded, discount=0.5, done=DONE).tolist() == [4.0, 2.0]


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Rewards, episode ends and a discount."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 3)))
    reward = draw(hnp.arrays("float64", shape, elements=st.floats(-5, 5)))
    done = draw(hnp.arrays(bool, shape))
    return torch.from_numpy(reward), torch.from_numpy(done), draw(st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(rollouts())
def test_returns_are_the_sums_of_their_definition(case: tuple[torch.Tensor, torch.Tensor, float]) -> None:
    """Each entry equals the explicit double sum, term by term."""
    reward, done, discount = case
    horizon, width = reward.shape
    undiscounted, discounted = torch.zeros_like(reward), torch.zeros_like(reward)
    for n in range(width):
        for t in range(horizon):
            start = max([k + 1 for k in range(t) if done[k, n]], default=0)
            end = min([k for k in range(t, horizon) if done[k, n]], default=horizon - 1)
            undiscounted[t, n] = sum(discount ** (k - t) * reward[k, n] for k in range(t, end + 1))
            discounted[t, n] = sum(discount ** (k - start) * reward[k, n] for k in range(t, end + 1))
    assert (reward_to_go(reward, discount=discount, done=done) - undiscounted).abs().max() < 1e-12
    assert (discounted_reward_to_go(reward, discount=discount, done=done) - discounted).abs().max() < 1e-12
    assert (discounted_return(reward, discount=discount, done=done) - undiscounted[0]).abs().max() < 1e-12


@pytest.mark.production
def test_shapes_are_checked() -> None:
    """Rewards are [T, N]; the mask is of the same shape and boolean."""
    with pytest.raises(ShapeError, match=r"`reward`[\s\S]*unsqueeze"):
        reward_to_go(REWARD[:, 0], discount=0.5)
    with pytest.raises(ShapeError, match=r"T >= 1"):
        discounted_return(REWARD[:0], discount=0.5)
    with pytest.raises(ShapeError, match=r"`done`[\s\S]*T=4, N=2[\s\S]*\[4, 1\]"):
        reward_to_go(REWARD, discount=0.5, done=DONE[:, :1])
    with pytest.raises(ShapeError, match=r"not a mask"):
        reward_to_go(REWARD, discount=0.5, done=DONE.double())


@pytest.mark.parametrize("discount", [-0.1, 1.1, float("nan")])
def test_discount_is_checked(discount: float) -> None:
    """A discount lies in [0, 1]."""
    with pytest.raises(OptionError, match="discount"):
        reward_to_go(REWARD, discount=discount)
    with pytest.raises(OptionError, match="discount"):
        discount_factors(DONE, discount=discount)
