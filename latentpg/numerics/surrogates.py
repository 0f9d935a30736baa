r"""Surrogates: scalars per row whose gradient is used as the policy gradient, and the ratios they are made of.

Every surrogate takes two tensors of exactly the same shape (``[B]`` rows or ``[T, N]`` steps; the annotations write it
``*B``) and returns **rows to maximise** of that shape; the learner takes the mean. Advantages are constants here: they
are detached, so that a critic never learns through a surrogate. Shapes must be equal, because ``[B, 1]`` times ``[B]``
would silently be ``[B, B]``.

The off-policy helpers turn log ratios ``[T, N]``, one episode a column,
:math:`\ell_t = \log\pi_{new}(a_t|s_t) - \log\pi_{old}(a_t|s_t)`, into the ratio a reward or step is weighted with.
Steps behind the end of an episode are switched off by ``mask``. Samples come from the old policy, which must give mass
to every action that the new one takes.

For sums over the steps of an episode that the old policy sampled: is the expected gradient
:math:`\nabla J(\pi_{new})` at *any* new policy, with :math:`J = E[\sum_t\gamma^t r_t]`?

=====================================================================================  =======================
sum                                                                                    expected gradient
=====================================================================================  =======================
:math:`\rho_{0:T-1}\,R`, with :func:`trajectory_ratio` and the episode's return        :math:`\nabla J`
:math:`\sum_t \rho_{0:t}\,\gamma^t r_t`, with :func:`per_decision_ratio`               :math:`\nabla J`
:math:`\sum_t \rho_{0:t}\,\gamma^t Q^{new}(s_t,a_t)`, :math:`\rho_{0:t-1}` detached    :math:`\nabla J`
the same with the raw reward-to-go :math:`G_t` for :math:`Q^{new}`                     **not** :math:`\nabla J`
:math:`\sum_t \rho_t\,\gamma^t A^{old}(s_t,a_t)`, with :func:`step_ratio`              only where new = old
=====================================================================================  =======================

The second has, as a rule, less variance than the first. The fourth fails because :math:`G_t` is a sample of
:math:`Q^{old}`: the old policy acted after step ``t``.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError


def reinforce(log_prob: Float[Tensor, "*B"], advantage: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Return the score-function surrogate :math:`\mathrm{sg}[A]\,\log\pi(a|s)`.

    Its expected gradient, summed over the steps of an on-policy episode, is :math:`\nabla J` when the advantage is the
    total return or the reward-to-go with :math:`\gamma^t`, less any function of the state. Its *value* means nothing.
    Valid only on-policy. ``log_prob`` may be an estimate: what counts is its gradient.

    Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    1992.

    >>> log_prob = torch.tensor([-1.0, -2.0], requires_grad=True)
    >>> reinforce(log_prob, torch.tensor([3.0, -1.0])).sum().backward()
    >>> log_prob.grad.tolist()
    [3.0, -1.0]
    """
    _same_shape("reinforce()", "log_prob", log_prob, "advantage", advantage)
    return advantage.detach() * log_prob


