"""What is fitted: rows of observation and action, and the episode that each was cut from.

Any rows that the policy at hand takes will do: steps, chunks, whole episodes (:mod:`latentpg.data.rows`), or bare
points of a density. Demonstrations carry no latent, so none is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.data import DemonstrationRows, Demonstrations
from latentpg.errors import OptionError, ShapeError
from latentpg.evaluation.likelihood import PIECE
from latentpg.programs import Observations, Span, num_rows, row_blocks, take_rows
from latentpg.programs.blocks import DEFAULT_BLOCK


@dataclass(frozen=True, eq=False)
class FitRows:
    """B rows to fit or to be measured on: observations, actions ``[B, ...]`` and episode numbers ``[B]``.

    >>> point_rows(torch.zeros(3, 2)).size
    3
    """

    obs: Observations
    action: Tensor
    episode: Int[Tensor, " B"]

    def __post_init__(self) -> None:
        """Check that the three agree, and that there is anything at all."""
        rows = num_rows(self.obs)
        found = (rows, len(self.action) if self.action.ndim else -1, *self.episode.shape)
        if rows < 1 or found != (rows, rows, rows):
            raise ShapeError(
                "FitRows()",
                "no rows" if rows == 0 else "`obs`, `action` and `episode`",
                expected="[B, ...], [B, ...] and [B], with B >= 1",
                got=f"{rows} rows, {list(self.action.shape)} and {list(self.episode.shape)}",
                likely="an empty split" if rows == 0 else None,
            )

    @property
    def size(self) -> int:
        """B."""
        return num_rows(self.obs)

    @property
    def dimensions(self) -> float:
        """Numbers that are scored in a row, on average: its steps times the entries of an action."""
        if isinstance(self.obs, Span):
            return float(self.obs.mask.sum()) / self.size * math.prod(self.action.shape[2:])
        return float(math.prod(self.action.shape[1:]))

    @property
    def longest(self) -> int:
        """Steps that a row has room for."""
        return self.obs.obs.shape[1] if isinstance(self.obs, Span) else 1

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.action.device

    def to(self, device: torch.device) -> FitRows:
        """Return the same rows on another device."""
        obs = Span(*(part.to(device) for part in self.obs)) if isinstance(self.obs, Span) else self.obs.to(device)
        return FitRows(obs, self.action.to(device), self.episode.to(device))

    def take(self, index: slice | Tensor) -> FitRows:
        """Take some rows: a minibatch."""
        return FitRows(take_rows(self.obs, index), self.action[index], self.episode[index])


@contextmanager
def bounded(rows: FitRows) -> Iterator[None]:
    """Score rows of many steps in smaller blocks inside the scope: :data:`PIECE` bounds steps, not rows, at a time."""
    with row_blocks(max(1, min(DEFAULT_BLOCK, PIECE // rows.longest))):
        yield


def with_noise(obs: Observations, scale: float | int) -> Observations:
    """Add Gaussian noise of one standard deviation to every entry of observations, from the ambient stream.

    >>> torch.equal(with_noise(torch.zeros(2, 3), 0.0), torch.zeros(2, 3))
    True
    """
    if scale == 0:
        return obs
    if isinstance(obs, Span):
        return Span(obs.obs + scale * torch.randn_like(obs.obs), obs.mask)
    if isinstance(obs, Tensor) and obs.is_floating_point():
        return obs + scale * torch.randn_like(obs)
    raise OptionError(
        "with_noise()",
        "noise on observations that are no vectors of floating-point numbers",
        expected="a tensor [B, S] or a Span [B, T, S]",
        got=str(obs.dtype) if isinstance(obs, Tensor) else type(obs).__name__,
        fix="observation_noise=0",
    )


def step_rows(demonstrations: Demonstrations) -> FitRows:
    """Make each step a row, for a latent that is drawn at every step."""
    return FitRows(demonstrations.obs, demonstrations.action, demonstrations.episode)


def span_rows(rows: DemonstrationRows) -> FitRows:
    """Take chunks or episodes with every step that the demonstration has: what is learnt from."""
    return FitRows(rows.obs, rows.action, rows.episode)


def executed_rows(rows: DemonstrationRows) -> FitRows:
    """Take chunks or episodes with their executed steps alone: what a likelihood is measured on."""
    return FitRows(rows.scored, rows.action, rows.episode)


def point_rows(points: Float[Tensor, "B D"]) -> FitRows:
    """Make points rows of nothing to observe: ``obs [B, 1]`` of zeros, each an episode of its own."""
    return FitRows(points.new_zeros(len(points), 1), points, torch.arange(len(points), device=points.device))
