r"""Likelihood ratios of episodes and of their steps, made from the log-ratios of single steps.

Each function reads log-ratios ``[T, N]``, one episode a column,
:math:`\ell_t = \log\pi_{new}(a_t|s_t) - \log\pi_{old}(a_t|s_t)`. Steps behind the end of an episode are switched off by
``mask``. Samples come from the old policy, which must give mass to every action that the new one takes.

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
:math:`(\prod_t\rho_t)^{1/T}\,R`, with :func:`sequence_ratio`                          see there
=====================================================================================  =======================

The second has, as a rule, less variance than the first. The fourth fails because :math:`G_t` is a sample of
:math:`Q^{old}`: the old policy acted after step ``t``.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import ShapeError
from latentpg.numerics._checks import mask_of, time_major


def step_ratio(log_ratio: Float[Tensor, "T N"], *, mask: Bool[Tensor, "T N"] | None = None) -> Float[Tensor, "T N"]:
    r"""Return the ratio of each step alone, :math:`\rho_t = \exp \ell_t`, and 1 where masked.

    With the old policy's advantages the surrogate :math:`\sum_t\gamma^t\rho_t A^{old}_t` has gradient :math:`\nabla J`
    where new = old, and not elsewhere: the states are still visited, and the future still valued, as under the old
    policy.

    Source: S. Kakade and J. Langford, "Approximately optimal approximate reinforcement learning", 2002.

    >>> import torch
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

    >>> import torch
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

    >>> import torch
    >>> [round(rho, 4) for rho in trajectory_ratio(torch.tensor([[2.0], [3.0]]).log()).tolist()]
    [6.0]
    """
    return _masked("trajectory_ratio()", log_ratio, mask).sum(0).exp()


def sequence_ratio(log_ratio: Float[Tensor, "T N"], *, mask: Bool[Tensor, "T N"] | None = None) -> Float[Tensor, " N"]:
    r"""Return GSPO's ratio of an episode, the geometric mean of its steps': :math:`\exp\frac1T\sum_t\ell_t`.

    One ratio and one advantage an episode, to be clipped by :func:`~latentpg.numerics.surrogates.ppo_clip` with a
    clip range as small as the mean is (the authors use 3e-4 and 4e-4). Where new = old its gradient is
    :math:`\frac1T\sum_t\nabla\log\pi_t`: with an honest advantage of the episode the expected gradient is then
    :math:`\nabla J / T` if all episodes have T steps, and otherwise **not** a multiple of :math:`\nabla J`, because
    each episode is divided by its own length. Away from there it is not :math:`\nabla J(\pi_{new})` either way: its
    mean under the old policy is not 1.

    Raises :class:`~latentpg.errors.ShapeError` for an episode of which no step is acted.

    Source: C. Zheng et al., "Group sequence policy optimization", 2025, Equation 7.

    >>> import torch
    >>> [round(rho, 4) for rho in sequence_ratio(torch.tensor([[2.0], [8.0]]).log()).tolist()]
    [4.0]
    """
    where = "sequence_ratio()"
    total = _masked(where, log_ratio, mask).sum(0)
    if mask is None:
        return (total / len(log_ratio)).exp()
    length = mask.sum(0)
    if not bool(length.all()):
        raise ShapeError(
            where,
            "`mask` leaves an episode without a step",
            expected="at least one acted step in each column",
            got=f"none in columns {(length == 0).nonzero().squeeze(-1).tolist()[:8]}",
            fix="drop those columns",
        )
    return (total / length).exp()


def _masked(where: str, log_ratio: Tensor, mask: Tensor | None) -> Tensor:
    time_major(where, "log_ratio", log_ratio, columns="one episode a column")
    if mask is None:
        return log_ratio
    mask_of(where, "log_ratio", log_ratio, "mask", mask)
    return log_ratio.masked_fill(~mask, 0.0)
