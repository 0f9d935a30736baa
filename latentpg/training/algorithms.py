"""The algorithms by name: the options of each, and how its learner is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import VectorEnv
from torch import nn

from latentpg.learners import PPO, Agent, Learner, PPOOptions
from latentpg.learners.actor_critic import A2C, A2COptions
from latentpg.learners.grpo import GRPO
from latentpg.learners.grpo_options import GRPOOptions
from latentpg.learners.online import OnlineActorCritic, OnlineOptions
from latentpg.learners.reinforce import Reinforce
from latentpg.learners.reinforce_options import ReinforceOptions
from latentpg.rollout import ObservationNormalizer


@dataclass(frozen=True, eq=False)
class Pieces:
    """What a learner is built from; ``make_critic`` builds one, for the algorithms that have a use for it.

    ``execute`` is how many actions of a chunk are carried out.
    """

    envs: VectorEnv[Any, Any, Any]
    agent: Agent
    make_critic: Callable[[], nn.Module]
    options: Any
    seed: int
    normalizer: ObservationNormalizer | None
    execute: int | None = None


@dataclass(frozen=True)
class Algorithm:
    """A class of options, what builds a learner with them, and what it is in a line."""

    options: Callable[..., Any]
    build: Callable[[Pieces], Learner]
    title: str


def _with_critic(learner: Callable[..., Learner]) -> Callable[[Pieces], Learner]:
    def build(pieces: Pieces) -> Learner:
        return learner(
            pieces.envs,
            pieces.agent,
            pieces.make_critic(),
            options=pieces.options,
            seed=pieces.seed,
            normalizer=pieces.normalizer,
        )

    return build


def _ppo(pieces: Pieces) -> Learner:
    return PPO(
        pieces.envs,
        pieces.agent,
        pieces.make_critic(),
        options=pieces.options,
        seed=pieces.seed,
        normalizer=pieces.normalizer,
        execute=pieces.execute,
    )


def _grpo(pieces: Pieces) -> Learner:
    return GRPO(
        pieces.envs,
        pieces.agent,
        options=pieces.options,
        seed=pieces.seed,
        normalizer=pieces.normalizer,
        execute=pieces.execute,
    )


def _reinforce(pieces: Pieces) -> Learner:
    critic = pieces.make_critic() if pieces.options.baseline == "state-value" else None
    return Reinforce(
        pieces.envs, pieces.agent, critic, options=pieces.options, seed=pieces.seed, normalizer=pieces.normalizer
    )


ALGORITHMS: Mapping[str, Algorithm] = {
    "reinforce": Algorithm(
        ReinforceOptions,
        _reinforce,
        "Whole episodes, returns less a baseline; one step, or several by ratios.",
    ),
    "a2c": Algorithm(A2COptions, _with_critic(A2C), "A few steps of every environment, a critic, one step of ascent."),
    "online-actor-critic": Algorithm(
        OnlineOptions,
        _with_critic(OnlineActorCritic),
        "Actor and critic learn after every step, by TD errors and traces.",
    ),
    "ppo": Algorithm(PPOOptions, _ppo, "Clipped ratios over several epochs, GAE, a critic."),
    "grpo": Algorithm(
        GRPOOptions, _grpo, "Whole episodes from one initial state, compared with each other; no critic."
    ),
}
"""Every algorithm by name."""
