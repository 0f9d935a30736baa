"""What the functions of this room refuse: shapes that would broadcast, masks that are none, numbers out of range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError


def same_shape(where: str, name: str, reference: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse ``other`` unless its shape is exactly that of ``reference``, called ``name``."""
    if other.shape == reference.shape:
        return
    trailing_one = other.shape[:-1] == reference.shape and other.shape[-1:] == (1,)
    raise ShapeError(
        where,
        f"`{other_name}`",
        expected=f"{list(reference.shape)}, the shape of `{name}`",
        got=str(list(other.shape)),
        likely="a trailing dimension of size one, which would broadcast" if trailing_one else None,
        fix=f"{other_name}.squeeze(-1)" if trailing_one else None,
    )


def time_major(where: str, name: str, steps: Tensor, *, columns: str = "environments second") -> None:
    """Refuse what is not ``[T, N]`` with at least one step."""
    if steps.ndim != 2 or steps.shape[0] == 0:
        raise ShapeError(
            where,
            f"`{name}`",
            expected=f"[T, N] with T >= 1: time first, {columns}",
            got=str(list(steps.shape)),
            fix=f"for one episode: {name}.unsqueeze(-1)" if steps.ndim == 1 else None,
        )


def mask_of(where: str, name: str, reference: Tensor, mask_name: str, mask: Tensor) -> None:
    """Refuse a mask that is not boolean, or not of exactly the shape of the steps it belongs to."""
    if mask.shape != reference.shape:
        raise ShapeError(
            where,
            f"`{mask_name}`",
            expected=f"[T={reference.shape[0]}, N={reference.shape[1]}], the shape of `{name}`",
            got=str(list(mask.shape)),
        )
    if mask.dtype != torch.bool:
        raise ShapeError(
            where,
            f"`{mask_name}` is not a mask",
            expected="dtype torch.bool",
            got=str(mask.dtype),
            fix=f"{mask_name}.bool()",
        )


def fraction(where: str, name: str, value: float | int) -> None:
    """Refuse what does not lie in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise OptionError(where, f"`{name}`", expected="a number in [0, 1]", got=repr(value))


def positive(where: str, name: str, value: float | int, *, fix: str | None = None) -> None:
    """Refuse what is not a finite number above 0."""
    if not (math.isfinite(value) and value > 0.0):
        raise OptionError(where, f"`{name}`", expected="a positive number", got=repr(value), fix=fix)


def not_negative(where: str, name: str, value: float | int) -> None:
    """Refuse what is not a finite number of at least 0."""
    if not (math.isfinite(value) and value >= 0.0):
        raise OptionError(where, f"`{name}`", expected="a finite number, 0 or above", got=repr(value))
