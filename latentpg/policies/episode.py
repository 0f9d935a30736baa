r"""A policy whose latent is drawn once and held for an episode.

One z stands behind all of a demonstration, and is inferred from all of it. The episode is one row: its likelihood is
that of all of its steps given the one z (see :class:`~latentpg.programs.Span`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.policies.common import Activation, Decoder, Trunk, check_action_given, first_step
from latentpg.policies.heads import set_scale
from latentpg.policies.networks import MLP
from latentpg.policies.priors import GaussianLatent, Latent, MixturePrior
from latentpg.policies.sequence import Reader, make_reader
from latentpg.programs.rows import Observations, num_rows


class EpisodePolicy(nn.Module):
    r"""One latent an episode.

    .. math:: \pi(a_{1:T}|s_{1:T}) = \int p_\phi(z|s_1) \prod_{t=1}^T p_\theta(a_t|s_t,z)\, dz

    The one latent site ``"z"`` is ``[K, B, Z]`` for a :class:`~latentpg.policies.priors.GaussianLatent` and int64
    ``[K, B]`` for a :class:`~latentpg.policies.priors.CodeLatent`, with which log pi is exact by enumeration. The guide
    q(z | s_1, a_1, ..., s_T, a_T) reads the sequence by ``reader``: ``"attention"`` or ``"gru"``. The standard
    deviations of a ``Box``'s actions begin at ``exp(initial_log_std)``, in policy coordinates, and never fall below
    ``exp(min_log_std)`` (:class:`~latentpg.policies.heads.BoxHead`). ``initial_guide_log_std`` is about where the log
    standard deviations of a Gaussian guide begin: a narrow guide tells episodes apart from the first step on, before a
    decoder has learnt to do without z.

    Score whole episodes as spans (:func:`latentpg.data.episode_rows`, :meth:`latentpg.rollout.Episodes.spans`); act
    with :func:`latentpg.rollout.collect_episodes` and ``latent="episode"``. On step rows ``[B, S]`` every step is an
    episode of its own, with a latent of its own.

    >>> from latentpg.programs import Span, act
    >>> policy = EpisodePolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), latent=GaussianLatent(size=4))
    >>> acted = act(policy, Span(torch.zeros(5, 7, 3), torch.ones(5, 7, dtype=torch.bool)))
    >>> acted.latents["z"].shape, acted.action.shape, acted.log_joint.shape
    (torch.Size([5, 4]), torch.Size([5, 7, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        latent: Latent = GaussianLatent(),  # noqa: B008 (frozen)
        reader: Reader = "attention",
        hidden: Sequence[int] = (64, 64),
        encoder: nn.Module | None = None,
        activation: Activation = nn.Tanh,
        initial_log_std: float | int = 0.0,
        min_log_std: float | int | None = None,
        initial_guide_log_std: float | int | None = None,
    ) -> None:
        """Build prior, decoder and guide networks with the same hidden widths on the encoder's features."""
        super().__init__()
        self.latent = latent
        self.trunk = Trunk(observation_space, encoder)
        size = self.trunk.out_features
        self.prior = latent.build_prior(size, hidden, activation)
        self.decoder = Decoder(size, [latent.decoder_size], action_space, hidden, activation)
        set_scale(self.decoder.head, initial_log_std=initial_log_std, min_log_std=min_log_std)
        self.guide_net = make_reader(reader, size, self.decoder.head, hidden, latent.num_guide_parameters, activation)
        if initial_guide_log_std is not None:
            start_guide(self.guide_net.readout, latent, initial_guide_log_std)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample the latent at the first step, then the action of every step."""
        features = self.trunk(obs)
        z = pyro.sample("z", self.prior(first_step(obs, features)))
        return self.decoder.sample(obs, features, [z], action)

    def guide(self, obs: Observations, action: Tensor | None) -> Tensor:
        """Sample the latent, knowing the whole sequence."""
        parameters = self.guide_net(obs, self.trunk(obs), check_action_given(action))
        return pyro.sample("z", self.latent.guide(parameters))

    def match_prior(self, obs: Observations, action: Tensor) -> None:
        r"""Set a mixture prior to the guide's aggregate posterior over E rows, :math:`\frac1E\sum_e q_\psi(z|\tau_e)`.

        One component an episode, all weights equal, whatever the state. Of all densities that do not depend on the
        state this one has the largest evidence lower bound, so that as a step of training it is coordinate ascent, and
        at most log E nats are then paid for :math:`\mathrm{KL}(q_e\,\|\,p)`. The idea of S. Norouzi, D. J. Fleet and M.
        Norouzi, "Exemplar VAE", 2020 and of J. M. Tomczak and M. Welling, "VAE with a VampPrior", 2018, with the guide
        held still. Afterwards the weights can learn again where which episodes belong.
        """
        rows = num_rows(obs)
        prior = self.prior
        if not isinstance(prior, MixturePrior) or prior.loc.shape[0] != rows:
            raise OptionError(
                "EpisodePolicy.match_prior()",
                "the prior cannot be the mixture of these posteriors",
                expected=f"a mixture of as many components as rows were given, {rows}",
                got=repr(self.latent),
                fix=f'latent=GaussianLatent(prior="mixture", num_components={rows})',
            )
        with torch.no_grad():
            prior.place(*self.guide_net(obs, self.trunk(obs), action).chunk(2, -1))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi; none for the standard prior."""
        return list(self.prior.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta, the shared encoder among them."""
        return [*self.decoder.parameters(), *self.trunk.parameters()]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return list(self.guide_net.parameters())


def start_guide(readout: MLP, latent: Latent, log_std: float | int) -> None:
    """Set the biases from which a Gaussian guide's log standard deviations are read out; its weights stay."""
    if not isinstance(latent, GaussianLatent):
        raise OptionError(
            "EpisodePolicy()",
            "`initial_guide_log_std` of a guide that has none",
            expected="None, for codes",
            got=repr(log_std),
        )
    with torch.no_grad():
        bias = readout.layers[-1].bias
        assert isinstance(bias, Tensor)
        bias[latent.size :] = float(log_std)
