"""A policy with a Gaussian latent: a conditional variational autoencoder that acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.numerics.activations import Tanh
from latentpg.policies.common import Activation, Decoder, GuideTrunk, Trunk, check_action_given, check_sizes, first_step
from latentpg.policies.networks import MLP
from latentpg.programs.distributions import DiagNormal
from latentpg.programs.rows import Observations


class GaussianPolicy(nn.Module):
    r"""Gaussian latent of Z dimensions.

    .. math:: \pi(a|s) = \int p_\theta(a|s,z)\, \mathcal N(z; \mu_\phi(s), \sigma_\phi(s))\, dz

    The one latent site ``"z"`` is ``[K, B, Z]``. ``prior="learned"`` has a network give its mean and log standard
    deviation; ``prior="standard"`` is N(0, I), and there is no phi.

    >>> import torch
    >>> policy = GaussianPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), latent_size=2)
    >>> from latentpg.programs import act
    >>> act(policy, torch.zeros(5, 3)).latents["z"].shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        latent_size: int = 2,
        prior: str = "learned",
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        activation: Activation = Tanh,
    ) -> None:
        """Build prior, decoder and guide networks with the same hidden widths on the encoder's features."""
        super().__init__()
        check_sizes("GaussianPolicy()", latent_size=latent_size)
        if prior not in ("learned", "standard"):
            raise OptionError("GaussianPolicy()", "`prior`", expected='"learned" or "standard"', got=repr(prior))
        self.latent_size = latent_size
        self.trunk = Trunk(observation_space, encoder)
        size = self.trunk.out_features
        self.prior = MLP(size, hidden, 2 * latent_size, activation) if prior == "learned" else None
        self.decoder = Decoder(size, [latent_size], action_space, hidden, activation)
        self.guide_net = GuideTrunk(size, self.decoder.head, hidden, 2 * latent_size, activation)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample the latent, then the action."""
        features = self.trunk(obs)
        first = first_step(obs, features)
        parameters = first.new_zeros(first.shape[0], 2 * self.latent_size) if self.prior is None else self.prior(first)
        z = pyro.sample("z", DiagNormal(*parameters.chunk(2, -1)))
        return self.decoder.sample(obs, features, [z], action)

    def guide(self, obs: Observations, action: Tensor | None) -> Tensor:
        """Sample the latent, knowing the action."""
        parameters = self.guide_net(obs, self.trunk(obs), check_action_given(action))
        return pyro.sample("z", DiagNormal(*parameters.chunk(2, -1)))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi; none for the standard prior."""
        return [] if self.prior is None else list(self.prior.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta, the shared encoder among them."""
        return [*self.decoder.parameters(), *self.trunk.parameters()]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return list(self.guide_net.parameters())
