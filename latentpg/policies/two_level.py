"""A two-level policy: a discrete mode, then a Gaussian style given the mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.numerics.activations import Tanh
from latentpg.policies.common import Activation, Decoder, GuideTrunk, Trunk, check_action_given, check_sizes, first_step
from latentpg.policies.networks import MLP, select
from latentpg.programs.distributions import Categorical, DiagNormal
from latentpg.programs.rows import Observations


class TwoLevelPolicy(nn.Module):
    r"""Mode and style: :math:`\pi(a|s) = \sum_c p_\phi(c|s) \int p_\phi(z|s,c)\, p_\theta(a|s,c,z)\, dz`.

    Two dependent latent sites: ``"mode"``, int64 ``[K, B]``, and ``"style"``, ``[K, B, Z]``, whose Gaussian depends on
    the mode, in the model and in the guide alike.

    >>> import torch
    >>> policy = TwoLevelPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), num_modes=3, style_size=1)
    >>> from latentpg.programs import act
    >>> {name: tuple(value.shape) for name, value in act(policy, torch.zeros(5, 3)).latents.items()}
    {'mode': (5,), 'style': (5, 1)}
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        num_modes: int = 4,
        style_size: int = 2,
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        activation: Activation = Tanh,
    ) -> None:
        """Build prior, decoder and guide networks with the same hidden widths on the encoder's features."""
        super().__init__()
        check_sizes("TwoLevelPolicy()", num_modes=num_modes, style_size=style_size)
        self.num_modes, self.style_size = num_modes, style_size
        self.trunk = Trunk(observation_space, encoder)
        size, num_outputs = self.trunk.out_features, num_modes * (1 + 2 * style_size)
        self.prior = MLP(size, hidden, num_outputs, activation)
        self.decoder = Decoder(size, [num_modes, style_size], action_space, hidden, activation)
        self.guide_net = GuideTrunk(size, self.decoder.head, hidden, num_outputs, activation)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample mode, style and action."""
        features = self.trunk(obs)
        latents = self._sample_latents(self.prior(first_step(obs, features)))
        return self.decoder.sample(obs, features, latents, action)

    def guide(self, obs: Observations, action: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sample mode and style, knowing the action."""
        return self._sample_latents(self.guide_net(obs, self.trunk(obs), check_action_given(action)))

    def _sample_latents(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        logits, heads = parameters.split([self.num_modes, 2 * self.num_modes * self.style_size], -1)
        mode = pyro.sample("mode", Categorical(logits))
        chosen = select(heads.unflatten(-1, (self.num_modes, 2 * self.style_size)), mode)
        style = pyro.sample("style", DiagNormal(*chosen.chunk(2, -1)))
        return mode, style

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi."""
        return list(self.prior.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta, the shared encoder among them."""
        return [*self.decoder.parameters(), *self.trunk.parameters()]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return list(self.guide_net.parameters())
