r"""Particles of one category each: score every category once and look the particles up.

Of K particles over C < K categories many are alike, and log p(z, a | s) of a row knows nothing but the category: the
table ``[C, B]`` holds all there is, and its gradient is the sum of what the particles ask of each entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentpg.programs.policy import LatentPolicy
from latentpg.programs.rows import is_concrete
from latentpg.programs.run import Latents, count_particles


def every_category(policy: LatentPolicy, latents: Latents, rows: int) -> tuple[Tensor, Latents] | None:
    """Return the particles' categories ``[K, B]`` and, as latents ``[C, B]``, all that there are, where that is fewer.

    A policy says of its one latent site how many categories it has by an attribute ``categories``, ``{site: C}``;
    every row has all of them. Without it, and where categories do not lie in [0, C), there is nothing to return.

    >>> from gymnasium import spaces
    >>> from latentpg.policies import MixturePolicy
    >>> policy = MixturePolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), num_components=2)
    >>> index, table = every_category(policy, {"z": torch.tensor([[0, 1], [1, 1], [0, 1]])}, 2)
    >>> table["z"].tolist()
    [[0, 0], [1, 1]]
    """
    sizes = getattr(policy, "categories", None)
    if not sizes or len(latents) != 1 or sizes.keys() != latents.keys():
        return None
    (name, index), (size,) = next(iter(latents.items())), sizes.values()
    if index.dtype != torch.int64 or index.ndim != 2 or index.shape[1] != rows or size >= count_particles(latents):
        return None
    if is_concrete() and not _inside(index, size):
        return None
    table = torch.arange(size, device=index.device).unsqueeze(1).expand(size, rows)
    return index, {name: table.contiguous()}  # compiled code is kept for one layout in memory, that of drawn particles


def _inside(index: Tensor, size: int) -> bool:
    low, high = index.aminmax()
    return bool(low >= 0) and bool(high < size)
