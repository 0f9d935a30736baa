"""Learners in small, and what their tests read off them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from latentpg.estimators import ClosedForm, ConditionalIS, Estimator
from latentpg.estimators.guides import ConditionalWake, GuideObjective
from latentpg.learners import PPO, Agent, AgentOptions, PPOOptions
from latentpg.learners.scoring import Scored, Scorer
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy, PlainPolicy, observation_size
from latentpg.programs import LatentPolicy
from latentpg.rollout import ObservationNormalizer, make_envs
from latentpg.values import NetworkCritic

Policy = MixturePolicy | PlainPolicy
SMALL = AgentOptions(batch_size=16, gap_every=0)
SHORT = PPOOptions(num_steps=16, num_epochs=2)


def policy_for(
    envs: VectorEnv[Any, Any, Any],
    kind: str = "mixture",
    *,
    hidden: Sequence[int] = (8,),
    encoder: nn.Module | None = None,
) -> Policy:
    """Build a small policy, always with the same parameters."""
    spaces = envs.single_observation_space, envs.single_action_space
    with seeded(5):
        if kind == "plain":
            return PlainPolicy(*spaces, hidden=hidden, encoder=encoder)
        return MixturePolicy(*spaces, num_components=3, hidden=hidden, encoder=encoder)


def agent_for(
    envs: VectorEnv[Any, Any, Any],
    kind: str = "mixture",
    *,
    estimator: Estimator | None = None,
    objective: GuideObjective | None = None,
    options: AgentOptions = SMALL,
    encoder: nn.Module | None = None,
    hidden: Sequence[int] = (8,),
) -> Agent:
    """Build an agent around it: ConditionalIS and ConditionalWake, or ClosedForm for a plain policy."""
    policy = policy_for(envs, kind, encoder=encoder, hidden=hidden)
    if kind == "plain":
        return Agent(policy, estimator=estimator or ClosedForm(), objective=objective, options=options)
    return Agent(
        policy, estimator=estimator or ConditionalIS(4), objective=objective or ConditionalWake(), options=options
    )


def critic_for(envs: VectorEnv[Any, Any, Any]) -> NetworkCritic:
    """Build a small critic, always with the same parameters."""
    with seeded(6):
        return NetworkCritic(observation_size(envs.single_observation_space), hidden=(8,))


def ppo_for(
    kind: str = "mixture",
    *,
    env_id: str = "CartPole-v1",
    num_envs: int = 2,
    vectorization_mode: str = "sync",
    agent_options: AgentOptions = SMALL,
    options: PPOOptions = SHORT,
    normalized: bool = False,
    **rest: Any,  # noqa: ANN401 (handed on)
) -> PPO:
    """Build PPO in small; equal arguments give equal learners."""
    envs = make_envs(env_id, num_envs, vectorization_mode=vectorization_mode)
    normalizer = ObservationNormalizer(observation_size(envs.single_observation_space)) if normalized else None
    agent = agent_for(envs, kind, options=agent_options, encoder=normalizer, **rest)
    critic: nn.Module = critic_for(envs)
    if normalizer is not None:
        critic = nn.Sequential(normalizer, critic)
    return PPO(envs, agent, critic, options=options, seed=3, normalizer=normalizer)


@dataclass(frozen=True)
class Far:
    """Scores as another scorer does, but for a policy that has gone far: log-ratios are larger by so much."""

    inner: Scorer
    by: float

    def score(self, policy: LatentPolicy, index: Tensor) -> Scored:
        scored = self.inner.score(policy, index)
        return replace(scored, old_log_prob=scored.old_log_prob - self.by)


def parameters_of(*modules: nn.Module) -> list[Tensor]:
    """Copy every parameter."""
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Tell whether tensors are equal bit for bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def same_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Tell whether two states are equal bit for bit, name by name."""
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
