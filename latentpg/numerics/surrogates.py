r"""Surrogates: scalars per row whose gradient is used as the policy gradient.

Every surrogate takes tensors of exactly the same shape (``[B]`` rows or ``[T, N]`` steps; the annotations write it
``*B``) and returns **rows to maximise** of that shape; the learner takes the mean, or aggregates steps by
:mod:`latentpg.numerics.aggregation`. Advantages are constants here: they are detached, so that a critic never learns
through a surrogate. Shapes must be equal, because ``[B, 1]`` times ``[B]`` would silently be ``[B, B]``.

The ratios come from :mod:`latentpg.numerics.ratios`, which also says which ratio goes with which credit; the four of
them can be imported from here too, since no off-policy surrogate is used without one.

========================================  ==============================  ==========================================
surrogate                                 where new = old                 elsewhere
========================================  ==============================  ==========================================
:func:`reinforce`                         :math:`\nabla J`                not valid: the samples are off-policy
:func:`importance_weighted`               :math:`\nabla J`                :math:`\nabla J` with the right ratio
:func:`ppo_clip`, :func:`ppo_clip_dual`   :math:`\nabla J`                something else
:func:`ppo_kl`                            :math:`\nabla J`                something else
:func:`cispo`                             :math:`\nabla J`                something else
========================================  ==============================  ==========================================

The middle column presumes an advantage that is honest (total return, or reward-to-go with :math:`\gamma^t`, less any
baseline of the state) and rows summed over the steps of an episode.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.numerics._checks import not_negative, positive, same_shape
from latentpg.numerics.ratios import per_decision_ratio, sequence_ratio, step_ratio, trajectory_ratio

__all__ = [
    "cispo",
    "importance_weighted",
    "per_decision_ratio",
    "ppo_clip",
    "ppo_clip_dual",
    "ppo_kl",
    "reinforce",
    "sequence_ratio",
    "step_ratio",
    "trajectory_ratio",
]


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
    same_shape("reinforce()", "log_prob", log_prob, "advantage", advantage)
    return advantage.detach() * log_prob


def importance_weighted(ratio: Float[Tensor, "*B"], advantage: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Return the importance-weighted surrogate :math:`\rho\,\mathrm{sg}[A]`.

    Its gradient is :math:`\rho A\nabla\log\pi_{new}`; where new = old, that is :func:`reinforce`'s. Away from there the
    expected gradient is :math:`\nabla J(\pi_{new})` or not according to which ratio meets which credit: see the table
    at the top of :mod:`latentpg.numerics.ratios`. With :func:`~latentpg.numerics.ratios.trajectory_ratio` and returns,
    or :func:`~latentpg.numerics.ratios.per_decision_ratio` and :math:`\gamma^t r_t`, the value is unbiased for
    :math:`J(\pi_{new})` too.

    Source: D. Precup, R. S. Sutton and S. Singh, "Eligibility traces for off-policy policy evaluation", 2000.

    >>> importance_weighted(torch.tensor([0.5, 2.0]), torch.tensor([4.0, -1.0])).tolist()
    [2.0, -2.0]
    """
    same_shape("importance_weighted()", "ratio", ratio, "advantage", advantage)
    return ratio * advantage.detach()


def ppo_clip(
    ratio: Float[Tensor, "*B"],
    advantage: Float[Tensor, "*B"],
    *,
    epsilon: float | int,
    epsilon_high: float | int | None = None,
) -> Float[Tensor, "*B"]:
    r"""Return PPO's clipped surrogate.

    .. math:: \min(\rho A,\ \mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon_{high})\,A)

    The clip is symmetric unless ``epsilon_high`` is named; a larger one ("clip-higher", 0.28 beside 0.2) leaves room
    for actions of small probability to become likely, which keeps exploration alive.

    Where new = old its gradient is :func:`reinforce`'s, hence :math:`\nabla J` under the conditions given there.
    Anywhere else it is **not** :math:`\nabla J(\pi_{new})`: it weights with single-step ratios, keeps the old policy's
    advantages and state visits, and drops the gradient of rows that have already moved past the clip in their
    advantage's direction. It is nonlinear in the ratio, so that an unbiased noisy ratio gives a biased surrogate.

    Source: J. Schulman et al., "Proximal policy optimization algorithms", 2017, Equation 7; the two bounds, Q. Yu et
    al., "DAPO: an open-source LLM reinforcement learning system at scale", 2025, Equation 10.

    >>> ratio = torch.tensor([0.5, 1.5, 0.5, 1.5])
    >>> advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> [round(row, 4) for row in ppo_clip(ratio, advantage, epsilon=0.2).tolist()]
    [0.5, 1.2, -0.8, -1.5]
    >>> [round(row, 4) for row in ppo_clip(ratio, advantage, epsilon=0.2, epsilon_high=0.4).tolist()]
    [0.5, 1.4, -0.8, -1.5]
    """
    same_shape("ppo_clip()", "ratio", ratio, "advantage", advantage)
    low, high = _clip_range("ppo_clip()", epsilon, epsilon_high)
    constant = advantage.detach()
    return torch.minimum(ratio * constant, torch.clamp(ratio, low, high) * constant)


