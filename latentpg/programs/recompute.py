"""Trade time for memory: forget what a function has saved for its backward pass, and run it again when that is wanted.

This is activation checkpointing (Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016).
``torch.utils.checkpoint`` does the same, but its first call imports the whole of ``torch.compile``: a second and 75 MB
that a program that never compiles should not pay for.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Place:
    """Stands in the graph where a saved tensor would."""

    __slots__ = ("__weakref__",)


def recomputed(function: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Return ``function()``, keeping nothing that its backward pass needs; that pass calls ``function`` once more.

    ``function`` must save the same tensors both times: it draws nothing, and what it reads has not changed. Whatever it
    depends on gets its gradient, closures and module parameters alike. It runs again under the autocast of its first
    run.

    >>> x = torch.ones(2, requires_grad=True)
    >>> recomputed(lambda: (3 * x).exp().sum(), x.device).backward()
    >>> x.grad
    tensor([60.2566, 60.2566])
    """
    places: list[weakref.ref[_Place]] = []
    saved: weakref.WeakKeyDictionary[_Place, Tensor] = weakref.WeakKeyDictionary()
    kind = device.type
    autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def leave_a_place(tensor: Tensor) -> _Place:
        place = _Place()
        places.append(weakref.ref(place))
        return place

    def fill(place: _Place) -> Tensor:
        if place not in saved:
            _run_again()
        return saved[place]

    def _run_again() -> None:
        wanted = iter(places)

        def keep(tensor: Tensor) -> None:
            place = next(wanted)()
            if place is not None:  # a part of the graph that is gone wants nothing
                saved[place] = tensor.detach()

        again = torch.autocast(kind, enabled=autocast[0], dtype=autocast[1])
        with torch.enable_grad(), again, saved_tensors_hooks(keep, _unpack_never):
            function()

    with saved_tensors_hooks(leave_a_place, fill):
        return function()


def _unpack_never(place: None) -> Tensor:
    raise AssertionError("the second run is for its saved tensors alone; nothing goes backward through it")
