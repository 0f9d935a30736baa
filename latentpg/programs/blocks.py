"""Score log p(z_k, a | s) of any number of rows in bounded memory, block by block over rows.

Rows never interact, so blocks give what one piece gives. A block keeps nothing for its backward pass but its place; it
is scored once more when that pass arrives (:mod:`latentpg.programs.recompute`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError
from latentpg.programs.capture import rows_from
from latentpg.programs.categories import every_category
from latentpg.programs.policy import LatentPolicy, model_parameters
from latentpg.programs.recompute import recomputed
from latentpg.programs.rows import Observations, is_concrete, num_rows, take_rows, tensors_of
from latentpg.programs.run import Latents, check_rows, count_particles, score_in_one_piece

DEFAULT_BLOCK = 8192
"""Particles (K times rows) that are scored in one piece; see :func:`row_blocks`."""

_block: ContextVar[int] = ContextVar("latentpg_block_particles", default=DEFAULT_BLOCK)

Scorer = Callable[[LatentPolicy, Observations, Tensor, Latents], Tensor]
"""Computes log p(z_k, a | s) of a block of rows: :func:`score_in_one_piece`, or another way to the same numbers."""

_scorer: ContextVar[Scorer] = ContextVar("latentpg_scorer", default=score_in_one_piece)


@contextmanager
def scoring_with(scorer: Scorer) -> Iterator[None]:
    """Let :func:`log_joint` score its blocks by ``scorer`` inside the scope; ``torch.func`` transforms never do."""
    token = _scorer.set(scorer)
    try:
        yield
    finally:
        _scorer.reset(token)


@contextmanager
def row_blocks(particles: int) -> Iterator[None]:
    """Score in blocks of at most this many particles (K times rows) inside the scope; the default is 8,192.

    A block's activations are freed before the next is run, and recomputed in the backward pass, so that memory does not
    grow with the batch. Rows never interact, so the result is the same.
    """
    if particles < 1:
        raise OptionError("row_blocks()", "`particles`", expected="an integer >= 1", got=repr(particles))
    token = _block.set(particles)
    try:
        yield
    finally:
        _block.reset(token)


def log_joint(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Float[Tensor, "K B"]:
    r"""Compute :math:`\log p(z_k, a \mid s) = \log p_\phi(z_k \mid s) + \log p_\theta(a \mid s, z_k)`.

    More than a block of particles (see :func:`row_blocks`) is scored block by block over rows. Of a policy that names
    the ``categories`` of its latent, and has fewer of them than there are particles, each category is scored once.
    """
    rows, score = num_rows(obs), _scorer.get()
    known = every_category(policy, latents, rows)
    if known is not None:
        categories, table = known
        return log_joint(policy, obs, action, table).gather(0, categories)
    if not is_concrete():
        return score_in_one_piece(policy, obs, action, latents)
    size = max(1, _block.get() // count_particles(latents))
    if rows <= size or any(value.shape[1:2] != (rows,) for value in latents.values()):
        return score(policy, obs, action, latents)  # what does not fit is told of the whole, not of a block
    check_rows(action, rows)
    pieces = []
    for start in range(0, rows, size):
        index = slice(start, start + size)
        piece = (take_rows(obs, index), action[index], take_rows(dict(latents), index, dim=1))
        with rows_from(start):
            if torch.is_grad_enabled():
                run = partial(score, policy, *piece)
                pieces.append(recomputed(_unless_moved(run, policy, piece), action.device))
            else:
                pieces.append(score(policy, *piece))
    return torch.cat(pieces, 1)


def _unless_moved(score: Callable[[], Tensor], policy: LatentPolicy, piece: tuple[Any, ...]) -> Callable[[], Tensor]:
    """Refuse to score again, for the backward pass, what has moved since: the gradient would belong to neither."""

    def state() -> list[tuple[int, int]]:
        tensors = [*model_parameters(policy), *tensors_of(piece)]
        return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]

    before = state()

    def run() -> Tensor:
        if state() != before:
            raise EstimatorError(
                "log_joint(), backward pass of a block of rows",
                "what was scored has changed since the forward pass",
                expected="the same parameters, observations, actions and latents: blocks are scored a second time",
                got="a tensor modified in place, or other parameters (as after torch.func.functional_call)",
                fix="take the gradient before the optimiser's step, or score in one piece: row_blocks(10**9)",
            )
        return score()

    return run