def importance_weighted(ratio: Float[Tensor, "*B"], advantage: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Return the importance-weighted surrogate :math:`\rho\,\mathrm{sg}[A]`.

    Its gradient is :math:`\rho A\nabla\log\pi_{new}`; where new = old, that is :func:`reinforce`'s. Away from there the
    expected gradient is :math:`\nabla J(\pi_{new})` or not according to which ratio meets which credit: see the table
    at the top of this module. With :func:`trajectory_ratio` and returns, or :func:`per_decision_ratio` and
    :math:`\gamma^t r_t`, the value is unbiased for :math:`J(\pi_{new})` too.

    Source: D. Precup, R. S. Sutton and S. Singh, "Eligibility traces for off-policy policy evaluation", 2000.

    >>> importance_weighted(torch.tensor([0.5, 2.0]), torch.tensor([4.0, -1.0])).tolist()
    [2.0, -2.0]
    """
    _same_shape("importance_weighted()", "ratio", ratio, "advantage", advantage)
    return ratio * advantage.detach()


def ppo_clip(ratio: Float[Tensor, "*B"], advantage: Float[Tensor, "*B"], *, epsilon: float) -> Float[Tensor, "*B"]:
    r"""Return PPO's clipped surrogate :math:`\min(\rho A,\ \mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon)\,A)`.

    Where new = old its gradient is :func:`reinforce`'s, hence :math:`\nabla J` under the conditions given there.
    Anywhere else it is **not** :math:`\nabla J(\pi_{new})`: it weights with single-step ratios, keeps the old policy's
    advantages and state visits, and drops the gradient of rows that have already moved past the clip in their
    advantage's direction. It is nonlinear in the ratio, so that an unbiased noisy ratio gives a biased surrogate.

    Source: J. Schulman et al., "Proximal policy optimization algorithms", 2017, Equation 7.

    >>> ratio = torch.tensor([0.5, 1.5, 0.5, 1.5])
    >>> [round(row, 4) for row in ppo_clip(ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), epsilon=0.2).tolist()]
    [0.5, 1.2, -0.8, -1.5]
    """
    _same_shape("ppo_clip()", "ratio", ratio, "advantage", advantage)
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise OptionError("ppo_clip()", "`epsilon`", expected="a positive number", got=repr(epsilon), fix="epsilon=0.2")
    constant = advantage.detach()
    clipped = torch.clamp(ratio, 1.0 - epsilon, 1.0 + epsilon)
    return torch.minimum(ratio * constant, clipped * constant)


def step_ratio(log_ratio: Float[Tensor, "T N"], *, mask: Bool[Tensor, "T N"] | None = None) -> Float[Tensor, "T N"]:
    r"""Return the ratio of each step alone, :math:`\rho_t = \exp \ell_t`, and 1 where masked.

    With the old policy's advantages the surrogate :math:`\sum_t\gamma^t\rho_t A^{old}_t` has gradient :math:`\nabla J`
    where new = old, and not elsewhere: the states are still visited, and the future still valued, as under the old
    policy.

    Source: S. Kakade and J. Langford, "Approximately optimal approximate reinforcement learning", 2002.

    >>> step_ratio(torch.tensor([[2.0], [3.0]]).log()).squeeze(1).tolist()
    [2.0, 3.0]
    """
    return _masked("step_ratio()", log_ratio, mask).exp()


def per_decision_ratio(
    log_ratio: Float[Tensor, "T N"], *, mask: Bool[Tensor, "T N"] | None = None
) -> Float[Tensor, "T N"]:
    r"""Return the cumulative ratio up to and including each step, :math:`\rho_{0:t} = \exp\sum_{k\le t}\ell_k`.

    It belongs to the *reward* of step ``t``: :math:`\sum_t\rho_{0:t}\gamma^t r_t` is unbiased for :math:`J(\pi_{new})`
    and so is its gradient for :math:`\nabla J(\pi_{new})`. Multiplying it by the raw reward-to-go of step ``t`` is a
    common mistake: later rewards then lack the ratios of their own steps. A masked step keeps the ratio of the last
    acted one.

    Source: D. Precup, R. S. Sutton and S. Singh, "Eligibility traces for off-policy policy evaluation", 2000.

    >>> [round(rho, 4) for rho in per_decision_ratio(torch.tensor([[2.0], [3.0]]).log()).squeeze(1).tolist()]
    [2.0, 6.0]
    """
    return _masked("per_decision_ratio()", log_ratio, mask).cumsum(0).exp()


def trajectory_ratio(
    log_ratio: Float[Tensor, "T N"], *, mask: Bool[Tensor, "T N"] | None = None
) -> Float[Tensor, " N"]:
    r"""Return the ratio of whole episodes, :math:`\rho_{0:T-1} = \exp\sum_t\ell_t`; the dynamics cancel.

    Its mean under the old policy is 1. Times the episode's return it is unbiased for :math:`J(\pi_{new})`, and so is
    its gradient for :math:`\nabla J(\pi_{new})`; the variance grows exponentially with T as a rule.

    >>> [round(rho, 4) for rho in trajectory_ratio(torch.tensor([[2.0], [3.0]]).log()).tolist()]
    [6.0]
    """
    return _masked("trajectory_ratio()", log_ratio, mask).sum(0).exp()


def _masked(where: str, log_ratio: Tensor, mask: Tensor | None) -> Tensor:
    if log_ratio.ndim != 2:
        raise ShapeError(
            where,
            "`log_ratio`",
            expected="[T, N]: time first, one episode a column",
            got=str(list(log_ratio.shape)),
            fix="for one episode: log_ratio.unsqueeze(-1)" if log_ratio.ndim == 1 else None,
        )
    if mask is None:
        return log_ratio
    _same_shape(where, "log_ratio", log_ratio, "mask", mask)
    return log_ratio.masked_fill(~mask, 0.0)


def _same_shape(where: str, name: str, reference: Tensor, other_name: str, other: Tensor) -> None:
    if other.shape == reference.shape:
        return
    trailing_one = other.shape[:-1] == reference.shape and other.shape[-1:] == (1,)
    raise ShapeError(
        where,
        f"`{other_name}`",
        expected=f"{list(reference.shape)}, the shape of `{name}`",
        got=str(list(other.shape)),
        likely="a trailing dimension of size one, which would broadcast" if trailing_one else None,
        fix=f"{other_name}.squeeze(-1)" if trailing_one else None,
    )
