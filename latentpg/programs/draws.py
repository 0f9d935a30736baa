"""The one place where this library draws a random value.

Every latent, action, mixture component and resampling index goes through :func:`draw`. That lets a caller replace the
source of randomness for a while: the exact oracles replay every choice a program makes, quadrature places nodes instead
of draws, and an estimator's whole sampling path is tested without noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution


@runtime_checkable
class DrawSource(Protocol):
    """Produce a value of shape ``sample_shape + fn.batch_shape + fn.event_shape`` for the site called ``name``."""

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        """Return the value; ``pathwise`` asks for one that is differentiable in the parameters of ``fn``."""
        ...


_source: ContextVar[DrawSource | None] = ContextVar("latentpg_draw_source", default=None)


def draw(name: str, fn: Distribution, sample_shape: tuple[int, ...] = (), *, pathwise: bool = False) -> Tensor:
    """Draw from ``fn`` with the ambient random stream, or ask the source that is installed.

    ``pathwise`` draws by ``rsample`` where the distribution has one and by ``sample`` where it has not.
    """
    shape = torch.Size(sample_shape)
    source = _source.get()
    if source is not None:
        return source(name, fn, shape, pathwise=pathwise)
    return fn.rsample(shape) if pathwise and fn.has_rsample else fn.sample(shape)


@contextmanager
def drawing(source: DrawSource) -> Iterator[None]:
    """Let ``source`` answer every :func:`draw` inside the scope."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
