"""Networks of the ready-made policies: a plain MLP, and one that is conditioned on latents by addition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.numerics.activations import Tanh

_BATCH_DEPENDENT = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


class MLP(nn.Module):
    """Map ``[..., F]`` to ``[..., P]`` through hidden layers with an activation after each.

    >>> MLP(3, (8,), 2)(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, activation: Callable[[], nn.Module] = Tanh
    ) -> None:
        """Build ``len(hidden)`` hidden layers and a linear read-out."""
        super().__init__()
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for width, following in itertools.pairwise(widths):
            layers += [nn.Linear(width, following), activation()]
        self.layers = nn.ModuleList([*layers, nn.Linear(widths[-1], out_features)])

    def forward(self, features: Float[Tensor, "*B F"]) -> Float[Tensor, "*B P"]:
        """Apply the layers."""
        for layer in self.layers:
            features = layer(features)
        return features


class ConditionedMLP(nn.Module):
    r"""An MLP on features joined with latents, where only what depends on a latent carries the particle dimension.

    The first layer is :math:`\sigma(W s + b + \sum_i U_i z_i)`: a linear layer on the concatenation of features and
    latents, but with the products :math:`W s` computed on ``[B]`` rows and added to the ``[K, B]`` rows of :math:`U_i
    z_i`.

    >>> net = ConditionedMLP(3, [2], (8,), 4)
    >>> net(torch.zeros(5, 3), [torch.zeros(7, 5, 2)]).shape
    torch.Size([7, 5, 4])
    """

    def __init__(
        self,
        in_features: int,
        latent_sizes: Sequence[int],
        hidden: Sequence[int],
        out_features: int,
        activation: Callable[[], nn.Module] = Tanh,
    ) -> None:
        """Take the size of the features and of each latent (the number of categories, for a discrete one)."""
        super().__init__()
        if not hidden:
            raise OptionError(
                "ConditionedMLP()", "`hidden`", expected="at least one width", got="()", fix="hidden=(64, 64)"
            )
        self.features = nn.Linear(in_features, hidden[0])
        self.latents = nn.ModuleList(nn.Linear(size, hidden[0], bias=False) for size in latent_sizes)
        self.activation = activation()
        self.rest = MLP(hidden[0], hidden[1:], out_features, activation)

    def forward(self, features: Float[Tensor, "*B F"], latents: Sequence[Tensor]) -> Float[Tensor, "*KB P"]:
        """Take features ``[B, F]`` and latents ``[..., B, Z]``.

        An integer latent ``[..., B]`` is read as a category.
        """
        hidden = self.features(features)
        for layer, latent in zip(self.latents, latents, strict=True):
            hidden = hidden + _apply(cast(nn.Linear, layer), latent)
        hidden = self.activation(hidden)  # one name: what it was before is freed now, and its memory used again
        return self.rest(hidden)


def _apply(layer: nn.Linear, latent: Tensor) -> Tensor:
    """Multiply by a float latent, or by the one-hot vector of a category."""
    # With few categories the product, and above all its gradient, is quicker than looking columns up.
    value = latent if latent.is_floating_point() else one_hot(latent, layer.in_features)
    return layer(value.to(layer.weight.dtype))


def one_hot(index: Int[Tensor, "*B"], size: int) -> Float[Tensor, "*B C"]:
    """Turn categories into floats, by comparison: torch's own looks at the values and so cannot run under ``vmap``.

    >>> one_hot(torch.tensor([2, 0]), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    return (index.unsqueeze(-1) == torch.arange(size, device=index.device)).to(torch.get_default_dtype())


def select(heads: Float[Tensor, "B C P"], index: Int[Tensor, "..."]) -> Float[Tensor, "... B P"]:
    """Pick, row by row, the head of a category: ``heads [B, C, P]`` and ``index [..., B]`` give ``[..., B, P]``.

    An index ``[..., 1]``, which Pyro's enumeration injects, is every row's.

    >>> select(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1], [0]])).flatten().tolist()
    [2.0, 1.0]
    """
    rows = torch.arange(heads.shape[0], device=heads.device)
    return heads[rows, index]


def refuse_batch_dependence(module: nn.Module, where: str) -> None:
    """Raise if a network holds dropout or batch normalisation.

    Both make log p(a | s) depend on a random mask or on the other rows of the batch, so the probability recomputed in
    an update would not be that of the policy that acted.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BATCH_DEPENDENT):
            raise OptionError(
                where,
                f"network layer `{name}` is {type(part).__name__}",
                expected="layers under which a row's log-probability depends on that row alone",
                got=type(part).__name__,
                fix="LayerNorm instead of batch normalisation; no dropout",
            )
