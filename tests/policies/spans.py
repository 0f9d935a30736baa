"""Policies over several steps in small, rows for them, and what is true of any of them."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.policies import ChunkPolicy, CodeLatent, EpisodePolicy, GaussianLatent
from latentpg.policies.priors import Latent
from latentpg.programs import Span

SEEN = spaces.Box(-1.0, 1.0, (3,))

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=2),
    "multi-discrete": spaces.MultiDiscrete(np.array([2, 3])),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}

LATENTS: dict[str, Latent] = {
    "standard": GaussianLatent(2, "standard"),
    "learned": GaussianLatent(2, "learned"),
    "mixture": GaussianLatent(2, "mixture", 4),
    "codes": CodeLatent(5),
}

KINDS = {"episode": ("attention", "gru"), "chunk": ("mlp", "transformer")}
"""Each kind of policy, and the two ways of building it."""

VARIANTS = [(kind, how) for kind, ways in KINDS.items() for how in ways]

ROWS = 3
STEPS = 4
LENGTHS = (4, 1, 3)

SpanPolicy = EpisodePolicy | ChunkPolicy


def make(
    kind: str, how: str, latent: str = "learned", actions: str = "box", *, encoder: nn.Module | None = None
) -> SpanPolicy:
    """Build a policy with small networks, in float64."""
    space, chosen = ACTIONS[actions], LATENTS[latent]
    policy: SpanPolicy
    if kind == "episode":
        reader: Any = how
        policy = EpisodePolicy(SEEN, space, latent=chosen, reader=reader, hidden=(6, 4), encoder=encoder)
    else:
        decoder: Any = how
        policy = ChunkPolicy(
            SEEN, space, horizon=STEPS, latent=chosen, decoder=decoder, hidden=(6, 4), num_heads=2, encoder=encoder
        )
    return policy.double()


def some_span() -> Span:
    """Draw spans of unequal length."""
    mask = torch.arange(STEPS) < torch.tensor(LENGTHS).unsqueeze(1)
    return Span(torch.randn(ROWS, STEPS, 3, dtype=torch.float64), mask)


def spoil(span: Span, values: Tensor) -> Tensor:
    """Put NaN, or a category that is none, into whatever is padding."""
    mask = span.mask.reshape(*span.mask.shape, *[1] * (values.ndim - 2))
    return values.masked_fill(~mask, torch.nan if values.is_floating_point() else -7)
