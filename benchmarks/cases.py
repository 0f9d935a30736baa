"""Policies and data that the benchmarks share: 64 x 64 tanh networks, K = 8 particles, B = 1024 rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor

from benchmarks.hand_written import Weights, log_marginal, weights_of
from latentpg.estimators import Estimator, Guide, Particles, PosteriorIS
from latentpg.policies import GaussianPolicy, MixturePolicy
from latentpg.programs import act, model_parameters

OBSERVATION = spaces.Box(-1, 1, (8,))
NUM_PARTICLES = 8
NUM_ROWS = 1024

POLICIES: dict[str, Callable[[], GaussianPolicy | MixturePolicy]] = {
    "Gaussian latent, Box action": lambda: GaussianPolicy(OBSERVATION, spaces.Box(-1, 1, (2,)), latent_size=4),
    "discrete latent, Box action": lambda: MixturePolicy(OBSERVATION, spaces.Box(-1, 1, (2,)), num_components=4),
    "discrete latent, discrete action": lambda: MixturePolicy(OBSERVATION, spaces.Discrete(4), num_components=4),
}


@dataclass(frozen=True)
class Case:
    """A policy, transitions and stored particles, scored by the library and by hand."""

    policy: GaussianPolicy | MixturePolicy
    obs: Tensor
    action: Tensor
    particles: Particles
    weights: Weights

    def by_library(self, estimator: Estimator) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return log pi ``[B]`` and the gradient of its mean in theta and phi."""
        estimate = estimator.estimate(self.policy, self.obs, self.action, self.particles)
        return estimate.log_prob, self.gradient(estimate.log_prob)

    def by_hand(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        z, log_proposal = self.particles.latents["z"], self.particles.log_proposal
        log_prob = log_marginal(self.weights, self.obs, self.action, z, log_proposal)
        return log_prob, self.gradient(log_prob)

    def gradient(self, log_prob: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(log_prob.mean(), model_parameters(self.policy))


def make_case(name: str, *, rows: int = NUM_ROWS, num_particles: int = NUM_PARTICLES) -> Case:
    """Let a fresh policy act on random observations, and propose from its guide."""
    policy = POLICIES[name]()
    obs = torch.randn(rows, *OBSERVATION.shape)
    action = act(policy, obs).action
    particles = PosteriorIS(num_particles, Guide()).propose(policy, obs, action)
    return Case(policy, obs, action, particles, weights_of(policy))


def largest_difference(
    one: tuple[Tensor, tuple[Tensor, ...]], other: tuple[Tensor, tuple[Tensor, ...]]
) -> tuple[float, float]:
    """Compare two results: the largest difference of a value, and of an entry of the gradient."""
    values = float((one[0] - other[0]).detach().abs().max())
    gradients = max(float((a - b).abs().max()) for a, b in zip(one[1], other[1], strict=True))
    return values, gradients
