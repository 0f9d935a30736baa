r"""From rows per step to one number: how episodes of different lengths share the loss.

An episode of length :math:`L_i` gives each of its steps one weight; the loss is the weighted sum over all steps of all
M episodes. Three ways of choosing it, all functions ``length [M] -> weight [M]`` (of torch's default floating type
unless another ``dtype`` is given):

==========================  ==============================  ===================================================
function                    weight of a step                expected gradient, with an honest advantage
==========================  ==============================  ===================================================
:func:`constant_weights`    :math:`1/(MC)`                  :math:`\nabla J / C`
:func:`sequence_weights`    :math:`1/(M L_i)`               :math:`\nabla J/T` if all lengths are T, else another
                                                            direction: steps of long episodes count less
:func:`token_weights`       :math:`1/\sum_j L_j`            the same: the divisor depends on what is averaged
==========================  ==============================  ===================================================

"Token" is the name that language models gave to a step. With C = 1 the first is the mean over episodes of the sum over
steps, which is :math:`\nabla J` itself.

The weights are applied to masked steps ``[T, N]`` by :func:`weighted_steps`, or to flat rows with the number of their
episode by :func:`weighted_rows`. Because the weights are made from the *whole* batch, the parts of a batch that is
split into minibatches or blocks sum to the loss of the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.errors import ShapeError
from latentpg.numerics._checks import mask_of, positive, same_shape, time_major


def token_weights(length: Int[Tensor, " M"], *, dtype: torch.dtype | None = None) -> Float[Tensor, " M"]:
    r"""Return :math:`1/\sum_j L_j` for each episode: the mean over all steps ("token-mean").

    Every step counts alike, so long episodes count more. In expectation it is a multiple of :math:`\nabla J` only where
    all episodes have one length; as the number of episodes grows the divisor settles, and it becomes
    :math:`\nabla J / E[L]`.

    Source: Q. Yu et al., "DAPO: an open-source LLM reinforcement learning system at scale", 2025, Equation 8.

    >>> token_weights(torch.tensor([1, 3])).tolist()
    [0.25, 0.25]
    """
    _check("token_weights()", length)
    return torch.ones(length.shape, dtype=dtype, device=length.device) / length.sum()


def sequence_weights(length: Int[Tensor, " M"], *, dtype: torch.dtype | None = None) -> Float[Tensor, " M"]:
    r"""Return :math:`1/(M L_i)` for each episode: the mean over episodes of the mean over steps ("sequence-mean").

    GRPO's own. Every episode counts alike, so a step of a long one counts less: a long failure is punished less per
    step than a short one. **Not** a multiple of :math:`\nabla J` unless all lengths agree, however many episodes.

    Source: Z. Shao et al., "DeepSeekMath", 2024, Equation 3; on the bias, Z. Liu et al., "Understanding R1-Zero-like
    training: a critical perspective", 2025.

    >>> sequence_weights(torch.tensor([1, 4])).tolist()
    [0.5, 0.125]
    """
    _check("sequence_weights()", length)
    return torch.ones(length.shape, dtype=dtype, device=length.device) / (len(length) * length)


def constant_weights(
    length: Int[Tensor, " M"], *, horizon: float | int = 1, dtype: torch.dtype | None = None
) -> Float[Tensor, " M"]:
    r"""Return :math:`1/(MC)` for each episode: sums over steps, divided by a constant C = ``horizon``.

    With the longest possible episode for C it is Dr. GRPO's; with 1, the mean over episodes of the plain sum. The
    expected gradient is :math:`\nabla J/C`, whatever the lengths.

    Source: Z. Liu et al., "Understanding R1-Zero-like training: a critical perspective", 2025.

    >>> constant_weights(torch.tensor([1, 3]), horizon=4).tolist()
    [0.125, 0.125]
    """
    _check("constant_weights()", length)
    positive("constant_weights()", "horizon", horizon, fix="the longest possible episode, or 1")
    return torch.ones(length.shape, dtype=dtype, device=length.device) / (len(length) * horizon)


def weighted_steps(
    rows: Float[Tensor, "T N"], weight: Float[Tensor, " N"], *, mask: Bool[Tensor, "T N"]
) -> Float[Tensor, ""]:
    r"""Return :math:`\sum_n w_n \sum_t m_{tn} x_{tn}`: one episode a column, whose length is ``mask.sum(0)``.

    What lies behind an episode's end neither counts nor sends a gradient, not even where it is NaN.

    >>> mask = torch.tensor([[True, True], [False, True]])
    >>> rows = torch.tensor([[2.0, 4.0], [99.0, 6.0]])
    >>> weighted_steps(rows, sequence_weights(mask.sum(0)), mask=mask).item()  # (2 + (4 + 6) / 2) / 2
    3.5
    >>> weighted_steps(rows, token_weights(mask.sum(0)), mask=mask).item()  # (2 + 4 + 6) / 3
    4.0
    """
    where = "weighted_steps()"
    time_major(where, "rows", rows, columns="one episode a column")
    mask_of(where, "rows", rows, "mask", mask)
    if weight.shape != rows.shape[1:]:
        raise ShapeError(
            where, "`weight`, one a column", expected=f"[N={rows.shape[1]}]", got=str(list(weight.shape)),
            fix="weights of mask.sum(0)",
        )  # fmt: skip
    return (rows.masked_fill(~mask, 0.0).sum(0) * weight).sum()


def weighted_rows(
    rows: Float[Tensor, " B"], weight: Float[Tensor, " M"], *, episode: Int[Tensor, " B"]
) -> Float[Tensor, ""]:
    r"""Return :math:`\sum_b w_{e(b)} x_b`: flat rows in any order, ``episode`` telling whose step each one is.

    Any subset of the rows gives its own share of the loss; ``weight`` is that of all episodes of the batch.

    >>> weight = sequence_weights(torch.tensor([1, 2]))
    >>> weighted_rows(torch.tensor([2.0, 4.0, 6.0]), weight, episode=torch.tensor([0, 1, 1])).item()
    3.5
    """
    where = "weighted_rows()"
    same_shape(where, "rows", rows, "episode", episode)
    if rows.ndim != 1 or weight.ndim != 1:
        raise ShapeError(
            where, "`rows` and `weight`", expected="[B] and [M]", got=f"{list(rows.shape)} and {list(weight.shape)}"
        )
    outside = (episode < 0) | (episode >= len(weight))
    if bool(outside.any()):
        raise ShapeError(
            where, "`episode` names one that has no weight", expected=f"numbers from 0 to M-1={len(weight) - 1}",
            got=f"{int(episode[outside][0])}",
        )  # fmt: skip
    return (rows * weight[episode]).sum()


def _check(where: str, length: Tensor) -> None:
    if length.ndim != 1 or len(length) == 0:
        raise ShapeError(
            where, "`length`", expected="[M]: one length for each of at least one episode", got=str(list(length.shape))
        )
    if bool((length < 1).any()):
        raise ShapeError(
            where,
            "an episode without a step",
            expected="lengths of at least 1",
            got=f"{int(length.min())} in episode {int(length.argmin())}",
            fix="drop the empty columns before weighting",
        )
