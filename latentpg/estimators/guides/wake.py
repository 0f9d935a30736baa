r"""Guide objectives that minimise the inclusive divergence KL(p(z | s, a) || q).

Wake, sleep and what recorded latents allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import EstimatorError
from latentpg.estimators.base import Particles, check_log_weights, check_num_particles, require_recorded
from latentpg.estimators.importance import WakeSleep, log_weights
from latentpg.numerics.weights import normalized_weights
from latentpg.programs import LatentPolicy, Latents, Observations, act, repeat_rows, score_guide

_ONE_PARTICLE = "a self-normalised weight is 1 at K = 1, and the expected gradient is zero"


@dataclass(frozen=True)
class Wake:
    r"""Minimise :math:`-\sum_k\bar w_k\log q_\psi(z_k)`: wake-phase phi of reweighted wake-sleep.

    Self-normalised importance sampling of the inclusive divergence, biased by O(1/K) (Bornschein and Bengio, 2015).
    Stored particles are used if there are any; otherwise K are drawn from the guide. K = 1 is an error: its expected
    gradient is zero.
    """

    num_particles: int = 8

    def __post_init__(self) -> None:
        """Check K."""
        check_num_particles("Wake()", self.num_particles, minimum=2, why=_ONE_PARTICLE)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Weigh the stored particles, or fresh ones, by the model and raise log q on them."""
        if particles is None:
            particles = WakeSleep(self.num_particles).propose(policy, obs, action)
        if particles.num_particles < 2:
            raise EstimatorError(
                "Wake.loss()",
                "stored particles with K = 1",
                expected="K >= 2",
                got="1",
                likely=_ONE_PARTICLE,
                fix="particles=None with Wake(num_particles=8), or the Recorded objective",
            )
        return _weighted_cross_entropy(policy, obs, action, particles)


@dataclass(frozen=True)
class ConditionalWake:
    r"""Minimise :math:`-\sum_k\bar w_k\log q_\psi(z_k)` over particles that retain the recorded latent.

    With the particles of :class:`~latentpg.estimators.ConditionalIS`, drawn before psi moved, its gradient is unbiased
    for that of the inclusive divergence at the parameters that acted, for every K and proposal, with less variance than
    :class:`Recorded`. After the model has drifted, multiply the rows by the ratio for exactness under the new policy.
    """

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Weigh the retained set by the model and raise log q on it."""
        if particles is None or not particles.retained:
            raise EstimatorError(
                "ConditionalWake.loss()",
                "no retained particles",
                expected="the stored particles of ConditionalIS or MarkovianIS",
                got="None" if particles is None else "particles without a retained slot",
                fix="particles=ConditionalIS(num_particles=8).propose(policy, obs, action, latents)",
            )
        return _weighted_cross_entropy(policy, obs, action, particles)


@dataclass(frozen=True)
class Recorded:
    r"""Minimise :math:`-\log q_\psi(z_0 \mid s, a)` on the latent recorded while acting.

    That latent is an exact posterior draw at the parameters that acted, so the gradient is unbiased for that of the
    inclusive divergence there. Demonstrations carry no latent: an error.
    """

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Raise log q on the recorded latents ``[B, ...]``."""
        recorded = require_recorded("Recorded.loss()", latents)
        return -score_guide(policy, obs, action, _one_particle(recorded)).log_prob[0]


@dataclass(frozen=True)
class Sleep:
    r"""Minimise :math:`-\log q_\psi(z \mid s, a)` on dreams (z, a) drawn from the model at the rows' observations.

    Unbiased for the inclusive divergence averaged over the *model's* actions, which are the data's only on-policy
    (Hinton, Dayan, Frey and Neal, "The Wake-Sleep Algorithm", 1995). The rows' own actions are not used.
    """

    num_dreams: int = 1

    def __post_init__(self) -> None:
        """Check the number of dreams."""
        check_num_particles("Sleep() (`num_dreams`)", self.num_dreams)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Dream ``num_dreams`` times a row and raise log q on the dreams."""
        repeated = repeat_rows(obs, self.num_dreams)
        dreamt = act(policy, repeated)
        scored = score_guide(policy, repeated, dreamt.action, _one_particle(dreamt.latents))
        return -scored.log_prob[0].reshape(self.num_dreams, -1).mean(0)


def _weighted_cross_entropy(
    policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles
) -> Float[Tensor, " B"]:
    with torch.no_grad():
        log_weight = log_weights(policy, obs, action, particles)
        check_log_weights("guide objective", log_weight)
        share = normalized_weights(log_weight)
    return -(share * score_guide(policy, obs, action, particles.latents).log_prob).sum(0)


def _one_particle(latents: Latents) -> Latents:
    return {name: value.unsqueeze(0) for name, value in latents.items()}
