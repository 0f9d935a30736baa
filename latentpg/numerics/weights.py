r"""Importance-weight arithmetic: everything is done on ``log_weight: [K, B]``, K particles of B rows.

Weights never leave logs unless they are normalised, because a likelihood of a few hundred nats under- or overflows
float32. All functions reduce or normalise over the particle dimension, which is always the first.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MIN_PARTICLES_FOR_PARETO = 64
"""Below this K the tail that :func:`pareto_k` fits has fewer than 12 points and its estimate means little."""


def log_mean_exp(log_weight: Float[Tensor, "K *B"]) -> Float[Tensor, "*B"]:
    r"""Compute :math:`\log \frac1K \sum_k w_k`.

    For :math:`w_k = p(z_k, a \mid s) / r(z_k)` with :math:`z_k \sim r` its exponential is unbiased for :math:`\pi(a
    \mid s)`, so by Jensen it is itself a lower bound in expectation (Burda, Grosse and Salakhutdinov, "Importance
    Weighted Autoencoders", 2016, Eq. 8).

    >>> log_mean_exp(torch.tensor([[0.0], [0.0]]))
    tensor([0.])
    """
    return log_weight.logsumexp(0) - math.log(log_weight.shape[0])


def normalized_weights(log_weight: Float[Tensor, "K *B"]) -> Float[Tensor, "K *B"]:
    r"""Compute :math:`\bar w_k = w_k / \sum_j w_j`; each column sums to one.

    >>> normalized_weights(torch.tensor([[0.0], [0.0]]))
    tensor([[0.5000],
            [0.5000]])
    """
    return log_weight.softmax(0)


def ess(log_weight: Float[Tensor, "K *B"]) -> Float[Tensor, "*B"]:
    r"""Effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2`, in ``[1, K]`` (Kong, 1992).

    >>> ess(torch.tensor([[0.0, 0.0], [0.0, -1000.0]]))
    tensor([2., 1.])
    """
    return normalized_weights(log_weight).square().sum(0).reciprocal()


def leave_one_out_mean(value: Float[Tensor, "K *B"]) -> Float[Tensor, "K *B"]:
    r"""Mean over the *other* particles, :math:`\frac{1}{K-1}\sum_{j \ne k} f_j`: a baseline independent of particle k.

    With K = 1 there is no other particle and the baseline is zero (Kool, van Hoof and Welling, 2019).

    >>> leave_one_out_mean(torch.tensor([[1.0], [2.0], [6.0]]))
    tensor([[4.0000],
            [3.5000],
            [1.5000]])
    """
    num = value.shape[0]
    if num == 1:
        return torch.zeros_like(value)
    return (value.sum(0, keepdim=True) - value) / (num - 1)


def leave_one_out_log_mean_exp(log_weight: Float[Tensor, "K *B"]) -> Float[Tensor, "K *B"]:
    r"""Compute, per k, :math:`\log\frac1K\big(\sum_{j\ne k} w_j + \hat w_{-k}\big)`, the bound without particle k.

    :math:`\hat w_{-k}` is the geometric mean of the other weights, so the result does not depend on particle k
    (Mnih and Rezende, "Variational Inference for Monte Carlo Objectives", 2016, Eq. 10). Needs K >= 2.

    >>> leave_one_out_log_mean_exp(torch.zeros(3, 1))
    tensor([[0.],
            [0.],
            [0.]])
    """
    num = log_weight.shape[0]
    stand_in = leave_one_out_mean(log_weight)
    eye = torch.eye(num, dtype=torch.bool, device=log_weight.device)
    eye = eye.reshape(num, num, *[1] * (log_weight.ndim - 1))
    # [k, j, ...]: column j is the weight of particle j, except on the diagonal, where particle k is replaced.
    replaced = torch.where(eye, stand_in.unsqueeze(1), log_weight.unsqueeze(0))
    return replaced.logsumexp(1) - math.log(num)


def pareto_k(log_weight: Float[Tensor, "K *B"]) -> Float[Tensor, "*B"]:
    r"""Shape of a generalised Pareto distribution fitted to the largest weights: the k-hat diagnostic.

    Below 0.5 the weights have a finite variance and the estimate behaves; above about 0.7 more particles hardly help.
    The tail holds :math:`\min(0.2 K, 3\sqrt K)` weights (Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto Smoothed
    Importance Sampling", 2024); the shape is the profile-posterior mean of Zhang and Stephens (2009), shrunk towards
    0.5 with the weight of ten observations. Weights that are all equal have no tail: their k-hat is minus infinity.
    """
    num = log_weight.shape[0]
    tail = max(5, math.ceil(min(0.2 * num, 3 * math.sqrt(num))))
    largest = (log_weight - log_weight.amax(0)).topk(min(tail + 1, num), 0).values
    threshold = largest[-1].exp()
    excess = (largest[:-1].exp() - threshold).flip(0)  # ascending, as quantiles are read off it
    flat = excess[-1] <= 1e-12
    shape = _generalized_pareto_shape(excess.clamp_min(torch.finfo(log_weight.dtype).tiny))
    size = excess.shape[0]
    shrunk = (size * shape + 10 * 0.5) / (size + 10)
    return torch.where(flat, torch.full_like(shrunk, -math.inf), shrunk)


def _generalized_pareto_shape(excess: Float[Tensor, "M *B"]) -> Float[Tensor, "*B"]:
    """Estimate the shape by averaging the profile likelihood over a grid of rates (Zhang and Stephens, 2009)."""
    size = excess.shape[0]
    grid = 30 + math.floor(math.sqrt(size))
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    steps = steps.reshape(-1, *[1] * (excess.ndim - 1))
    quartile = excess[math.floor(size / 4 + 0.5) - 1]
    rate = 1 / excess[-1] + (1 - (grid / (steps - 0.5)).sqrt()) / (3 * quartile)
    shape_at = torch.log1p(-rate.unsqueeze(1) * excess.unsqueeze(0)).mean(1)
    profile = size * ((-rate / shape_at).log() - shape_at - 1)
    weight = profile.nan_to_num(nan=-math.inf).softmax(0)
    best = (rate * weight).sum(0)
    return torch.log1p(-best * excess).mean(0)
