"""What the ready-made policies share: an encoder, a decoder with an action head, and a guide's trunk.

Steps or spans. Every ready-made policy takes ``obs [B, S]`` with ``action [B, ...]``, and
:class:`~latentpg.programs.Span` rows with ``action [B, T, ...]``: the latent is then drawn at the row's first
observation, the decoder runs on every step with that one latent, and the log-likelihood is summed over the steps in the
mask.

What a step outside the mask holds is never looked at: each is given its row's first step instead, which was executed
and so is valid. A NaN that got as far as a network would poison the gradient of the whole batch, whatever is masked
after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError
from latentpg.policies.heads import ActionHead, make_head
from latentpg.policies.networks import MLP, ConditionedMLP, refuse_batch_dependence
from latentpg.policies.spaces import observation_size
from latentpg.programs.capture import ACTION
from latentpg.programs.rows import Observations, Span

Activation = Callable[[], nn.Module]
"""Builds an activation layer, as ``nn.Tanh`` does."""


class Trunk(nn.Module):
    """Encode flat observations ``[..., S]`` to features ``[..., F]``; by default they are the features.

    An encoder is part of the model: prior and decoder share it, it moves with log pi, and the guide sees its features
    without moving it.
    """

    def __init__(self, observation_space: spaces.Space[Any], encoder: nn.Module | None) -> None:
        """Take the space and any module that maps ``[N, S]`` to ``[N, F]``."""
        super().__init__()
        self.in_features = observation_size(observation_space)
        self.encoder = nn.Identity() if encoder is None else encoder
        refuse_batch_dependence(self.encoder, "encoder")
        with torch.no_grad():
            self.out_features = self._encode(torch.zeros(1, self.in_features)).shape[-1]

    def forward(self, obs: Observations) -> Float[Tensor, "*B F"]:
        """Encode every step of every row."""
        steps = obs.obs if isinstance(obs, Span) else obs
        expected = 3 if isinstance(obs, Span) else 2
        if steps.ndim != expected or steps.shape[-1] != self.in_features:
            raise ShapeError(
                "policy",
                "`obs`",
                expected=f"[B, {'T, ' if expected == 3 else ''}S={self.in_features}]",
                got=str(list(steps.shape)),
                fix="encode_observations(space, obs) flattens what an environment returns; Span(obs, mask) holds steps",
            )
        steps = fill_padding(obs, steps)
        if isinstance(self.encoder, nn.Identity):
            return steps
        return self._encode(steps.reshape(-1, self.in_features)).reshape(*steps.shape[:-1], -1)

    def _encode(self, flat: Float[Tensor, "N S"]) -> Float[Tensor, "N F"]:
        features = self.encoder(flat)
        if features.ndim != 2 or features.shape[0] != flat.shape[0]:
            raise ShapeError(
                "encoder",
                "its output",
                expected="[N, F] for an input [N, S]",
                got=str(list(features.shape)),
                fix="end the encoder with nn.Flatten()",
            )
        return features


class Decoder(nn.Module):
    """p_theta(a | s, z): a network conditioned on the latents, and the action space's head."""

    def __init__(
        self,
        in_features: int,
        latent_sizes: Sequence[int],
        action_space: spaces.Space[Any],
        hidden: Sequence[int],
        activation: Activation,
    ) -> None:
        """Take the sizes of features and latents and the space to act in."""
        super().__init__()
        self.head = make_head(action_space)
        self.network = ConditionedMLP(in_features, latent_sizes, hidden, self.head.num_parameters, activation)

    def sample(self, obs: Observations, features: Tensor, latents: Sequence[Tensor], action: Tensor | None) -> Tensor:
        """Run the site ``"action"``, observed when an action is given."""
        if isinstance(obs, Span):
            latents = [z.unsqueeze(-2) if z.is_floating_point() else z.unsqueeze(-1) for z in latents]
            steps = self.head(self.network(features, latents))
            taken = None if action is None else fill_padding(obs, action)
            return pyro.sample(ACTION, steps.mask(obs.mask).to_event(1), obs=taken)
        return pyro.sample(ACTION, self.head(self.network(features, latents)), obs=action)


class GuideTrunk(nn.Module):
    """Read features and the action of a row, step by step, and average what was read over the steps in the mask."""

    def __init__(
        self, in_features: int, head: ActionHead, hidden: Sequence[int], out_features: int, activation: Activation
    ) -> None:
        """Take the decoder's head for its embedding of actions; its parameters stay the decoder's."""
        super().__init__()
        self._embed, self._head_shape = head.embed, head.event_shape
        self.steps = ConditionedMLP(in_features, [head.embedding_size], hidden, hidden[-1], activation)
        self.readout = MLP(hidden[-1], (), out_features, activation)
        self.activation = activation()

    def forward(self, obs: Observations, features: Tensor, action: Tensor) -> Float[Tensor, "B P"]:
        """Return the guide's parameters, one row each."""
        expected = (*features.shape[:-1], *self._head_shape)
        if tuple(action.shape) != expected:
            squeeze = action.ndim == len(expected) + 1 and action.shape[-1] == 1
            raise ShapeError(
                "guide()",
                "`action`",
                expected=f"one action a step of `obs`: {list(expected)}",
                got=str(list(action.shape)),
                likely="a trailing dimension of one" if squeeze else None,
                fix="action.squeeze(-1)" if squeeze else "pass actions in policy coordinates",
            )
        hidden = self.activation(self.steps(features.detach(), [self._embed(fill_padding(obs, action))]))
        if isinstance(obs, Span):
            weight = obs.mask.to(hidden.dtype).unsqueeze(-1)
            hidden = (hidden * weight).sum(1) / weight.sum(1)
        return self.readout(hidden)


def check_sizes(where: str, **sizes: object) -> None:
    """Refuse a size that is not an integer of at least one, before a layer is built from it."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(where, f"`{name}`", expected="an integer >= 1", got=repr(size))


def first_step(obs: Observations, features: Tensor) -> Float[Tensor, "B F"]:
    """Features at which the latent is drawn: the row's own, or those of its first step."""
    return features[:, 0] if isinstance(obs, Span) else features


def fill_padding(obs: Observations, values: Tensor) -> Tensor:
    """Put the value of a row's first step into its steps outside the mask; values of other shapes are left alone.

    >>> span = Span(torch.zeros(1, 3, 2), torch.tensor([[True, True, False]]))
    >>> fill_padding(span, torch.tensor([[1.0, 2.0, torch.nan]]))
    tensor([[1., 2., 1.]])
    """
    if not isinstance(obs, Span) or values.shape[:2] != obs.mask.shape:
        return values
    mask = obs.mask.reshape(*obs.mask.shape, *[1] * (values.ndim - 2))
    return torch.where(mask, values, values[:, :1])


def check_action_given(action: Tensor | None) -> Tensor:
    """Refuse to run a guide without an action."""
    if action is None:
        raise ShapeError("guide()", "`action`", expected="the actions taken, [B, ...]", got="None")
    return action
