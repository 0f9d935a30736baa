r"""Rows of several steps: what an estimator takes for one latent each.

A latent that is held for a chunk of actions, or for a whole episode, makes the chunk or the episode **one** row, and
its log-likelihood is the sum over the steps that were executed (see :class:`~latentpg.programs.Span`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentpg.data.demonstrations import Demonstrations
from latentpg.errors import OptionError
from latentpg.programs import Span


@dataclass(frozen=True)
class DemonstrationRows:
    """B rows of at most T steps: ``obs`` a :class:`~latentpg.programs.Span` ``[B, T, S]``, ``action [B, T, ...]``.

    The span's mask is true where the demonstration has a step; behind its end everything is zero. ``executed [B, T]``
    is true at the steps that are done before the next row takes over. Row b is of episode ``episode[b]`` and begins
    at its step ``step[b]``.
    """

    obs: Span
    action: Tensor
    executed: Bool[Tensor, "B T"]
    episode: Int[Tensor, " B"]
    step: Int[Tensor, " B"]

    @property
    def scored(self) -> Span:
        """The span of the executed steps: the one to score for a likelihood."""
        return Span(self.obs.obs, self.executed)

    def take(self, rows: Int[Tensor, " N"]) -> DemonstrationRows:
        """Return some rows: a minibatch."""
        return DemonstrationRows(
            Span(self.obs.obs[rows], self.obs.mask[rows]),
            self.action[rows],
            self.executed[rows],
            self.episode[rows],
            self.step[rows],
        )


def episode_rows(demonstrations: Demonstrations) -> DemonstrationRows:
    """Make each episode one row, for a latent that is held for all of it.

    >>> demos = Demonstrations.from_episodes([[[0.0], [1.0]], [[5.0]]], [[[1.0], [1.0]], [[-1.0]]])
    >>> episode_rows(demos).obs.mask.tolist()
    [[True, True], [True, False]]
    """
    longest = int(demonstrations.lengths.max())
    return _gather(demonstrations, demonstrations.starts, longest, longest)


def chunk_rows(
    demonstrations: Demonstrations, *, horizon: int, execute: int | None = None, stride: int | None = None
) -> DemonstrationRows:
    r"""Cut episodes into chunks of ``horizon`` actions, of which the first ``execute`` are done before the next chunk.

    A chunk begins at every ``stride``-th step, by default ``execute``: then each step is executed in exactly one row,
    and an episode's log-likelihood under open-loop execution is the sum over its rows of the executed steps' joint
    log-likelihood. ``stride=1`` gives more, overlapping rows to learn from; their sum is no likelihood of anything.

    >>> demos = Demonstrations.from_episodes([[[0.0], [1.0], [2.0]]], [[[0.0], [10.0], [20.0]]])
    >>> rows = chunk_rows(demos, horizon=2, execute=1)
    >>> rows.action[..., 0].tolist(), rows.executed.tolist()
    ([[0.0, 10.0], [10.0, 20.0], [20.0, 0.0]], [[True, False], [True, False], [True, False]])
    """
    execute = horizon if execute is None else execute
    stride = execute if stride is None else stride
    if not 1 <= execute <= horizon or stride < 1:
        raise OptionError(
            "chunk_rows()",
            "`horizon`, `execute` and `stride`",
            expected="1 <= execute <= horizon, and stride >= 1",
            got=f"{horizon}, {execute} and {stride}",
            fix="horizon=8, execute=4",
        )
    first = (demonstrations.step % stride == 0).nonzero().flatten()
    return _gather(demonstrations, first, horizon, execute)


def _gather(demonstrations: Demonstrations, first: Tensor, horizon: int, execute: int) -> DemonstrationRows:
    """Take ``horizon`` steps from each row of ``first`` on, as far as its episode goes."""
    episode, step = demonstrations.episode[first], demonstrations.step[first]
    ahead = torch.arange(horizon)
    mask = step.unsqueeze(1) + ahead < demonstrations.lengths[episode].unsqueeze(1)
    index = (first.unsqueeze(1) + ahead).where(mask, first.unsqueeze(1))

    def spread(values: Tensor) -> Tensor:
        return values[index].masked_fill(~mask.reshape(*mask.shape, *[1] * (values.ndim - 1)), 0)

    return DemonstrationRows(
        Span(spread(demonstrations.obs), mask), spread(demonstrations.action), mask & (ahead < execute), episode, step
    )
