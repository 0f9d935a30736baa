"""Whole episodes, ragged: flat rows with the episode each belongs to, and the padded forms of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.programs import Latents, Span, take_rows
from latentpg.rollout.transitions import Transitions


@dataclass(frozen=True)
class SpanRows:
    r"""E episodes as E rows of a latent that was held: what an estimator takes for one row each.

    ``obs`` is a :class:`~latentpg.programs.Span` ``[E, T, S]`` with its mask, ``action`` is ``[E, T, ...]`` with zeros
    behind an episode's end, ``latents`` are ``[E, ...]`` and ``log_joint`` is
    :math:`\log p(z|s_0) + \sum_t \log p(a_t|s_t,z)`.
    """

    obs: Span
    action: Tensor
    latents: Latents
    log_joint: Float[Tensor, " E"]


@dataclass(frozen=True)
class Decisions:
    """C decisions on several steps each, in the order of M steps: their rows, and the steps at which each was made."""

    rows: SpanRows
    begins: Bool[Tensor, " M"]


@dataclass(frozen=True)
class Episodes:
    """E whole episodes as M rows: episode 0 from its first step to its last, then episode 1, and so on.

    ``episode [M]`` is each row's episode. Episodes lie in groups of ``group_size``, in order: episode e is member
    ``e % group_size`` of group ``e // group_size``. With ``held`` true one latent was drawn at the first step of each
    episode: it stands in every row of it, and ``log_joint`` holds log p(z | s_0) + log p(a_0 | s_0, z) in the first row
    and log p(a_t | s_t, z) in the others, so that an episode's sum is that of its row of :meth:`spans`. With
    ``decisions`` chunks were carried out: latents and ``log_joint`` are theirs, and those of the steps are empty.
    ``num_idle_steps`` counts steps of members that had no episode to play and were stepped along with the others;
    nothing of them is recorded.
    """

    transitions: Transitions
    episode: Int[Tensor, " M"]
    group_size: int
    held: bool = False
    num_idle_steps: int = 0
    decisions: Decisions | None = None

    def __post_init__(self) -> None:
        """Check that rows are sorted by episode, that none is empty, and that groups are full."""
        steps = torch.diff(self.episode, prepend=self.episode.new_tensor([-1]))
        if len(self.episode) != self.transitions.num_rows or not bool(((steps == 0) | (steps == 1)).all()):
            raise ShapeError(
                "Episodes()",
                "`episode`",
                expected=f"[M={self.transitions.num_rows}], rising from 0 in steps of 0 or 1",
                got=str(self.episode.tolist()[:20]),
            )
        if self.group_size < 1 or self.num_episodes % self.group_size:
            raise ShapeError(
                "Episodes()",
                "`group_size`",
                expected=f"a divisor of the {self.num_episodes} episodes",
                got=str(self.group_size),
            )

    @property
    def num_episodes(self) -> int:
        """E."""
        return int(self.episode[-1]) + 1 if len(self.episode) else 0

    @property
    def num_groups(self) -> int:
        """E / G."""
        return self.num_episodes // self.group_size

    @property
    def group(self) -> Int[Tensor, " M"]:
        """Each row's group."""
        return self.episode // self.group_size

    @property
    def lengths(self) -> Int[Tensor, " E"]:
        """Steps of each episode."""
        return torch.bincount(self.episode, minlength=self.num_episodes)

    @property
    def step(self) -> Int[Tensor, " M"]:
        """Each row's step within its episode, from 0."""
        lengths = self.lengths
        return torch.arange(len(self.episode), device=lengths.device) - (lengths.cumsum(0) - lengths)[self.episode]

    @property
    def begins(self) -> Bool[Tensor, " M"]:
        """Steps at which a latent was drawn, and so a row begins: all, the first of each episode, or of each chunk."""
        if self.decisions is not None:
            return self.decisions.begins
        return self.step == 0 if self.held else torch.ones_like(self.episode, dtype=torch.bool)

    @property
    def returns(self) -> Float[Tensor, " E"]:
        """Undiscounted sum of each episode's rewards, in float64."""
        total = torch.zeros(self.num_episodes, dtype=torch.float64, device=self.episode.device)
        return total.index_add_(0, self.episode, self.transitions.reward.double())

    @property
    def group_returns(self) -> Float[Tensor, "groups G"]:
        """Returns, a group a row."""
        return self.returns.unflatten(0, (-1, self.group_size))

    @property
    def mask(self) -> Bool[Tensor, "T E"]:
        """Which steps of the padded form were taken; T is the longest episode's length."""
        lengths = self.lengths
        return torch.arange(int(lengths.max()), device=lengths.device).unsqueeze(1) < lengths

    def pad(self, values: Tensor, *, fill: float | int | bool = 0) -> Tensor:
        """Spread rows ``[M, ...]`` over ``[T, E, ...]``, with ``fill`` behind each episode's end."""
        self._check("pad", values, len(self.episode), "M")
        padded = values.new_full((int(self.lengths.max()), self.num_episodes, *values.shape[1:]), fill)
        padded[self.step, self.episode] = values
        return padded

    def unpad(self, values: Tensor) -> Tensor:
        """Take the rows ``[M, ...]`` out of ``[T, E, ...]``; the inverse of :meth:`pad`."""
        expected = (int(self.lengths.max()), self.num_episodes)
        if tuple(values.shape[:2]) != expected:
            raise ShapeError(
                "Episodes.unpad()",
                "`values`",
                expected=f"[T={expected[0]}, E={expected[1]}, ...]",
                got=str(list(values.shape)),
            )
        return values[self.step, self.episode]

    def spread(self, values: Tensor) -> Tensor:
        """Give every row ``[M, ...]`` what its episode has in ``[E, ...]``: a group advantage, say."""
        self._check("spread", values, self.num_episodes, "E")
        return values[self.episode]

    def spans(self) -> SpanRows:
        """Return each episode as one row, or each chunk, where a latent was held for one."""
        if self.decisions is not None:
            return self.decisions.rows
        if not self.held:
            raise OptionError(
                "Episodes.spans()",
                "each step drew a latent of its own, so each step is a row",
                expected='episodes collected with latent="episode" or "chunk"',
                got='latent="step"',
                fix="use .transitions",
            )
        first = self.step == 0
        rows = self.transitions
        total = rows.log_joint.new_zeros(self.num_episodes).index_add_(0, self.episode, rows.log_joint)
        return SpanRows(
            Span(self.pad(rows.obs).transpose(0, 1), self.mask.T),
            self.pad(rows.action).transpose(0, 1),
            take_rows(rows.latents, first),
            total,
        )

    def _check(self, method: str, values: Tensor, size: int, letter: str) -> None:
        if values.ndim == 0 or len(values) != size:
            raise ShapeError(
                f"Episodes.{method}()", "`values`", expected=f"[{letter}={size}, ...]", got=str(list(values.shape))
            )
