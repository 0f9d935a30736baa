r"""Critics: modules that map observations ``[B, S]`` to values ``[B]``, an estimate of :math:`V^\pi(s)`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.numerics.activations import Tanh
from latentpg.policies.common import check_sizes
from latentpg.policies.networks import MLP
from latentpg.values._checks import check_observations
from latentpg.values.features import BinaryFeatures, Features


@runtime_checkable
class Critic(Protocol):
    """Anything that values observations and has parameters to fit, as an ``nn.Module`` with this call does."""

    def __call__(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
        """Value every row."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is fitted."""


class LinearCritic(nn.Module):
    r"""A linear critic :math:`V_w(s) = w^\top \phi(s)`, zero at first.

    There is no intercept beside the features' own. With features that name their active places only those weights are
    read, and the gradient is the same.

    >>> from latentpg.values.features import Identity
    >>> critic = LinearCritic(Identity(2))
    >>> critic.load([1.0, 3.0])
    >>> critic(torch.tensor([[2.0, 1.0]])).tolist()
    [5.0]
    """

    def __init__(self, features: Features, *, dtype: torch.dtype | None = None) -> None:
        """Take the features; the weights are of torch's default floating type unless another is named."""
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.zeros(features.out_features, dtype=dtype))

    def forward(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
        """Return the values."""
        if isinstance(self.features, BinaryFeatures):
            return self.weight[self.features.active(obs)].sum(-1)
        return self.features(obs) @ self.weight

    def load(self, weight: Sequence[float] | Float[Tensor, " F"]) -> None:
        """Set the weights."""
        given = torch.as_tensor(weight, dtype=self.weight.dtype, device=self.weight.device)
        if given.shape != self.weight.shape or not given.isfinite().all():
            raise OptionError(
                "LinearCritic.load()",
                "`weight`",
                expected=f"{len(self.weight)} finite numbers",
                got=f"{list(given.shape)}, finite: {bool(given.isfinite().all())}",
            )
        with torch.no_grad():
            self.weight.copy_(given)


class NetworkCritic(nn.Module):
    """A multilayer perceptron on the observation, with one output.

    ``init`` names how it starts: ``"torch"`` as its layers do by default, ``"orthogonal"`` by
    :func:`orthogonal_`. The layers draw from the ambient random stream.

    >>> NetworkCritic(4, hidden=(8,))(torch.zeros(3, 4)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Callable[[], nn.Module] = Tanh,
        init: Literal["torch", "orthogonal"] = "torch",
    ) -> None:
        """Take the size S of an observation and the widths of the hidden layers."""
        super().__init__()
        check_sizes("NetworkCritic()", in_features=in_features)
        for width in hidden:
            check_sizes("NetworkCritic()", hidden=width)
        if init not in ("torch", "orthogonal"):
            raise OptionError("NetworkCritic()", "`init`", expected="'torch' or 'orthogonal'", got=repr(init))
        self.in_features = in_features
        self.network = MLP(in_features, hidden, 1, activation)
        if init == "orthogonal":
            orthogonal_(self.network)

    def forward(self, obs: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
        """Return the values."""
        check_observations("NetworkCritic()", obs, self.in_features)
        return self.network(obs).squeeze(-1)


def orthogonal_(network: nn.Module, *, gain: float | int = math.sqrt(2.0), output_gain: float | int = 1.0) -> None:
    r"""Start the linear layers of a network at orthogonal weights and zero biases, in place.

    ``gain`` scales all but the last linear layer, ``output_gain`` the last: :math:`\sqrt 2` and 1 are what PPO's
    implementations use for a critic (0.01 at the last for a policy's head).

    Source: A. M. Saxe, J. L. McClelland and S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", 2014; on PPO, L. Engstrom et al., "Implementation matters in deep policy gradients", 2020.

    >>> layer = nn.Linear(3, 3)
    >>> orthogonal_(layer, output_gain=2.0)
    >>> torch.allclose(layer.weight @ layer.weight.T, 4.0 * torch.eye(3), atol=1e-5)
    True
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, output_gain if layer is layers[-1] else gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
