"""Rows: one row is the span of one latent.

An observation batch is a tensor ``[B, ...]`` or a named tuple of tensors that all lead with B. A latent drawn at every
step makes each step a row. A latent held for a chunk or an episode makes the chunk or the episode one row, with time
inside it: :class:`Span` carries ``obs [B, T, S]`` and the mask of the steps that were really executed, and the row's
log-likelihood is the sum over those steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import ShapeError


class Span(NamedTuple):
    """Rows of several steps that share one latent.

    ``obs`` is ``[B, T, S]``; ``mask`` is ``[B, T]``, true where the step was executed, and each row's first step must
    be.

    >>> Span(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)).first.shape
    torch.Size([2, 4])
    """

    obs: Float[Tensor, "B T S"]
    mask: Bool[Tensor, "B T"]

    @property
    def first(self) -> Float[Tensor, "B S"]:
        """The observation at which the latent is drawn: that of each row's first step."""
        return self.obs[:, 0]


Observations: TypeAlias = Tensor | Span
"""A batch of rows: ``[B, ...]``, or a :class:`Span` of several steps a row."""

Nested = TypeVar("Nested")


def num_rows(obs: Observations) -> int:
    """Count the rows B of an observation batch, and refuse one whose parts disagree.

    >>> num_rows(torch.zeros(5, 3))
    5
    """
    leaves = tensors_of(obs)
    # Compared one by one: a set of sizes would make torch.compile generate code for this very B.
    if any(leaf.ndim == 0 or leaf.shape[0] != leaves[0].shape[0] for leaf in leaves):
        raise ShapeError(
            "num_rows()",
            "`obs`",
            expected="tensors that lead with the same number of rows B",
            got=str([list(leaf.shape) for leaf in leaves]),
            fix="stack observations along dimension 0; obs[None] makes one observation a batch",
        )
    return leaves[0].shape[0]


def take_rows(values: Nested, index: slice | Tensor, *, dim: int = 0) -> Nested:
    """Slice rows out of a tensor, or out of every tensor of a tuple or mapping.

    >>> take_rows(torch.arange(4), slice(1, 3))
    tensor([1, 2])
    """

    def take(leaf: Tensor) -> Tensor:
        return leaf[(slice(None),) * dim + (index,)]

    return _map(take, values)


def repeat_rows(values: Nested, num_particles: int) -> Nested:
    """Repeat every row K times, particles outermost: ``[B, ...]`` becomes ``[K * B, ...]``.

    >>> repeat_rows(torch.tensor([1, 2]), 2)
    tensor([1, 2, 1, 2])
    """

    def repeat(leaf: Tensor) -> Tensor:
        return leaf.unsqueeze(0).expand(num_particles, *leaf.shape).flatten(0, 1)  # also where a row is empty

    return _map(repeat, values)


def _map(function: Callable[[Tensor], Tensor], values: Any) -> Any:  # noqa: ANN401 (whatever it was)
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, Mapping):
        return {name: _map(function, leaf) for name, leaf in values.items()}
    if isinstance(values, tuple):
        parts = [_map(function, leaf) for leaf in values]
        return type(values)(*parts) if hasattr(values, "_fields") else type(values)(parts)
    raise _strange(values)


def _strange(values: object) -> ShapeError:
    expected = "a tensor, or a tuple or mapping of tensors"
    return ShapeError("rows", "`obs`", expected=expected, got=type(values).__name__)


def tensors_of(values: object) -> list[Tensor]:
    """List every tensor of a tuple or mapping, nested or not."""
    found: list[Tensor] = []
    _collect(values, found)
    if not found:
        raise ShapeError("rows", "`obs`", expected="at least one tensor", got=repr(values))
    return found


def _collect(values: object, found: list[Tensor]) -> None:
    if isinstance(values, Tensor):
        found.append(values)
    elif isinstance(values, Mapping | tuple):
        for leaf in values.values() if isinstance(values, Mapping) else values:
            _collect(leaf, found)
    else:
        raise _strange(values)


def is_concrete() -> bool:
    """Tell whether tensors hold numbers to look at: not under ``torch.func`` transforms or ``torch.compile``.

    >>> is_concrete()
    True
    """
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
