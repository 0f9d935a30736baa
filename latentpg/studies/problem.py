"""What a study measures on: a policy, rows of observations and actions, and what is known exactly about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from latentpg.estimators import Estimator
from latentpg.programs import LatentPolicy, Latents, Observations

Rows: TypeAlias = tuple[Observations, Tensor]
"""A batch: observations and actions of the same rows."""

Redraw = Callable[[], Latents]
"""Draws one joint latent ``[B, ...]`` a row from the exact posterior p(z | s, a), from the ambient stream."""


def _nothing() -> None:
    """Look away."""


@dataclass(frozen=True)
class Trainee:
    """A policy to be trained, the batches it is trained on, and what is measured of it.

    ``batches`` are one fixed batch or an endless iterator of them. ``measure`` gives numbers by the name of their
    measure, each ``[N]``: those of N independent repetitions that the policy may hold, and one as a rule. ``truths``
    are the numbers that some of them should come to. ``observe`` is called after every step, for a measure that looks
    back.
    """

    policy: LatentPolicy
    batches: Rows | Iterator[Rows]
    measure: Callable[[], Mapping[str, Tensor]]
    truths: Mapping[str, float] = field(default_factory=dict)
    observe: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Problem:
    """What a source builds: a policy, B rows, and facts worth reporting about both.

    ``exact`` is an estimator without error, by which references are computed, or None where there is none; ``redraw``
    draws exact posterior latents at the policy's own parameters, or is None where they cannot be had. ``latents`` are
    those recorded while acting, or None for rows that came without. ``seed`` is the study's: what a target draws once
    and keeps, such as rewards or a drift, hangs on it. ``trainee`` makes a policy to be trained from the start, anew at
    every call from the ambient stream; without it a copy of ``policy`` is trained on the rows. ``every_action`` are all
    actions ``[A, ...]`` a row can have, where they are few. ``weights`` ``[B]`` sum to one, and stand for equal ones if
    they are not given: an average over rows is by them.
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
    trainee: Callable[[], Trainee] | None = None
    every_action: Tensor | None = None
    weights: Tensor | None = None


@runtime_checkable
class Source(Protocol):
    """Where a study's rows come from: a frozen dataclass, whose fields are its configuration."""

    def build(self, seed: int) -> Problem:
        """Build the policy and the rows, the same ones for the same seed."""
        ...

    def describe(self) -> str:
        """Say in a few words what the rows are, for captions."""
        ...
