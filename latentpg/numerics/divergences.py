r"""Kullback-Leibler estimators from samples: rows of log-ratios in, rows out.

All take ``log_ratio`` :math:`= \log \pi(a|s) - \log \pi_{ref}(a|s)` at actions :math:`a \sim \pi` and estimate KL(pi ||
ref) (Schulman, "Approximating KL divergence", 2020). What they do as *losses* is another matter:

=====  =================  ==========================================  =======================================
name   value              gradient in the loss, no ratio factor       multiplied by a differentiated ratio
=====  =================  ==========================================  =======================================
k1     unbiased           zero in expectation                         gradient of KL(pi || ref)
k2     biased             gradient of KL(pi || ref)                   something else
k3     unbiased, >= 0     gradient of KL(ref || pi)                   gradient of KL(pi || ref)
=====  =================  ==========================================  =======================================

The identities hold for exact ``log_ratio``; with an estimated one they hold up to the estimator's own error, and
anything nonlinear in it (k2, k3) is biased even when the estimator is not. :mod:`latentpg.numerics.penalties` puts them
into a loss or a reward.

The other direction of PPO's own penalty, KL(old || new), is :func:`kl_old_new`: its samples are the old policy's.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from latentpg.errors import ShapeError
from latentpg.numerics._checks import same_shape


def k1(log_ratio: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Estimate KL(pi || ref) by :math:`\log\pi - \log\pi_{ref}`: unbiased, of either sign.

    >>> import torch
    >>> k1(torch.tensor([0.5]))
    tensor([0.5000])
    """
    return log_ratio


def k2(log_ratio: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Estimate KL(pi || ref) by :math:`\tfrac12(\log\pi - \log\pi_{ref})^2`: biased, correct to second order.

    >>> import torch
    >>> k2(torch.tensor([2.0]))
    tensor([2.])
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Estimate KL(pi || ref) by :math:`e^{-x} - 1 + x`, x the log-ratio: unbiased and never negative.

    >>> import torch
    >>> k3(torch.tensor([0.0]))
    tensor([0.])
    """
    return (-log_ratio).expm1() + log_ratio


def kl_old_new(log_prob_old: Float[Tensor, "M *B"], log_prob_new: Float[Tensor, "M *B"]) -> Float[Tensor, "*B"]:
    r"""Estimate KL(old || new) of each row from M extra actions of the *old* policy in the row's state.

    .. math:: \frac1M\sum_m \big[\rho_m - 1 - \log\rho_m\big], \qquad \rho = \pi_{new}/\pi_{old},\ a_m\sim\pi_{old}

    that is :func:`k3` of :math:`\log\pi_{old}-\log\pi_{new}`: unbiased, never negative, and exactly 0 where new = old.
    Its expected gradient is :math:`\nabla KL(\pi_{old}\|\pi_{new}) = -E_{a\sim old}[\nabla\log\pi_{new}(a|s)]` at any
    new policy, as :math:`E_{old}[\nabla\rho] = 0`; where new = old every sample's gradient is 0, not only their mean.
    ``log_prob_old`` is a constant. Estimated log-probabilities make the logarithm's part biased.

    The recorded actions are such a sample too, of M = 1; extra ones lower the variance, and are independent of the
    advantages.

    Source: J. Schulman et al., "Proximal policy optimization algorithms", 2017, Equation 8; J. Schulman,
    "Approximating KL divergence", 2020.

    >>> import torch
    >>> old, new = torch.tensor([[0.5], [0.5]]).log(), torch.tensor([[0.25], [0.75]]).log()
    >>> round(kl_old_new(old, new).item(), 4)  # log(2)/2 + log(2/3)/2
    0.1438
    """
    where = "kl_old_new()"
    same_shape(where, "log_prob_old", log_prob_old, "log_prob_new", log_prob_new)
    if log_prob_old.ndim == 0 or len(log_prob_old) == 0:
        raise ShapeError(
            where,
            "`log_prob_old`",
            expected="[M, ...] with M >= 1 actions, the samples first",
            got=str(list(log_prob_old.shape)),
            fix="for one action a row: log_prob_old.unsqueeze(0)",
        )
    return k3(log_prob_old.detach() - log_prob_new).mean(0)
