r"""Targets and advantages of value learning, with termination and truncation told apart.

All read time-major tensors ``[T, N]`` of one shape:

- ``reward[t, n]``;
- ``value[t, n]``: the critic at the observation that was acted on;
- ``next_value[t, n]``: the critic at the *true* next observation, the final one of an episode included, and not at the
  first observation of the next episode that a vector environment may return in its place;
- ``terminated[t, n]``: the task is over, nothing can be earned behind it, and the bootstrap is 0;
- ``truncated[t, n]``: the episode was cut (a time limit), but the task would have gone on, and the bootstrap is
  ``next_value``.

So the one-step error masks with ``terminated`` alone, and sums over steps stop at ``terminated | truncated``. The last
row is cut for every column: a rollout that stops there bootstraps from its ``next_value``. Columns may hold several
episodes one after the other. What lies behind the last one's end must still be finite or cut off by it.

Critics are constants here: nothing that is returned sends a gradient, as the bootstrap of a temporal difference must
not.

==========================  ==========================================  ================================================
target of V                 of step ``t``                               unbiased for :math:`Q^\pi(s_t,a_t)`
==========================  ==========================================  ================================================
:func:`td0_target`          :math:`r_t+\gamma V(s_{t+1})`               only with the exact V
:func:`n_step_target`       n rewards, then :math:`V(s_{t+n})`          only with the exact V
:func:`td_lambda_target`    their :math:`\lambda`-weighted mean         only with the exact V, or :math:`\lambda=1`
:func:`monte_carlo_target`  all rewards up to the episode's end         with any V, but for cuts, which bootstrap
==========================  ==========================================  ================================================
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.numerics._checks import fraction, mask_of, same_shape, time_major


def td0_target(
    reward: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    *,
    discount: float | int,
) -> Float[Tensor, "T N"]:
    r"""Return :math:`r_t + \gamma\,(1-\mathrm{terminated}_t)\,V(s_{t+1})`.

    Truncation changes nothing here: the true next observation's value stands for what was cut off.

    Source: R. S. Sutton, "Learning to predict by the methods of temporal differences", 1988.

    >>> ended = torch.tensor([[False], [True]])
    >>> td0_target(torch.ones(2, 1), torch.full((2, 1), 4.0), ended, discount=0.5).squeeze(1).tolist()
    [3.0, 1.0]
    """
    _check("td0_target()", reward, {"next_value": next_value}, {"terminated": terminated}, discount)
    return reward + discount * next_value.detach().masked_fill(terminated, 0.0)


def td_error(
    reward: Float[Tensor, "T N"],
    value: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    *,
    discount: float | int,
) -> Float[Tensor, "T N"]:
    r"""Return :math:`\delta_t = r_t + \gamma\,(1-\mathrm{terminated}_t)\,V(s_{t+1}) - V(s_t)`, the one-step advantage.

    With the exact V it is an unbiased advantage, and with :math:`\gamma^t` REINFORCE on it is :math:`\nabla J` in
    expectation; with an inexact one it is not. A constant, as all that this module returns.

    >>> ended = torch.tensor([[False], [True]])
    >>> value, next_value = torch.full((2, 1), 2.0), torch.full((2, 1), 4.0)
    >>> td_error(torch.ones(2, 1), value, next_value, ended, discount=0.5).squeeze(1).tolist()
    [1.0, -1.0]
    """
    same_shape("td_error()", "reward", reward, "value", value)
    return td0_target(reward, next_value, terminated, discount=discount) - value.detach()


def n_step_target(
    reward: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    discount: float | int,
    num_steps: int,
) -> Float[Tensor, "T N"]:
    r"""Return :math:`r_t + \dots + \gamma^{n-1} r_{t+n-1} + \gamma^n V(s_{t+n})`, n = ``num_steps``.

    Fewer rewards where the episode ends or the rollout stops first: then the sum ends there, with the bootstrap of
    that step. Computed by :math:`G^{(n)}_t = r_t + \gamma G^{(n-1)}_{t+1}`, in n passes over all steps at once.

    Source: C. J. C. H. Watkins, "Learning from delayed rewards", 1989.

    >>> reward, none = torch.tensor([[1.0], [2.0], [4.0]]), torch.zeros(3, 1, dtype=torch.bool)
    >>> n_step_target(reward, torch.full((3, 1), 8.0), none, none, discount=0.5, num_steps=2).squeeze(1).tolist()
    [4.0, 6.0, 8.0]
    """
    where = "n_step_target()"
    _check(where, reward, {"next_value": next_value}, {"terminated": terminated, "truncated": truncated}, discount)
    if num_steps < 1:
        raise OptionError(where, "`num_steps`", expected="at least 1", got=repr(num_steps))
    cut, bootstrap = terminated | truncated, next_value.detach()
    target = td0_target(reward, next_value, terminated, discount=discount)
    for _ in range(min(num_steps, len(reward)) - 1):
        later = torch.cat([target[1:], bootstrap[-1:]])
        later = torch.where(cut, bootstrap, later).masked_fill(terminated, 0.0)
        target = reward + discount * later
    return target


def td_lambda_target(
    reward: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    discount: float | int,
    trace_decay: float | int,
) -> Float[Tensor, "T N"]:
    r"""Return the λ-return, :math:`G_t = r_t + \gamma\,[(1-\lambda)V(s_{t+1}) + \lambda G_{t+1}]`, λ = ``trace_decay``.

    :math:`G_{t+1}` is :math:`V(s_{t+1})` where the episode is cut, and the bracket 0 where it terminated. λ = 0 gives
    :func:`td0_target`, λ = 1 :func:`monte_carlo_target`. Less :math:`V(s_t)` it is :func:`gae`, provided that
    ``next_value`` of a step that is not cut is ``value`` of the next one, as it is if one critic gave both.

    Source: R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018, Equation 12.18.

    >>> reward, none = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1, dtype=torch.bool)
    >>> value = torch.full((2, 1), 8.0)
    >>> td_lambda_target(reward, value, none, none, discount=0.5, trace_decay=0.5).squeeze(1).tolist()
    [4.5, 6.0]
    """
    where = "td_lambda_target()"
    _check(where, reward, {"next_value": next_value}, {"terminated": terminated, "truncated": truncated}, discount)
    fraction(where, "trace_decay", trace_decay)
    cut, bootstrap = terminated | truncated, next_value.detach()
    result = torch.empty_like(bootstrap)
    later = bootstrap[-1]
    for t in reversed(range(len(reward))):
        mixed = torch.lerp(bootstrap[t], torch.where(cut[t], bootstrap[t], later), trace_decay)
        later = reward[t] + discount * mixed.masked_fill(terminated[t], 0.0)
        result[t] = later
    return result


def monte_carlo_target(
    reward: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    discount: float | int,
) -> Float[Tensor, "T N"]:
    r"""Return the discounted sum of all rewards up to the episode's end, with a bootstrap where it was only cut.

    For the returns of the *time-limited* task, in which a time limit ends what can be earned, use
    :func:`~latentpg.numerics.returns.reward_to_go`, or count the limit as termination.

    Source: F. Pardo et al., "Time limits in reinforcement learning", 2018.

    >>> reward = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    >>> terminated = torch.tensor([[False, False], [True, False]])
    >>> value = torch.full((2, 2), 8.0)
    >>> monte_carlo_target(reward, value, terminated, ~terminated & False, discount=0.5).tolist()
    [[2.0, 4.0], [2.0, 6.0]]
    """
    return td_lambda_target(reward, next_value, terminated, truncated, discount=discount, trace_decay=1.0)


def gae(
    reward: Float[Tensor, "T N"],
    value: Float[Tensor, "T N"],
    next_value: Float[Tensor, "T N"],
    terminated: Bool[Tensor, "T N"],
    truncated: Bool[Tensor, "T N"],
    *,
    discount: float | int,
    trace_decay: float | int,
) -> Float[Tensor, "T N"]:
    r"""Return the generalised advantage estimate :math:`A_t = \delta_t + \gamma\lambda(1-\mathrm{done}_t)A_{t+1}`.

    :math:`\delta` is :func:`td_error`'s, masked with ``terminated``; the trace is cut where ``terminated | truncated``.
    Confusing the two either bootstraps from a terminal state or lets one episode's errors run into the one before.

    Expected gradient of REINFORCE on it, with the factor :math:`\gamma^t`: :math:`\nabla J` with λ = 1 and any critic
    (which is a baseline then), and with any λ if the critic is exact. With λ < 1 and an inexact critic it is another
    vector; so it is without :math:`\gamma^t`, which is the common use. All of this is about whole episodes: where one
    is truncated, an exact critic keeps the credit of the steps before the cut right, and the later steps are missing.

    Source: J. Schulman et al., "High-dimensional continuous control using generalized advantage estimation", 2016,
    Equation 16.

    >>> reward, value = torch.ones(2, 1), torch.full((2, 1), 2.0)
    >>> none = torch.zeros(2, 1, dtype=torch.bool)
    >>> next_value = torch.full((2, 1), 4.0)
    >>> gae(reward, value, next_value, none, none, discount=0.5, trace_decay=0.5).squeeze(1).tolist()
    [1.25, 1.0]
    """
    where = "gae()"
    inputs = {"value": value, "next_value": next_value}
    _check(where, reward, inputs, {"terminated": terminated, "truncated": truncated}, discount)
    fraction(where, "trace_decay", trace_decay)
    error = td_error(reward, value, next_value, terminated, discount=discount)
    cut = terminated | truncated
    result = torch.empty_like(error)
    later = torch.zeros_like(error[0])
    for t in reversed(range(len(reward))):
        # a fill and not a product, so that what is cut off may be infinite
        later = error[t] + (discount * trace_decay) * later.masked_fill(cut[t], 0.0)
        result[t] = later
    return result


def _check(
    where: str, reward: Tensor, others: dict[str, Tensor], masks: dict[str, Tensor], discount: float | int
) -> None:
    time_major(where, "reward", reward)
    for name, steps in others.items():
        same_shape(where, "reward", reward, name, steps)
    for name, mask in masks.items():
        mask_of(where, "reward", reward, name, mask)
    fraction(where, "discount", discount)
