r"""Penalties that hold a policy near a reference: which estimator, where it is put, and which divergence it descends.

All take ``log_ratio`` :math:`x = \log\pi(a|s) - \log\pi_{ref}(a|s)` at sampled actions and one of the estimators
:func:`~latentpg.numerics.divergences.k1`, :func:`~latentpg.numerics.divergences.k2`,
:func:`~latentpg.numerics.divergences.k3`, and return rows that are *added*: to a surrogate (to maximise), or to a
reward. Per state, the expected gradient of what is added is :math:`-\beta` times

====  ================================  ======================================  ======================================
name  :func:`penalty`                   :func:`ratio_penalty`                   :func:`reward_penalty`
====  ================================  ======================================  ======================================
k1    0                                 :math:`\nabla D`                        :math:`\nabla D`
k2    :math:`\nabla D`                  :math:`\nabla E_\pi[k_2]`               :math:`\nabla E_\pi[k_2] - \nabla D`
k3    :math:`\nabla D'`                 :math:`\nabla D`                        :math:`\nabla D - \nabla D'`
====  ================================  ======================================  ======================================

with :math:`D = KL(\pi\|\pi_{ref})` and the other direction :math:`D' = KL(\pi_{ref}\|\pi)`. The first and the last
column need on-policy samples; the middle one is right at any new policy, with samples of the old one and the ratio new
/ old.

**Of one step, or of all that follow.** A penalty in the loss is a sum over the visited states of the divergence
*there*; that it matters which states are visited next is not in its gradient. A penalty in the reward is credited to
earlier actions as any reward is: with k1 the gradient is that of :math:`J - \beta E[\sum_t\gamma^t x_t]`, the
discounted divergence of whole episodes.

The identities are about the exact log-ratio. With an estimated one k2 and k3 are biased, being nonlinear in it; a
log-ratio of retained particles is that of the augmented law, and at few particles it also punishes a mere relabelling
of latents.

Source: J. Schulman, "Approximating KL divergence", 2020; Y. Tang and R. Munos, "On a few pitfalls in KL divergence
gradient estimation for RL", 2025.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from latentpg.numerics._checks import not_negative, same_shape
from latentpg.numerics.divergences import k1, k3

KLEstimator = Callable[[Tensor], Tensor]
"""One of k1, k2 and k3: rows of log-ratios in, rows out."""


def penalty(log_ratio: Float[Tensor, "*B"], *, beta: float | int, estimator: KLEstimator = k3) -> Float[Tensor, "*B"]:
    r"""Return :math:`-\beta\,k(x)` to be added to a surrogate, without a ratio: as GRPO has it, with k3.

    Direction of the divergence that is descended, for actions of the policy itself: none with k1, whose expected
    gradient is 0; KL(pi || ref) with k2; KL(ref || pi) with k3. The last is the one that GRPO descends, though k3's
    *value* estimates KL(pi || ref).

    Source: Z. Shao et al., "DeepSeekMath", 2024, Equation 4.

    >>> import torch
    >>> from latentpg.numerics.divergences import k2
    >>> penalty(torch.tensor([2.0]), beta=0.5, estimator=k2).tolist()
    [-1.0]
    """
    not_negative("penalty()", "beta", beta)
    return -beta * estimator(log_ratio)


def ratio_penalty(
    ratio: Float[Tensor, "*B"], log_ratio: Float[Tensor, "*B"], *, beta: float | int, estimator: KLEstimator = k3
) -> Float[Tensor, "*B"]:
    r"""Return :math:`-\beta\,\rho\,k(x)` to be added to a surrogate, with the ratio new / old differentiated too.

    ``ratio`` :math:`\rho = \pi/\pi_{old}` is that of the surrogate; where new = old its value is 1, and what it brings
    is the gradient. Direction: KL(pi || ref) with k1 and with k3, at any new policy, because
    :math:`E_{old}[\rho\,k] = E_\pi[k]` for every pi; with k2, whose mean is no divergence, the gradient of that mean.

    >>> import torch
    >>> ratio_penalty(torch.tensor([2.0]), torch.tensor([3.0]), beta=0.5, estimator=k1).tolist()
    [-3.0]
    """
    same_shape("ratio_penalty()", "log_ratio", log_ratio, "ratio", ratio)
    not_negative("ratio_penalty()", "beta", beta)
    return -beta * ratio * estimator(log_ratio)


def reward_penalty(
    log_ratio: Float[Tensor, "*B"], *, beta: float | int, estimator: KLEstimator = k1
) -> Float[Tensor, "*B"]:
    r"""Return :math:`-\beta\,\mathrm{sg}[k(x)]` to be added to the reward of each step.

    A constant: it reaches the policy through the advantage alone. Direction: KL(pi || ref) with k1, of whole episodes;
    with k3 the part of the gradient that runs through k3 itself is missing and the difference of the two directions is
    left; with k2 likewise :math:`\nabla E_\pi[k_2]` less :math:`\nabla KL(\pi\|\pi_{ref})`.

    Source: D. M. Ziegler et al., "Fine-tuning language models from human preferences", 2019.

    >>> import torch
    >>> reward_penalty(torch.tensor([3.0]), beta=0.5).tolist()
    [-1.5]
    """
    not_negative("reward_penalty()", "beta", beta)
    return -beta * estimator(log_ratio).detach()
