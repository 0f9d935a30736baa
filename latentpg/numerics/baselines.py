r"""Baselines: what is subtracted from a credit to lower the variance, and what that does to the expected gradient.

A baseline of row i that is independent of the row's own action costs nothing, since
:math:`E[\nabla\log\pi(a|s)\,b] = 0`. Credits ``[N, ...]`` are those of N independent rows (episodes), the rows first:

=====================================  =====================================  ====================================
baseline                               function                               expected gradient
=====================================  =====================================  ====================================
state value :math:`V(s_t)`, any V      the critic's own output                :math:`\nabla J`
mean of the batch                      :func:`batch_mean_baseline`            :math:`\frac{N-1}N\nabla J`
mean of the others                     :func:`leave_one_out_baseline`         :math:`\nabla J`
least variance, from the others        :func:`variance_optimal_baseline`      :math:`\nabla J`
least variance, one constant           :func:`variance_optimal_constant`      :math:`\nabla J` for *other* rows
=====================================  =====================================  ====================================

The first of these says nothing of how *good* V is: a poor critic costs variance only, as long as the credit itself is a
sampled return. With an estimator of :math:`\nabla\log\pi` that is biased, no baseline is free.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics._checks import not_negative, same_shape
from latentpg.numerics.weights import leave_one_out_mean


def less_baseline(credit: Float[Tensor, "*B"], baseline: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Return the advantage :math:`\mathrm{sg}[c - b]`, the shapes being exactly equal.

    With :math:`c` the total return or the discounted reward-to-go, and :math:`b` any function of the row's state, the
    expected gradient stays :math:`\nabla J`. If the credit carries the factor :math:`\gamma^t`, a state value must be
    multiplied by it too, or it lowers the variance less than it could.

    Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    1992.

    >>> less_baseline(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])).tolist()
    [1.0, -1.0]
    """
    same_shape("less_baseline()", "credit", credit, "baseline", baseline)
    return (credit - baseline).detach()


def batch_mean_baseline(credit: Float[Tensor, "N *B"]) -> Float[Tensor, "N *B"]:
    r"""Return the mean over all N rows, for each row: the expected gradient becomes :math:`\frac{N-1}N\nabla J`.

    The mean holds the row's own credit, whence the factor; with N rows of whole episodes it is harmless.

    >>> batch_mean_baseline(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [3.0, 3.0, 3.0]
    """
    _several("batch_mean_baseline()", credit, at_least=1)
    return credit.mean(0, keepdim=True).expand_as(credit)


def leave_one_out_baseline(credit: Float[Tensor, "N *B"]) -> Float[Tensor, "N *B"]:
    r"""Return the mean over the *other* rows, :math:`\frac{1}{N-1}\sum_{j\ne i}c_j`: the gradient stays.

    The expected gradient is :math:`\nabla J`.

    Source: W. Kool, H. van Hoof and M. Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019.

    >>> leave_one_out_baseline(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [4.0, 3.5, 1.5]
    """
    _several("leave_one_out_baseline()", credit, at_least=2)
    return leave_one_out_mean(credit)


def variance_optimal_constant(
    credit: Float[Tensor, "N *B"], squared_score: Float[Tensor, "N *B"]
) -> Float[Tensor, "*B"]:
    r"""Return :math:`b^* = \sum_i \|g_i\|^2 c_i \big/ \sum_i \|g_i\|^2`, with :math:`g_i = \nabla\log\pi` of row i.

    As N grows it tends to the constant under which the trace of the covariance of :math:`g\,(c - b)` is smallest. Use
    it on *other* rows than those it was computed from: on its own rows it is no longer independent of their actions,
    the gradient is biased, and :func:`variance_optimal_baseline` is the remedy. A column without any score gets 0.

    Source: L. Weaver and N. Tao, "The optimal reward baseline for gradient-based reinforcement learning", 2001; E.
    Greensmith, P. L. Bartlett and J. Baxter, "Variance reduction techniques for gradient estimates in reinforcement
    learning", 2004.

    >>> variance_optimal_constant(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 3.0])).item()
    3.0
    """
    where = "variance_optimal_constant()"
    _several(where, credit, at_least=1)
    _scores(where, credit, squared_score)
    return _ratio_or_zero((credit * squared_score).sum(0), squared_score.sum(0))


def variance_optimal_baseline(
    credit: Float[Tensor, "N *B"], squared_score: Float[Tensor, "N *B"]
) -> Float[Tensor, "N *B"]:
    r"""Return :math:`b_i = \sum_{j\ne i} \|g_j\|^2 c_j \big/ \sum_{j\ne i} \|g_j\|^2`.

    :func:`variance_optimal_constant` of the other rows, hence independent of the row's own action: the expected
    gradient is :math:`\nabla J`. A row whose others
    have no score at all gets 0.

    >>> credit, squared_score = torch.tensor([0.0, 4.0, 8.0]), torch.tensor([5.0, 1.0, 3.0])
    >>> variance_optimal_baseline(credit, squared_score).tolist()
    [7.0, 3.0, 0.6666666865348816]
    """
    where = "variance_optimal_baseline()"
    _several(where, credit, at_least=2)
    _scores(where, credit, squared_score)
    return _ratio_or_zero(leave_one_out_mean(credit * squared_score), leave_one_out_mean(squared_score))


def standardized(advantage: Float[Tensor, "*B"], *, epsilon: float | int = 1e-8) -> Float[Tensor, "*B"]:
    r"""Return :math:`(A - \bar A)/(\sigma_A + \varepsilon)` over the whole minibatch, all 0 where all are equal.

    What PPO's implementations do before the loss. It is no honest baseline: mean and deviation hold the row's own
    advantage, so the expected gradient is another vector than :math:`\nabla J`, near a positive multiple of it for
    many rows. :math:`\sigma` is the sample's (divisor B-1).

    >>> standardized(torch.tensor([1.0, 3.0, 5.0]), epsilon=0).tolist()
    [-1.0, 0.0, 1.0]
    """
    where = "standardized()"
    not_negative(where, "epsilon", epsilon)
    if advantage.numel() < 2:
        raise ShapeError(where, "`advantage`", expected="at least two rows", got=str(list(advantage.shape)))
    constant = advantage.detach()
    lowest, highest = constant.aminmax()
    deviation, mean = torch.std_mean(constant)
    flat = lowest == highest
    return ((constant - mean) / (deviation.masked_fill(flat, 1.0) + epsilon)).masked_fill(flat, 0.0)


def _ratio_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    none = denominator == 0.0
    return torch.where(none, 0.0, numerator / denominator.masked_fill(none, 1.0))


def _several(where: str, credit: Tensor, *, at_least: int) -> None:
    if credit.ndim == 0 or credit.numel() == 0:
        raise ShapeError(where, "`credit`", expected="[N, ...] with N >= 1, rows first", got=str(list(credit.shape)))
    if credit.shape[0] < at_least:
        raise OptionError(
            where,
            "one row has no others to be compared with",
            expected=f"N >= {at_least} rows",
            got=f"N={credit.shape[0]}",
            fix="collect more episodes, or a state value as baseline",
        )


def _scores(where: str, credit: Tensor, squared_score: Tensor) -> None:
    same_shape(where, "credit", credit, "squared_score", squared_score)
    if not bool((squared_score >= 0.0).all()):
        raise OptionError(
            where,
            "`squared_score`",
            expected="squared norms of the rows' scores, 0 or above",
            got=f"smallest {squared_score.min().item():.3g}",
        )
