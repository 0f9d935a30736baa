r"""Advantages of episodes within a group: G whole episodes from the same initial state, compared with one another.

Every function takes ``return_: [G, ...]``, the group's members first and any number of groups behind (``[G, M]`` as a
rule; further dimensions, such as time with a credit per step, are compared member by member), and returns advantages of
the same shape. The returns of a group must come from one initial state and be independent given it. A group all of
whose returns are equal teaches nothing: its advantage is exactly 0, and :func:`zero_variance_groups` finds it.

=================================  =======================================================  ==========================
function                           :math:`A_i`                                              expected gradient
=================================  =======================================================  ==========================
:func:`rloo_advantage`             :math:`R_i - \frac{1}{G-1}\sum_{j\ne i}R_j`              :math:`\nabla J`
:func:`group_mean_advantage`       :math:`R_i - \bar R`                                     :math:`\frac{G-1}G\nabla J`
:func:`group_std_advantage`        :math:`(R_i - \bar R)/(\sigma_{group}+\varepsilon)`      another direction
:func:`batch_std_advantage`        :math:`(R_i - \bar R)/(\sigma_{batch}+\varepsilon)`      another direction
=================================  =======================================================  ==========================

The expectation is that of the mean over the group of :math:`A_i\sum_t\nabla\log\pi(a_{i,t}|s_{i,t})`.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics._checks import not_negative
from latentpg.numerics.weights import leave_one_out_mean


def zero_variance_groups(return_: Float[Tensor, "G *M"]) -> Bool[Tensor, "*M"]:
    r"""Find the groups whose returns are all equal, by :math:`\max_i R_i = \min_i R_i`; ``.sum()`` counts them.

    Not by the standard deviation: that of seven float32 returns of 1000000.1 is not 0, and dividing by it would make
    advantages out of rounding.

    >>> import torch
    >>> zero_variance_groups(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    tensor([ True, False])
    """
    _check("zero_variance_groups()", return_)
    return return_.amax(0) == return_.amin(0)


def group_mean_advantage(return_: Float[Tensor, "G *M"]) -> Float[Tensor, "G *M"]:
    r"""Return :math:`R_i - \bar R`, the group's mean as baseline: Dr. GRPO's advantage, "no std".

    The mean holds the member's own return, so the expected gradient is :math:`\frac{G-1}G\nabla J`: the direction is
    right, the length is short by a known factor. It is :math:`\frac{G-1}G` of :func:`rloo_advantage`, draw by draw.

    Source: Z. Liu et al., "Understanding R1-Zero-like training: a critical perspective", 2025.

    >>> import torch
    >>> group_mean_advantage(torch.tensor([[1.0], [2.0], [6.0]])).squeeze(1).tolist()
    [-2.0, -1.0, 3.0]
    """
    flat = zero_variance_groups(return_)  # the mean of equal numbers may differ from them in its last digit
    return (return_ - return_.mean(0)).masked_fill(flat, 0.0)


def rloo_advantage(return_: Float[Tensor, "G *M"]) -> Float[Tensor, "G *M"]:
    r"""Return :math:`R_i - \frac{1}{G-1}\sum_{j\ne i}R_j`, the others' mean as baseline.

    The baseline is independent of the member's own actions, so the expected gradient is :math:`\nabla J`.

    Source: W. Kool, H. van Hoof and M. Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019; A. Ahmadian
    et al., "Back to basics: revisiting REINFORCE style optimization", 2024.

    >>> import torch
    >>> rloo_advantage(torch.tensor([[1.0], [2.0], [6.0]])).squeeze(1).tolist()
    [-3.0, -1.5, 4.5]
    """
    flat = zero_variance_groups(return_)
    return (return_ - leave_one_out_mean(return_)).masked_fill(flat, 0.0)


def group_std_advantage(
    return_: Float[Tensor, "G *M"], *, correction: Literal[0, 1] = 1, epsilon: float | int = 1e-4
) -> Float[Tensor, "G *M"]:
    r"""Return GRPO's :math:`(R_i - \bar R)/(\sigma + \varepsilon)`, :math:`\sigma` over the group.

    ``correction`` is 1 for the sample standard deviation (divisor G-1, what most implementations have) and 0 for the
    population's (divisor G). The expected gradient is **not** a multiple of :math:`\nabla J`: each initial state is
    weighted by the inverse of the noise in its own returns, whatever is at stake there, and within a state the
    division is by a number that depends on the member's own return. On two fair bandits paying (0, 1) and (0, 10) the
    cosine with :math:`\nabla J` is :math:`11/\sqrt{202} = 0.774`.

    Source: Z. Shao et al., "DeepSeekMath: pushing the limits of mathematical reasoning in open language models", 2024.

    >>> import torch
    >>> group_std_advantage(torch.tensor([[1.0], [3.0], [5.0]]), epsilon=0).squeeze(1).tolist()
    [-1.0, 0.0, 1.0]
    """
    not_negative("group_std_advantage()", "epsilon", epsilon)
    _correction("group_std_advantage()", correction)
    flat = zero_variance_groups(return_)
    deviation = return_.std(0, correction=correction).masked_fill(flat, 1.0)
    return group_mean_advantage(return_) / (deviation + epsilon)


def batch_std_advantage(
    return_: Float[Tensor, "G *M"], *, correction: Literal[0, 1] = 1, epsilon: float | int = 1e-4
) -> Float[Tensor, "G *M"]:
    r"""Return :math:`(R_i - \bar R)/(\sigma + \varepsilon)`, the mean of the group, :math:`\sigma` over all returns.

    All groups are divided by one number, so their stakes keep their proportions; what is left of the bias is that the
    number depends on the same returns. The expected gradient is therefore not exactly a multiple of :math:`\nabla J`,
    and tends to one, :math:`\frac{G-1}{G\sigma}\nabla J`, as the number of groups grows. If all returns of the batch
    are equal, every advantage is 0.

    Source: Z. Liu et al., "Part I: tricks or traps? A deep dive into RL for LLM reasoning", 2025.

    >>> import torch
    >>> batch_std_advantage(torch.tensor([[0.0, 0.0], [2.0, 4.0]]), correction=0, epsilon=0).square().sum().item()
    3.6363637447357178
    """
    not_negative("batch_std_advantage()", "epsilon", epsilon)
    _correction("batch_std_advantage()", correction)
    centred = group_mean_advantage(return_)
    flat = return_.max() == return_.min()
    return centred / (return_.std(correction=correction).masked_fill(flat, 1.0) + epsilon)


def _check(where: str, return_: Tensor) -> None:
    if return_.ndim == 0 or return_.numel() == 0:
        raise ShapeError(
            where,
            "`return_` is an empty group",
            expected="[G, M]: at least two members of at least one group",
            got=str(list(return_.shape)),
        )
    if return_.shape[0] == 1:
        raise OptionError(
            where,
            "a group of one (G=1) compares an episode with itself: every advantage would be 0",
            expected="return_ [G, M] with G >= 2, members first",
            got=str(list(return_.shape)),
            fix="collect at least two episodes from each initial state; return_.T if the groups came first",
        )


def _correction(where: str, correction: int) -> None:
    if correction not in (0, 1):
        raise OptionError(
            where, "`correction`", expected="0 (population) or 1 (sample)", got=repr(correction), fix="correction=1"
        )
