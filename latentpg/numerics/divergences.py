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
anything nonlinear in it (k2, k3) is biased even when the estimator is not.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


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
