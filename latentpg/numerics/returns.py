r"""Discounted returns of ``[T, N]`` rollouts, and the two ways of discounting the policy gradient.

Every function reads rewards ``[T, N]`` (time first, environments second) and an optional ``done`` mask of the same
shape: ``done[t, n]`` says that step ``t`` was the last of its episode, so nothing after it is counted for it. A column
may hold several episodes one after the other. Rewards of padding behind an episode's end never reach the episode.

What is credited to the action of step ``t``, and the gradient
:math:`E[\sum_t \nabla\log\pi(a_t|s_t)\,\cdot\,]` that it gives for :math:`J = E[\sum_t \gamma^t r_t]`:

====================================  ========================================  ==================================
credit of step ``t``                  function                                  expected gradient
====================================  ========================================  ==================================
:math:`\sum_k \gamma^k r_k`           :func:`discounted_return`, on every step  :math:`\nabla J`
:math:`\sum_{k\ge t} \gamma^k r_k`    :func:`discounted_reward_to_go`           :math:`\nabla J`
:math:`\sum_{k\ge t}\gamma^{k-t}r_k`  :func:`reward_to_go`                      not :math:`\nabla J` unless γ = 1
====================================  ========================================  ==================================

The second has, as a rule, less variance than the first.

``done`` ends the sum for a terminated and for a truncated episode alike. What a truncated episode would still have
earned is lost, so its returns are those of the time-limited task. :mod:`latentpg.numerics.targets` tells the two apart.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.numerics._checks import fraction, mask_of, time_major


def reward_to_go(
    reward: Float[Tensor, "T N"], *, discount: float | int, done: Bool[Tensor, "T N"] | None = None
) -> Float[Tensor, "T N"]:
    r"""Return the reward-to-go :math:`G_t = \sum_{k \ge t} \gamma^{k-t} r_k` of every step.

    Computed backwards, :math:`G_t = r_t + \gamma\,(1 - \mathrm{done}_t)\,G_{t+1}`. :math:`G_t` is an unbiased sample of
    :math:`Q^\pi(s_t, a_t)`. Used as the credit of step ``t`` without the factor :math:`\gamma^t` it does **not** give
    :math:`\nabla J`: late steps count too much, and with parameters shared between states the gradient's sign can be
    wrong. It is what most deep-RL code does all the same; :func:`discounted_reward_to_go` keeps the factor.

    Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    1992; on the missing factor, C. Nota and P. S. Thomas, "Is the policy gradient a gradient?", 2020.

    >>> reward = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    >>> reward_to_go(reward, discount=0.5).squeeze(1).tolist()
    [4.0, 6.0, 8.0, 8.0]
    >>> done = torch.tensor([[False], [True], [False], [True]])
    >>> reward_to_go(reward, discount=0.5, done=done).squeeze(1).tolist()
    [2.0, 2.0, 8.0, 8.0]
    """
    _check("reward_to_go()", reward, done, discount)
    result = torch.empty_like(reward)
    later = torch.zeros_like(reward[0])
    for t in reversed(range(reward.shape[0])):
        if done is not None:
            later = later.masked_fill(done[t], 0.0)
        later = reward[t] + discount * later
        result[t] = later
    return result


def discounted_reward_to_go(
    reward: Float[Tensor, "T N"], *, discount: float | int, done: Bool[Tensor, "T N"] | None = None
) -> Float[Tensor, "T N"]:
    r"""Return :math:`\gamma^t G_t = \sum_{k \ge t} \gamma^k r_k`, with ``t`` counted from the start of the episode.

    As the credit of step ``t`` it gives :math:`\nabla J` exactly in expectation.

    Source: R. S. Sutton et al., "Policy gradient methods for reinforcement learning with function approximation", 2000.

    >>> reward = torch.tensor([[1.0], [2.0], [4.0]])
    >>> discounted_reward_to_go(reward, discount=0.5).squeeze(1).tolist()
    [3.0, 2.0, 1.0]
    """
    returns = reward_to_go(reward, discount=discount, done=done)
    ends = torch.zeros_like(reward, dtype=torch.bool) if done is None else done
    return discount_factors(ends, discount=discount, dtype=reward.dtype) * returns


def discounted_return(
    reward: Float[Tensor, "T N"], *, discount: float | int, done: Bool[Tensor, "T N"] | None = None
) -> Float[Tensor, " N"]:
    r"""Return :math:`R = \sum_t \gamma^t r_t` of the episode that starts each column.

    What follows the first ``done`` of a column (padding, or another episode) is left out. As the credit of *every* step
    of the episode it gives :math:`\nabla J` exactly in expectation; its mean is :math:`J`.

    >>> reward = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    >>> done = torch.tensor([[False, False], [True, False], [False, True]])
    >>> discounted_return(reward, discount=0.5, done=done).tolist()
    [2.0, 3.0]
    """
    return reward_to_go(reward, discount=discount, done=done)[0]


def discount_factors(
    done: Bool[Tensor, "T N"], *, discount: float | int, dtype: torch.dtype | None = None
) -> Float[Tensor, "T N"]:
    r"""Return :math:`\gamma^t` for every step, ``t`` counted from the start of the step's own episode.

    ``dtype`` is torch's default floating type unless given. Multiplying a per-step credit by it (a reward-to-go, or an
    estimate of Q or of the advantage) turns the gradient with the factor dropped into :math:`\nabla J`.

    >>> done = torch.tensor([[False], [True], [False], [False]])
    >>> discount_factors(done, discount=0.5).squeeze(1).tolist()
    [1.0, 0.5, 1.0, 0.5]
    """
    result = torch.ones(done.shape, dtype=dtype, device=done.device)
    _check("discount_factors()", result, done, discount)
    for t in range(1, done.shape[0]):
        result[t] = (discount * result[t - 1]).masked_fill(done[t - 1], 1.0)
    return result


def _check(where: str, reward: Tensor, done: Tensor | None, discount: float | int) -> None:
    time_major(where, "reward", reward)
    if done is not None:
        mask_of(where, "reward", reward, "done", done)
    fraction(where, "discount", discount)
