"""The yardstick: log-probabilities of the ready-made policies written out in raw tensor maths, as well as we can.

No Pyro, no classes, no checks, no diagnostics; functions of tensors alone. The operations are exactly those of the
library: prior and guide networks run on B rows, a latent enters the decoder by addition, and only what depends on it
carries K.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from latentpg.numerics import tanh
from latentpg.policies import GaussianPolicy, MixturePolicy

Layers = list[tuple[Tensor, Tensor]]

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class Weights(NamedTuple):
    """The tensors of a policy: layers as (weight, bias), the first decoder layer taken apart."""

    prior: Layers
    guide_features: tuple[Tensor, Tensor]
    guide_action: Tensor
    guide_rest: Layers
    decoder_features: tuple[Tensor, Tensor]
    decoder_latent: Tensor
    decoder_rest: Layers
    log_std: Tensor | None


def weights_of(policy: GaussianPolicy | MixturePolicy) -> Weights:
    """Read the tensors off a ready-made policy, so that both codes work on the same numbers."""

    def layers(module: nn.Module) -> Layers:
        return [(part.weight, part.bias) for part in module.modules() if isinstance(part, nn.Linear)]

    assert policy.prior is not None
    network, guide = policy.decoder.network, policy.guide_net
    return Weights(
        layers(policy.prior),
        layers(guide.steps.features)[0],
        layers(guide.steps.latents)[0][0],
        [*layers(guide.steps.rest), *layers(guide.readout)],
        layers(network.features)[0],
        layers(network.latents)[0][0],
        layers(network.rest),
        getattr(policy.decoder.head, "log_std", None),
    )


def mlp(x: Tensor, layers: Layers) -> Tensor:
    for weight, bias in layers[:-1]:
        x = tanh(linear(x, weight, bias))
    weight, bias = layers[-1]
    return linear(x, weight, bias)


def normal_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    square = ((x - loc) * (-log_scale).exp()).square().sum(-1)
    return -0.5 * square - (log_scale.sum(-1) + HALF_LOG_2_PI * x.shape[-1])


def categorical_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    log_prob = logits - logits.logsumexp(-1, keepdim=True)
    return log_prob.expand(*x.shape, -1).gather(-1, x.unsqueeze(-1)).squeeze(-1)


def decode(w: Weights, obs: Tensor, conditioning: Tensor) -> Tensor:
    return mlp(tanh(linear(obs, *w.decoder_features) + conditioning), w.decoder_rest)


def action_log_prob(w: Weights, action: Tensor, parameters: Tensor) -> Tensor:
    if w.log_std is not None:
        return normal_log_prob(action, parameters, w.log_std)
    return categorical_log_prob(action.expand(parameters.shape[:-1]), parameters)


def gaussian_log_joint(w: Weights, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
    log_prior = normal_log_prob(z, *mlp(obs, w.prior).chunk(2, -1))
    return log_prior + action_log_prob(w, action, decode(w, obs, linear(z, w.decoder_latent)))


def mixture_log_joint(w: Weights, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
    log_prior = categorical_log_prob(z, mlp(obs, w.prior))
    # quicker than looking the columns up by `embedding`, whose gradient is slow
    one_hot = (z.unsqueeze(-1) == torch.arange(w.decoder_latent.shape[1])).to(obs.dtype)
    return log_prior + action_log_prob(w, action, decode(w, obs, linear(one_hot, w.decoder_latent)))


def log_joint(w: Weights, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
    score = gaussian_log_joint if z.is_floating_point() else mixture_log_joint
    return score(w, obs, action, z)


def log_marginal(w: Weights, obs: Tensor, action: Tensor, z: Tensor, log_proposal: Tensor) -> Tensor:
    """Log (1/K) sum_k p(z_k, a | s) / r(z_k), ``[B]``."""
    log_weight = log_joint(w, obs, action, z) - log_proposal
    return log_weight.logsumexp(0) - math.log(log_weight.shape[0])


def guide_parameters(w: Weights, obs: Tensor, action: Tensor) -> Tensor:
    hidden = tanh(linear(obs, *w.guide_features) + linear(action, w.guide_action))
    return mlp(hidden, w.guide_rest)


def draw_gaussian_guide(w: Weights, obs: Tensor, action: Tensor, num_particles: int) -> tuple[Tensor, Tensor]:
    """K draws a row of the Gaussian guide with their log-density."""
    with torch.no_grad():
        loc, log_scale = guide_parameters(w, obs, action).chunk(2, -1)
        noise = torch.randn(num_particles, *loc.shape)
        z = loc + log_scale.exp() * noise
        return z, normal_log_prob(z, loc, log_scale)
