"""A policy without a latent: what every latent one is held against, in the same learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from gymnasium import spaces
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from latentpg.numerics.activations import Tanh
from latentpg.policies.common import Activation, Trunk, fill_padding
from latentpg.policies.heads import make_head
from latentpg.policies.networks import MLP
from latentpg.programs.capture import ACTION
from latentpg.programs.rows import Observations, Span


class PlainPolicy(nn.Module):
    r"""Return :math:`\pi_\theta(a|s)` in closed form: a Gaussian for a box, categories for discrete actions.

    Its model samples the action alone; there is no prior and no guide. ``log_pi`` is what
    :class:`~latentpg.estimators.ClosedForm` reads.

    >>> import torch
    >>> policy = PlainPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    >>> policy.log_pi(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        activation: Activation = Tanh,
    ) -> None:
        """Build the network on the encoder's features, and the action space's head."""
        super().__init__()
        self.trunk = Trunk(observation_space, encoder)
        self.head = make_head(action_space)
        self.network = MLP(self.trunk.out_features, hidden, self.head.num_parameters, activation)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample the action."""
        taken = None if action is None else fill_padding(obs, action)
        return pyro.sample(ACTION, self.distribution(obs), obs=taken)

    def guide(self, obs: Observations, action: Tensor | None) -> None:
        """Sample nothing."""

    def distribution(self, obs: Observations) -> TorchDistributionMixin:
        """Return the distribution of the actions of every row; a span's steps are one event."""
        steps = self._steps(obs)
        return steps.mask(obs.mask).to_event(1) if isinstance(obs, Span) else steps

    def log_pi(self, obs: Observations, action: Tensor) -> Float[Tensor, " B"]:
        """Return log pi(a | s) in nats, differentiable."""
        return self.distribution(obs).log_prob(fill_padding(obs, action))

    def entropy(self, obs: Observations) -> Float[Tensor, " B"]:
        """Return the entropy of every row in nats, differentiable; a span's is the sum over its steps in the mask."""
        entropy = self._steps(obs).entropy()
        return entropy.masked_fill(~obs.mask, 0.0).sum(1) if isinstance(obs, Span) else entropy

    def _steps(self, obs: Observations) -> TorchDistributionMixin:
        return self.head(self.network(self.trunk(obs)))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Return none."""
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta."""
        return list(self.parameters())

    def guide_parameters(self) -> list[nn.Parameter]:
        """Return none."""
        return []
