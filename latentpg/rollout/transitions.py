"""Record what a policy sees, does and draws, from a fresh start."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.devices import device_of
from latentpg.programs import Acted, LatentPolicy, Latents, act, take_rows
from latentpg.rollout.edge import Edge, Outcome
from latentpg.rollout.environments import LARGEST_SEED, require_our_resets


@dataclass(frozen=True)
class Transitions:
    """M = T * N recorded steps of N environments, time-major: row ``t * N + n`` is step t of environment n.

    ``obs`` and ``next_obs`` are flat float32, ``action`` is in policy coordinates (not clipped to the environment's
    bounds), ``latents`` are those drawn behind the action and ``log_joint`` is log p(z, a | s) as the acting policy had
    it. ``next_obs`` is the true next observation, at the end of an episode too. An episode that was ``terminated`` has
    no future; one that was ``truncated`` has one that was not recorded.
    """

    obs: Float[Tensor, "M S"]
    action: Tensor
    latents: Latents
    log_joint: Float[Tensor, " M"]
    reward: Float[Tensor, " M"]
    terminated: Bool[Tensor, " M"]
    truncated: Bool[Tensor, " M"]
    next_obs: Float[Tensor, "M S"]

    def __post_init__(self) -> None:
        """Check that every part has the same rows."""
        for name, value in [*((f.name, getattr(self, f.name)) for f in fields(self)), *self.latents.items()]:
            if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != len(self.obs)):
                raise ShapeError(
                    "Transitions()", f"`{name}`", expected=f"[M={len(self.obs)}, ...]", got=str(list(value.shape))
                )

    @property
    def num_rows(self) -> int:
        """M."""
        return len(self.obs)

    @property
    def done(self) -> Bool[Tensor, " M"]:
        """Whether the episode ended with this step, for either reason."""
        return self.terminated | self.truncated

    def rows(self, index: slice | Tensor) -> Transitions:
        """Take some rows."""
        return Transitions(**{f.name: take_rows(getattr(self, f.name), index) for f in fields(self)})


def record_transitions(
    envs: VectorEnv[Any, Any, Any], policy: LatentPolicy, *, num_steps: int, seed: int
) -> Transitions:
    """Act for T = ``num_steps`` steps in every environment from a fresh start, and record M = T * N rows.

    ``seed`` fixes the environments alone: each reset of each member takes a new seed from one stream. The policy draws
    from the ambient random stream, so a caller who wants the same rows again opens ``seeded(...)`` around the call.

    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> record_transitions(envs, policy, num_steps=3, seed=0).obs.shape
    torch.Size([6, 4])
    """
    if num_steps < 1:
        raise OptionError("record_transitions()", "`num_steps`", expected="an integer >= 1", got=repr(num_steps))
    if seed < 0:
        raise OptionError("record_transitions()", "`seed`", expected="an integer >= 0", got=repr(seed), fix="seed=0")
    require_our_resets("record_transitions()", envs)
    edge = Edge(envs, "record_transitions()")
    seeds = np.random.default_rng(seed)

    def fresh() -> list[int]:
        # after a seeded reset an unseeded one would continue the same stream, so every reset has a seed of its own
        return [int(value) for value in seeds.integers(LARGEST_SEED, size=envs.num_envs)]

    obs = edge.reset(fresh(), np.ones(envs.num_envs, dtype=np.bool_))
    record, here = Record(), device_of(policy)
    for step in range(num_steps):
        acted = act(policy, obs.to(here))
        outcome = edge.step(acted.action)
        record.add(obs, acted, outcome)
        finished = outcome.terminated | outcome.truncated
        obs = outcome.next_obs
        if finished.any() and step + 1 < num_steps:
            obs = edge.reset(fresh(), finished)
    return record.transitions()


@dataclass
class Record:
    """Steps of N members as they happen; joined and checked once, when all are there.

    Building :class:`Transitions` at every step would cost as much as a network.
    """

    obs: list[Tensor] = field(default_factory=list)
    acted: list[Acted] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, obs: Float[Tensor, "N S"], acted: Acted, outcome: Outcome) -> None:
        """Note one step."""
        self.obs.append(obs)
        self.acted.append(acted)
        self.outcomes.append(outcome)

    def transitions(self) -> Transitions:
        """Join the steps, time-major, on the device that the policy acted on."""
        first, outcomes = self.acted[0], self.outcomes
        reward = np.concatenate([outcome.reward for outcome in outcomes])
        here = first.action.device
        return Transitions(
            torch.cat(self.obs).to(here),
            torch.cat([acted.action for acted in self.acted]),
            {name: torch.cat([acted.latents[name] for acted in self.acted]) for name in first.latents},
            torch.cat([acted.log_joint for acted in self.acted]),
            torch.from_numpy(reward.astype(np.float32)).to(here),
            torch.from_numpy(np.concatenate([outcome.terminated for outcome in outcomes])).to(here),
            torch.from_numpy(np.concatenate([outcome.truncated for outcome in outcomes])).to(here),
            torch.cat([outcome.next_obs for outcome in outcomes]).to(here),
        )
