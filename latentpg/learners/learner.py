"""What every learner offers a loop around it: one update at a time, and a state that can be kept.

A state is flat, tensors by name, so that a checkpoint needs no other kind of file for it. Running 2N updates equals N,
``state()``, a new learner built alike, ``restore()`` and N more, bit for bit: updates draw from streams named by their
number, and environments are brought back by replaying each member's episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from latentpg.rollout import CollectorState


@runtime_checkable
class Learner(Protocol):
    """Anything that learns by updates."""

    num_timesteps: int
    num_updates: int

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act and learn once; ``progress`` in [0, 1] is the share of the run that is over. Returns metrics by name."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        ...


def tensors_of(state: CollectorState) -> dict[str, Tensor]:
    """Spell where a collector stands as tensors."""
    return {field.name: torch.as_tensor(getattr(state, field.name)) for field in fields(state)}


def collector_state(tensors: Mapping[str, Tensor]) -> CollectorState:
    """Read it back."""
    return CollectorState(
        seed=int(tensors["seed"]),
        num_resets=int(tensors["num_resets"]),
        reset_seed=tensors["reset_seed"],
        age=tensors["age"],
        actions=tensors["actions"],
        obs=tensors["obs"],
        waiting=tensors["waiting"],
        episode_return=tensors["episode_return"],
    )