def ppo_clip_dual(
    ratio: Float[Tensor, "*B"],
    advantage: Float[Tensor, "*B"],
    *,
    epsilon: float | int,
    epsilon_high: float | int | None = None,
    dual: float | int = 3.0,
) -> Float[Tensor, "*B"]:
    r"""Return the dual-clipped surrogate: :func:`ppo_clip`, but never below :math:`cA` where :math:`A < 0`.

    .. math:: \max\big(\min(\rho A,\ \mathrm{clip}(\rho)A),\ cA\big)\ \text{ if } A<0, \qquad c = \mathtt{dual} > 1

    Plain clipping leaves a row with :math:`A<0` unbounded as the ratio grows: one action that became much likelier and
    proved bad dominates the batch. Here it is flat, with no gradient, beyond :math:`\rho = c`. Expected gradient as
    :func:`ppo_clip`'s: :math:`\nabla J` where new = old, since :math:`c > 1`, and something else anywhere else.

    Source: D. Ye et al., "Mastering complex control in MOBA games with deep reinforcement learning", 2020.

    >>> ppo_clip_dual(torch.tensor([2.0, 5.0]), torch.tensor([-1.0, -1.0]), epsilon=0.2).tolist()
    [-2.0, -3.0]
    """
    same_shape("ppo_clip_dual()", "ratio", ratio, "advantage", advantage)
    low, high = _clip_range("ppo_clip_dual()", epsilon, epsilon_high)
    if not (math.isfinite(dual) and dual > 1.0):
        raise OptionError("ppo_clip_dual()", "`dual`", expected="a number above 1", got=repr(dual), fix="dual=3.0")
    constant = advantage.detach()
    clipped = torch.minimum(ratio * constant, torch.clamp(ratio, low, high) * constant)
    return torch.where(constant < 0.0, torch.maximum(clipped, dual * constant), clipped)


def ppo_kl(
    ratio: Float[Tensor, "*B"], advantage: Float[Tensor, "*B"], kl: Float[Tensor, "*B"], *, beta: float | int
) -> Float[Tensor, "*B"]:
    r"""Return PPO's penalised surrogate :math:`\rho A - \beta\,\mathrm{KL}(\pi_{old}\|\pi_{new})`.

    ``kl`` is differentiable and of the direction KL(old || new), as in the paper: in closed form, or by
    :func:`~latentpg.numerics.divergences.kl_old_new`. ``beta`` stays what it is here; between rollouts
    :class:`~latentpg.numerics.controllers.AdaptiveBeta` moves it.

    Where new = old the divergence is at its minimum 0, its gradient vanishes, and the expected gradient is
    :math:`\nabla J` whatever ``beta``. Elsewhere it is that of :func:`importance_weighted` with single-step ratios,
    itself not :math:`\nabla J(\pi_{new})`, less :math:`\beta\nabla\mathrm{KL}(\pi_{old}\|\pi_{new})` at the old
    policy's state visits.

    Source: J. Schulman et al., "Proximal policy optimization algorithms", 2017, Equation 8.

    >>> ppo_kl(torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.5]), beta=4).tolist()
    [4.0]
    """
    same_shape("ppo_kl()", "ratio", ratio, "advantage", advantage)
    same_shape("ppo_kl()", "ratio", ratio, "kl", kl)
    not_negative("ppo_kl()", "beta", beta)
    return ratio * advantage.detach() - beta * kl


def cispo(
    log_prob: Float[Tensor, "*B"],
    ratio: Float[Tensor, "*B"],
    advantage: Float[Tensor, "*B"],
    *,
    epsilon_high: float | int,
    epsilon_low: float | int | None = None,
) -> Float[Tensor, "*B"]:
    r"""Return CISPO's surrogate: REINFORCE weighted with a clipped, constant ratio.

    .. math:: \mathrm{sg}[\mathrm{clip}(\rho, 1-\varepsilon_{low}, 1+\varepsilon_{high})]\,A\log\pi

    No row ever loses its gradient, where :func:`ppo_clip` drops those past the clip. The authors clip from above only,
    which is the default here.

    Where new = old, and wherever no ratio is clipped, the gradient is :func:`importance_weighted`'s; so the expected
    gradient is :math:`\nabla J` where new = old and something else (single-step ratios, biased weights) elsewhere. Its
    *value* means nothing. Without the stop-gradient the ratio's own gradient would add
    :math:`A\log\pi\,\nabla\rho`, which has no meaning.

    Source: MiniMax, "MiniMax-M1: scaling test-time compute efficiently with lightning attention", 2025, Equation 4.

    >>> log_prob = torch.tensor([-1.0, -1.0], requires_grad=True)
    >>> cispo(log_prob, torch.tensor([0.5, 9.0]), torch.ones(2), epsilon_high=2).sum().backward()
    >>> log_prob.grad.tolist()
    [0.5, 3.0]
    """
    where = "cispo()"
    same_shape(where, "log_prob", log_prob, "ratio", ratio)
    same_shape(where, "log_prob", log_prob, "advantage", advantage)
    positive(where, "epsilon_high", epsilon_high, fix="epsilon_high=2.0")
    if epsilon_low is not None:
        positive(where, "epsilon_low", epsilon_low, fix="epsilon_low=None, for no bound below")
    lowest = 0.0 if epsilon_low is None else 1.0 - epsilon_low
    weight = torch.clamp(ratio.detach(), lowest, 1.0 + epsilon_high)
    return weight * advantage.detach() * log_prob


def _clip_range(where: str, epsilon: float | int, epsilon_high: float | int | None) -> tuple[float, float]:
    positive(where, "epsilon", epsilon, fix="epsilon=0.2")
    if epsilon_high is None:
        return 1.0 - epsilon, 1.0 + epsilon
    positive(where, "epsilon_high", epsilon_high, fix="epsilon_high=0.28, or None for a symmetric clip")
    return 1.0 - epsilon, 1.0 + epsilon_high
