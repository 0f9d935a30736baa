"""What the studies of modes and of mixing share: three policies, how one is trained, and what it played at the end.

All three go through the same PPO with the same options, hidden layers and steps. The two with a latent have conditional
importance sampling with K = 8 particles of the guide, the recorded latent among them, and their guide is taught by
``conditional-wake``: the entropy bonus of a latent policy takes the value of log pi from particles of its guide.

**The start** is a factor of the comparison, the same for all. By this package's defaults a last layer is initialised at
a gain of 0.01 and a Gaussian's standard deviation at 1: all values of a latent then act alike, and the first thing that
is learnt moves all of them to one place. Here the gain is 2 and the standard deviation exp(-1), so that what the latent
chooses between is apart from the start (by about 0.45 in each coordinate), as far as one choice is wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.learning.exploration import with_gain
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies import PlainPolicy, decode_actions
from latentpg.policies.heads import BoxHead
from latentpg.rollout import Episodes, collect_episodes
from latentpg.training import TrainingConfig, prepared, resolve
from latentpg.training.config import known_values

EPISODES = 100
"""Stochastic episodes of a last evaluation."""

GAIN = 2.0
"""Gain of the last layer of what acts."""

LOG_STD = -1.0
"""Logarithm of the standard deviation of a Gaussian, at the start."""

_LATENT = {
    "estimator": "conditional-is",
    "num_particles": 8,
    "proposal": "guide",
    "guide_objective": "conditional-wake",
}

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "mixture": {"policy": "mixture", "num_components": 8, **_LATENT},
    "gaussian": {"policy": "gaussian", "latent_size": 2, **_LATENT},
    "plain": {"policy": "plain"},
}
"""What each policy has beside the options of all."""

COMMON: Mapping[str, Any] = {
    "algo": "ppo",
    "vectorization_mode": "native",
    "num_envs": 64,
    "num_epochs": 4,
    "anneal": True,
    "gap_every": 0,
}
"""Options of every run of both studies."""


@dataclass(frozen=True, eq=False)
class Trained:
    """How a run ended: its configuration, its steps, and the episodes of its last evaluation.

    ``action`` holds one action a row of ``episodes.transitions``, as the environment took it; ``curve`` the mean return
    of the episodes that ended in an update, with the steps taken until then.
    """

    config: TrainingConfig
    steps: int
    episodes: Episodes
    action: NDArray[Any]
    curve: list[tuple[int, float]]

    def told(self) -> dict[str, Any]:
        """Return what every result has."""
        returns = self.episodes.returns.tolist()
        return {
            "options": {**known_values(self.config), "gain": GAIN, "initial_log_std": LOG_STD},
            "steps": self.steps,
            "returns": returns,
            "mean_return": sum(returns) / len(returns),
        }


def train(options: Mapping[str, Any], seed: int) -> Trained:
    """Train by PPO for all steps, and play the last evaluation by the last parameters."""
    config = resolve({**COMMON, **options, "seed": seed})
    total, curve = config.run.total_timesteps, []
    with prepared(config) as built:
        learner, policy = built.learner, built.policy
        assert isinstance(policy, nn.Module)
        spread_out(policy)
        while learner.num_timesteps < total:
            metrics = learner.update(learner.num_timesteps / total)
            if "rollout/ep_rew_mean" in metrics:
                curve.append((learner.num_timesteps, round(metrics["rollout/ep_rew_mean"], 4)))
        with seeded(stream_seed(seed, "actions of the last evaluation")):
            episodes = collect_episodes(
                built.evaluation_envs,
                built.policy,
                num_episodes=EPISODES,
                seed=stream_seed(seed, "last evaluation"),
                latent=str(getattr(config.algorithm, "latent", "step")),
            )
        action = decode_actions(built.envs.single_action_space, episodes.transitions.action)
        return Trained(config, learner.num_timesteps, episodes, np.asarray(action), curve)


def spread_out(policy: nn.Module) -> None:
    """Set gain and standard deviation at which a policy starts."""
    with_gain(policy, GAIN)
    head: Any = policy.head if isinstance(policy, PlainPolicy) else policy.get_submodule("decoder.head")
    if isinstance(head, BoxHead):
        with torch.no_grad():
            head.log_std.fill_(LOG_STD)
