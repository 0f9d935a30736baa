r"""Reparameterise a policy: its latents become parameter-free noise, through which gradients flow into phi.

``reparameterize(policy)`` is the same policy written over noise: each latent site z becomes ``z_decentered`` with a
fixed distribution, and z = f_phi(noise, s) is a deterministic function (Gorinova, Moore and Hoffman, "Automatic
Reparameterisation of Probabilistic Programs", 2020, with the centering fixed at zero).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Independent
from pyro.infer.reparam import LocScaleReparam
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.errors import EstimatorError
from latentpg.programs.capture import ACTION, is_real
from latentpg.programs.distributions import DiagNormal
from latentpg.programs.policy import LatentPolicy
from latentpg.programs.rows import Observations, num_rows
from latentpg.programs.run import Latents, score_prior

NOISE_SUFFIX = "_decentered"
"""What Pyro's own reparameteriser appends to a site's name."""


class ReparameterizedPolicy:
    """A policy over noise, with the parameters of the policy it wraps; see the module's docstring."""

    def __init__(self, policy: LatentPolicy) -> None:
        """Wrap a policy; nothing is copied."""
        self.policy = policy
        self.flatten_particles = getattr(policy, "flatten_particles", False)

    def model(self, obs: Any, action: Tensor | None = None) -> Any:  # noqa: ANN401 (as the protocol)
        """Run the wrapped model with its latent sites decentered."""
        return poutine.reparam(self.policy.model, config=_choose)(obs, action)

    def guide(self, obs: Any, action: Tensor | None) -> Any:  # noqa: ANN401 (as the protocol)
        """Refuse: the wrapped guide lives over latents, not over noise."""
        raise EstimatorError(
            "reparameterize().guide()",
            "a reparameterised policy has no guide",
            expected="prior proposals of the noise",
            got="a call of its guide",
            fix="Reparameterized(num_particles=K), which proposes from the noise's own distribution",
        )

    def prior_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters phi of the wrapped policy."""
        return self.policy.prior_parameters()

    def decoder_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters theta of the wrapped policy."""
        return self.policy.decoder_parameters()

    def guide_parameters(self) -> Sequence[nn.Parameter]:
        """No parameters."""
        return []


def reparameterize(policy: LatentPolicy) -> ReparameterizedPolicy:
    """Rewrite a policy over noise.

    Location-scale latents only; a discrete one is an :class:`~latentpg.errors.EstimatorError`.
    """
    return ReparameterizedPolicy(policy)


def latents_to_noise(policy: LatentPolicy, obs: Observations, latents: Latents) -> dict[str, Tensor]:
    r"""Recover the noise behind recorded latents ``[B, ...]``: :math:`\epsilon = (z - \mu_\phi(s)) / \sigma_\phi(s)`.

    No gradient; right only at the parameters that drew the latents.
    """
    with torch.no_grad():
        scored = score_prior(policy, obs, {name: value.unsqueeze(0) for name, value in latents.items()})
        noise = {}
        for name, fn in scored.distributions.items():
            base = _location_scale(name, fn)
            rows = num_rows(obs)
            value = scored.latents[name].reshape(1, rows, *fn.event_shape)
            noise[name + NOISE_SUFFIX] = ((value - base.loc) / base.scale)[0]
    return noise


class _DiagNormalReparam(Reparam):
    def apply(self, msg: Any) -> Any:  # noqa: ANN401 (Pyro's message)
        fn = msg["fn"]
        zeros = torch.zeros_like(fn.loc)
        noise = pyro.sample(msg["name"] + NOISE_SUFFIX, DiagNormal(zeros, zeros))
        value = fn.loc + fn.scale * noise
        return {"fn": Delta(value, event_dim=1).mask(False), "value": value, "is_observed": True}


def _choose(msg: Any) -> Reparam | None:  # noqa: ANN401 (Pyro's message)
    name, fn = msg["name"], msg["fn"]
    already_noise = name.endswith(NOISE_SUFFIX)
    if msg["is_observed"] or name == ACTION or already_noise:
        return None
    base = _location_scale(name, fn)
    return _DiagNormalReparam() if isinstance(base, DiagNormal) else LocScaleReparam(centered=0.0)


def _location_scale(name: str, fn: Distribution) -> Any:  # noqa: ANN401 (any distribution with loc and scale)
    """Unwrap a location-scale distribution, or say why the site has no noise."""
    base = fn
    while isinstance(base, Independent):
        base = base.base_dist
    # A LogNormal has a loc and a scale too, and is not loc + scale * noise.
    if fn.has_rsample and hasattr(base, "loc") and hasattr(base, "scale") and is_real(base.support):
        return base
    raise EstimatorError(
        "reparameterize()",
        f"latent `{name}` cannot be reparameterised",
        expected="continuous location-scale latents (Normal, DiagNormal, StudentT, Laplace, ...)",
        got=type(base).__name__,
        likely="pathwise gradients do not exist through a discrete latent" if not fn.has_rsample else None,
        fix="a score-function estimator: ConditionalIS or PosteriorIS",
    )
