"""Where the guide puts what was learnt from: in the plane of two principal axes, or among the values of a code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from latentpg.cloning.places import PLACES
from latentpg.cloning.preparing import Prepared
from latentpg.imitation.divergences import gaussian_parameters
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import draw_guide, row_blocks

MOST_POINTS = 3000
"""Rows that are drawn, at most."""


@dataclass(frozen=True)
class Axes:
    """The guide's means on their two principal axes ``[B, 2]``, the share of the variance of each, and rows' modes."""

    points: Float[NDArray[np.float64], "B 2"]
    share: tuple[float, float]
    mode: Int[Tensor, " B"]


@dataclass(frozen=True)
class Codes:
    """How often the guide gives a value of a discrete latent to rows of a mode: ``[M, C]``, a row's sum is one."""

    share: Float[NDArray[np.float64], "M C"]


def latents_by_mode(built: Prepared) -> Axes | Codes | None:
    """Ask the guide about what was learnt from; None where there is no guide.

    Gaussian sites are looked at together; a discrete site only where there is none.
    """
    policy, rows = built.policy, built.rows
    if not policy.guide_parameters():
        return None
    rows = rows.take(slice(None, None, -(-rows.size // MOST_POINTS)))
    with seeded(stream_seed(built.config.run.seed, "drawn latents")), torch.no_grad():
        with row_blocks(max(1, 2**18 // rows.longest)):
            drawn = draw_guide(policy, rows.obs, rows.action, num_particles=1)
    mode = episode_modes(built)[rows.episode.cpu()]
    means = [
        fn.mean.expand(drawn.latents[name].shape).reshape(rows.size, -1)
        for name, fn in drawn.distributions.items()
        if gaussian_parameters(fn) is not None
    ]
    if means:
        points, share = principal_axes(torch.cat(means, 1).double().cpu())
        return Axes(points.numpy(), share, mode)
    for fn in drawn.distributions.values():
        if fn.has_enumerate_support:
            values = fn.enumerate_support(expand=False)
            chance = fn.log_prob(values).exp().reshape(len(values), rows.size).T.double().cpu()
            present = mode.clamp(min=0)
            table = torch.zeros(int(present.max()) + 1, len(values), dtype=torch.float64)
            table.index_add_(0, present, chance)
            return Codes((table / table.sum(1, keepdim=True).clamp(min=1e-12)).numpy())
    return None


def episode_modes(built: Prepared) -> Int[Tensor, " E"]:
    """Return the mode of each training episode, or -1 where it is not known."""
    train, place = built.split.train, PLACES.get(built.config.selection.env or "")
    if train.mode is not None:
        return train.mode
    if place is not None:
        return torch.from_numpy(place.modes(train.obs.numpy(), train.lengths.numpy()))
    return torch.full((train.num_episodes,), -1)


def principal_axes(points: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B 2"], tuple[float, float]]:
    """Return points on their two axes of largest variance, and its share on each; one dimension stands beside zeros.

    >>> points, share = principal_axes(torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64))
    >>> points.abs().round(decimals=6).tolist(), round(share[0], 6)
    ([[2.5, 0.0], [2.5, 0.0]], 1.0)
    """
    centred = points - points.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    total = float(values.square().sum()) or 1.0
    shares = [*(values.square() / total).tolist(), 0.0]
    placed = left * values
    # of the two directions of an axis, the one in which the largest entry is positive
    placed = placed * placed.gather(0, placed.abs().argmax(0, keepdim=True)).sign()
    if placed.shape[1] < 2:
        placed = torch.cat([placed, torch.zeros_like(placed)], 1)
    return placed[:, :2], (shares[0], shares[1])
