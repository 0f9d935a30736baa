"""Checks and conversions that several feature maps share."""

from __future__ import annotations

from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.policies.common import check_sizes

LARGEST_MAP = 2**20  # features; beyond it a row alone is megabytes


def per_dimension(where: str, name: str, value: int | tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return one integer a dimension, from one for all or one for each."""
    numbers = value if isinstance(value, tuple) else (value,) * size
    if len(numbers) != size:
        raise OptionError(
            where, f"`{name}`", expected=f"one integer, or {size}, one a dimension", got=f"{len(numbers)}: {value}"
        )
    for number in numbers:
        check_sizes(where, **{name: number})
    return numbers


def check_map_size(where: str, size: int) -> None:
    """Refuse a map whose rows would fill the memory."""
    if size > LARGEST_MAP:
        raise OptionError(
            where,
            "too many features",
            expected=f"at most {LARGEST_MAP}; their number grows with the power of the dimensions",
            got=str(size),
            fix="fewer a dimension, coupling=1 where there is one, or a NetworkCritic",
        )


def check_observations(where: str, obs: Tensor, size: int) -> None:
    """Refuse what is not flat observations ``[B, S]``."""
    if obs.ndim != 2 or obs.shape[1] != size:
        raise ShapeError(
            where,
            "`obs`",
            expected=f"[B, S={size}]",
            got=str(list(obs.shape)),
            fix="obs.unsqueeze(0) makes one observation a batch; obs.flatten(0, 1) makes steps [T, N, S] rows"
            if obs.shape[-1:] == (size,)
            else "encode_observations(space, obs) flattens what an environment returns",
        )
