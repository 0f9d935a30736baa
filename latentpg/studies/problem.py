"""What a study measures on: a policy, rows of observations and actions, and what is known exactly about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from latentpg.estimators import Estimator
from latentpg.programs import LatentPolicy, Latents, Observations

Redraw = Callable[[], Latents]
"""Draws one joint latent ``[B, ...]`` a row from the exact posterior p(z | s, a), from the ambient stream."""


@dataclass(frozen=True)
class Problem:
    """What a source builds: a policy, B rows, and facts worth reporting about both.

    ``exact`` is an estimator without error, by which references are computed, or None where there is none; ``redraw``
    draws exact posterior latents at the policy's own parameters, or is None where they cannot be had. ``latents`` are
    those recorded while acting, or None for rows that came without. ``seed`` is the study's: what a target draws once
    and keeps, such as rewards or a drift, hangs on it.
    """

    policy: LatentPolicy
    obs: Observations
    action: Tensor
    latents: Latents | None = None
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    exact: Estimator | None = None
    redraw: Redraw | None = None
    seed: int = 0
    guide_losses: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Where a study's rows come from: a frozen dataclass, whose fields are its configuration."""

    def build(self, seed: int) -> Problem:
        """Build the policy and the rows, the same ones for the same seed."""
        ...

    def describe(self) -> str:
        """Say in a few words what the rows are, for captions."""
        ...
