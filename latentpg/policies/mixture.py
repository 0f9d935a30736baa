"""A mixture policy: the latent is which component acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.numerics.activations import Tanh
from latentpg.policies.common import Activation, Decoder, GuideTrunk, Trunk, check_action_given, check_sizes, first_step
from latentpg.policies.networks import MLP
from latentpg.programs.distributions import Categorical
from latentpg.programs.rows import Observations


class MixturePolicy(nn.Module):
    r"""Mixture of C components: :math:`\pi(a|s) = \sum_{z=1}^C p_\phi(z|s)\, p_\theta(a|s,z)`.

    The one latent site ``"z"`` is a category, int64 ``[K, B]``, so log pi is exact by enumeration.

    >>> import torch
    >>> policy = MixturePolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), num_components=4)
    >>> from latentpg.programs import act
    >>> act(policy, torch.zeros(5, 3)).latents["z"].shape
    torch.Size([5])
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        num_components: int = 4,
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        activation: Activation = Tanh,
    ) -> None:
        """Build prior, decoder and guide networks with the same hidden widths on the encoder's features."""
        super().__init__()
        check_sizes("MixturePolicy()", num_components=num_components)
        self.trunk = Trunk(observation_space, encoder)
        self.categories = {"z": num_components}
        size = self.trunk.out_features
        self.prior = MLP(size, hidden, num_components, activation)
        self.decoder = Decoder(size, [num_components], action_space, hidden, activation)
        self.guide_net = GuideTrunk(size, self.decoder.head, hidden, num_components, activation)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample the component, then the action."""
        features = self.trunk(obs)
        z = pyro.sample("z", Categorical(self.prior(first_step(obs, features))))
        return self.decoder.sample(obs, features, [z], action)

    def guide(self, obs: Observations, action: Tensor | None) -> Tensor:
        """Sample the component, knowing the action."""
        return pyro.sample("z", Categorical(self.guide_net(obs, self.trunk(obs), check_action_given(action))))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi."""
        return list(self.prior.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta, the shared encoder among them."""
        return [*self.decoder.parameters(), *self.trunk.parameters()]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return list(self.guide_net.parameters())
