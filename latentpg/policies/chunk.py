r"""A policy that decides on several actions at once: an action chunk.

At a step t it draws one z and H actions, a_t, ..., a_{t+H-1}, of which the first h are carried out without looking
(open loop), before it decides again. Executed actions alone are scored; the others were never seen by anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError
from latentpg.policies.common import Activation, Trunk, check_action_given, check_sizes, fill_padding
from latentpg.policies.decoders import MLPChunkDecoder, TransformerChunkDecoder
from latentpg.policies.heads import ActionHead, make_head, set_scale
from latentpg.policies.networks import ConditionedMLP
from latentpg.policies.priors import GaussianLatent, Latent
from latentpg.programs.capture import ACTION
from latentpg.programs.rows import Observations, Span

ChunkDecoder = Literal["mlp", "transformer"]
"""The name of a decoder: :class:`~latentpg.policies.decoders.MLPChunkDecoder` or the transformer beside it."""


class ChunkPolicy(nn.Module):
    r"""H actions from one latent.

    .. math:: \pi(a_{1:h}|s) = \int p_\phi(z|s) \prod_{i=1}^h p_\theta^{(i)}(a_i|s,z)\, dz,\qquad h \le H

    The one latent site ``"z"`` is as ``latent`` says: a continuous one makes the policy a conditional variational
    autoencoder over chunks, as in T. Z. Zhao, V. Kumar, S. Levine and C. Finn, "Learning fine-grained bimanual
    manipulation with low-cost hardware", 2023; a :class:`~latentpg.policies.priors.CodeLatent` a mixture of chunks.

    An action is ``[B, H, ...]``. Rows are observations ``[B, S]``, for H actions that are all carried out, or a
    :class:`~latentpg.programs.Span` ``[B, H, S]`` whose mask says which were: only its first observation is looked at,
    because that is all the policy saw. :func:`latentpg.data.chunk_rows` cuts demonstrations into such rows, and
    :func:`latentpg.rollout.collect_chunks` acts.

    >>> from latentpg.programs import act
    >>> policy = ChunkPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), horizon=6)
    >>> act(policy, torch.zeros(5, 3)).action.shape
    torch.Size([5, 6, 2])
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        horizon: int = 8,
        latent: Latent = GaussianLatent(size=2, prior="learned"),  # noqa: B008 (frozen)
        decoder: ChunkDecoder = "mlp",
        num_layers: int = 1,
        num_heads: int = 4,
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        activation: Activation = nn.Tanh,
        initial_log_std: float | int = 0.0,
        min_log_std: float | int | None = None,
    ) -> None:
        """Build prior, decoder and guide networks with the same hidden widths on the encoder's features.

        The transformer's width is the last of ``hidden``; ``num_layers`` and ``num_heads`` are its own. The
        standard deviations of a ``Box``'s actions begin and are floored as those of
        :class:`~latentpg.policies.episode.EpisodePolicy`.
        """
        super().__init__()
        check_sizes("ChunkPolicy()", horizon=horizon)
        self.horizon, self.latent = horizon, latent
        self.trunk = Trunk(observation_space, encoder)
        size = self.trunk.out_features
        self.prior = latent.build_prior(size, hidden, activation)
        self.head = make_head(action_space)
        set_scale(self.head, initial_log_std=initial_log_std, min_log_std=min_log_std)
        sizes = (size, [latent.decoder_size], horizon, self.head.num_parameters)
        self.decoder: MLPChunkDecoder | TransformerChunkDecoder
        if decoder == "mlp":
            self.decoder = MLPChunkDecoder(*sizes, hidden, activation)
        elif decoder == "transformer":
            self.decoder = TransformerChunkDecoder(
                *sizes, width=hidden[-1], num_layers=num_layers, num_heads=num_heads, activation=activation
            )
        else:
            raise OptionError("ChunkPolicy()", "`decoder`", expected='"mlp" or "transformer"', got=repr(decoder))
        self.guide_net = ChunkGuide(size, self.head, horizon, hidden, latent.num_guide_parameters, activation)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample the latent, then H actions, of which those in the mask count."""
        features = self._features(obs)
        z = pyro.sample("z", self.prior(features))
        steps = self.head(self.decoder(features, [z]))
        if isinstance(obs, Span):
            taken = None if action is None else fill_padding(obs, action)
            return pyro.sample(ACTION, steps.mask(obs.mask).to_event(1), obs=taken)
        return pyro.sample(ACTION, steps.to_event(1), obs=action)

    def guide(self, obs: Observations, action: Tensor | None) -> Tensor:
        """Sample the latent, knowing the actions in the mask."""
        parameters = self.guide_net(obs, self._features(obs), check_action_given(action))
        return pyro.sample("z", self.latent.guide(parameters))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi; none for the standard prior."""
        return list(self.prior.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta, the shared encoder and the head among them."""
        return [*self.decoder.parameters(), *self.head.parameters(), *self.trunk.parameters()]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return list(self.guide_net.parameters())

    def _features(self, obs: Observations) -> Float[Tensor, "B F"]:
        """Read the observation at which the chunk was decided on."""
        if not isinstance(obs, Span):
            return self.trunk(obs)
        if obs.obs.ndim != 3 or obs.obs.shape[1] != self.horizon:
            raise ShapeError(
                "ChunkPolicy",
                "`obs`",
                expected=f"a span of one chunk a row, [B, H={self.horizon}, S]",
                got=str(list(obs.obs.shape)),
                fix=f"chunk_rows(demonstrations, horizon={self.horizon}) cuts episodes into chunks",
            )
        return self.trunk(obs.first)


class ChunkGuide(nn.Module):
    """Read features and the actions of a chunk, joined; one outside the mask is a zero and a mark that it is none."""

    def __init__(
        self,
        in_features: int,
        head: ActionHead,
        horizon: int,
        hidden: Sequence[int],
        out_features: int,
        activation: Activation,
    ) -> None:
        """Take the decoder's head for its embedding of actions; its parameters stay the decoder's."""
        super().__init__()
        self._embed, self._shape = head.embed, (horizon, *head.event_shape)
        self.network = ConditionedMLP(
            in_features, [horizon * (head.embedding_size + 1)], hidden, out_features, activation
        )

    def forward(self, obs: Observations, features: Tensor, action: Tensor) -> Float[Tensor, "B P"]:
        """Return the guide's parameters, one row each."""
        expected = (features.shape[0], *self._shape)
        if tuple(action.shape) != expected:
            raise ShapeError(
                "guide()",
                "`action`",
                expected=f"[B, H, ...] = {list(expected)}, the actions of one chunk a row",
                got=str(list(action.shape)),
                fix="pass actions in policy coordinates, padded to the horizon",
            )
        seen = self._embed(fill_padding(obs, action)).to(features.dtype)
        mark = seen.new_ones(seen.shape[:2])
        if isinstance(obs, Span):
            mark = obs.mask.to(seen.dtype)
            seen = seen * mark.unsqueeze(-1)
        return self.network(features.detach(), [torch.cat([seen, mark.unsqueeze(-1)], -1).flatten(1)])
