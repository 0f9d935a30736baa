r"""From one observation and one latent to the parameters of H actions.

Both decoders take features ``[B, F]`` and latents ``[..., B, Z]`` (or categories ``[..., B]``) and return ``[..., B, H,
P]``, each of the H actions' own parameters P. The actions are independent given (s, z): what ties them together is z.
Leaving out those behind some step therefore leaves the density of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.policies.common import check_sizes
from latentpg.policies.networks import MLP, ConditionedMLP, one_hot


class MLPChunkDecoder(nn.Module):
    """One network with H * P outputs.

    >>> MLPChunkDecoder(3, [2], 6, 4, (8,))(torch.zeros(5, 3), [torch.zeros(7, 5, 2)]).shape
    torch.Size([7, 5, 6, 4])
    """

    def __init__(
        self,
        in_features: int,
        latent_sizes: Sequence[int],
        horizon: int,
        num_parameters: int,
        hidden: Sequence[int],
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        """Take the sizes of features and latents, H, P and the hidden widths."""
        super().__init__()
        self.horizon = horizon
        self.network = ConditionedMLP(in_features, latent_sizes, hidden, horizon * num_parameters, activation)

    def forward(self, features: Float[Tensor, "*B F"], latents: Sequence[Tensor]) -> Float[Tensor, "*KB H P"]:
        """Decode every row."""
        return self.network(features, latents).unflatten(-1, (self.horizon, -1))


class TransformerChunkDecoder(nn.Module):
    """One query a step, which attends to the other steps and to the tokens of features and latents.

    A decoder as in A. Vaswani et al., "Attention is all you need", 2017, with normalisation first, without dropout
    (under which a likelihood would hang on a random mask) and without a causal mask (no action is fed back).

    >>> decoder = TransformerChunkDecoder(3, [2], 6, 4, width=8, num_layers=1, num_heads=2)
    >>> decoder(torch.zeros(5, 3), [torch.zeros(7, 5, 2)]).shape
    torch.Size([7, 5, 6, 4])
    """

    def __init__(
        self,
        in_features: int,
        latent_sizes: Sequence[int],
        horizon: int,
        num_parameters: int,
        *,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        """Take the sizes of features and latents, H, P and the sizes of the transformer."""
        super().__init__()
        check_sizes("TransformerChunkDecoder()", width=width, num_layers=num_layers, num_heads=num_heads)
        if width % num_heads:
            raise OptionError(
                "TransformerChunkDecoder()",
                "`width` is not a multiple of `num_heads`",
                expected=f"a multiple of {num_heads}",
                got=repr(width),
            )
        self.features = nn.Linear(in_features, width)
        self.latents = nn.ModuleList(nn.Linear(size, width) for size in latent_sizes)
        self.queries = nn.Parameter(torch.randn(horizon, width) / math.sqrt(width))
        self.blocks = nn.ModuleList(_Block(width, num_heads, activation) for _ in range(num_layers))
        self.normalize = nn.LayerNorm(width)
        self.readout = nn.Linear(width, num_parameters)

    def forward(self, features: Float[Tensor, "*B F"], latents: Sequence[Tensor]) -> Float[Tensor, "*KB H P"]:
        """Decode every row."""
        tokens = [self.features(features)]
        for each, latent in zip(self.latents, latents, strict=True):
            layer = cast(nn.Linear, each)
            value = latent if latent.is_floating_point() else one_hot(latent, layer.in_features)
            tokens.append(layer(value.to(layer.weight.dtype)))
        memory = torch.stack(torch.broadcast_tensors(*tokens), -2)
        steps = self.queries.expand(*memory.shape[:-2], *self.queries.shape)
        for block in self.blocks:
            steps = block(steps, memory)
        return self.readout(self.normalize(steps))


class _Block(nn.Module):
    """Attend to the other steps, then to the memory, then pass each step through an MLP; residual throughout."""

    def __init__(self, width: int, num_heads: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.own, self.to_memory = _Attention(width, num_heads), _Attention(width, num_heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.mlp = MLP(width, (2 * width,), width, activation)

    def forward(self, steps: Float[Tensor, "*B H W"], memory: Float[Tensor, "*B L W"]) -> Float[Tensor, "*B H W"]:
        first, second, third = self.norms
        normal = first(steps)
        steps = steps + self.own(normal, normal)
        steps = steps + self.to_memory(second(steps), memory)
        return steps + self.mlp(third(steps))


class _Attention(nn.Module):
    """Scaled dot-product attention of several heads over any leading dimensions, in plain products."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would be the same for all that is attended to
        self.value = nn.Linear(width, width)

    def forward(self, asking: Float[Tensor, "*B H W"], asked: Float[Tensor, "*B L W"]) -> Float[Tensor, "*B H W"]:
        query, key, value = (
            self._split(self.query(asking)),
            self._split(self.key(asked)),
            self._split(self.value(asked)),
        )
        weight = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.output((weight @ value).transpose(-3, -2).flatten(-2))

    def _split(self, tokens: Float[Tensor, "*B L W"]) -> Float[Tensor, "*B N L D"]:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
