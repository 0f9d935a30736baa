"""What a critic says of a rollout, and what a learner with a critic keeps beside its agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners.agent import Agent
from latentpg.learners.descent import Descent
from latentpg.learners.parallel import ALONE, Group, moments_over
from latentpg.rollout import RewardScaler, Rollout, RunningMoments


@dataclass(frozen=True, eq=False)
class Valued:
    """Steps of a rollout with a critic's values of them, as :mod:`latentpg.numerics.targets` reads them.

    ``reward`` is in the scale of ``scaler``, which has seen these steps; without one it is raw.
    """

    reward: Float[Tensor, "T N"]
    value: Float[Tensor, "T N"]
    next_value: Float[Tensor, "T N"]
    terminated: Bool[Tensor, "T N"]
    truncated: Bool[Tensor, "T N"]
    scaler: RewardScaler | None


def value_steps(
    rollout: Rollout, critic: nn.Module, scaler: RewardScaler | None = None, *, group: Group = ALONE
) -> Valued:
    """Value every step and its true successor, without a gradient, after the scaler has seen the rewards of all."""
    steps, shape = rollout.transitions, rollout.time_major
    with torch.no_grad():
        value, following = critic(steps.obs), critic(steps.next_obs)
    reward, terminated, truncated = shape(steps.reward), shape(steps.terminated), shape(steps.truncated)
    if scaler is not None:
        seen = partial(moments_over, group)
        scaler = scaler.update(reward, terminated | truncated, mask=shape(rollout.mask), joined=seen)
        reward = scaler.scale(reward)
    return Valued(reward, shape(value), shape(following), terminated, truncated, scaler)


def step_factors(
    first: Float[Tensor, " N"],
    done: Bool[Tensor, "T N"],
    mask: Bool[Tensor, "T N"],
    *,
    discount: float | int,
) -> tuple[Float[Tensor, "T N"], Float[Tensor, " N"]]:
    r"""Return :math:`\gamma^t` of every step, t counted from its episode's start, and those of the steps to come.

    ``first`` are the first steps' factors, where the rollout before ended. A step outside of ``mask`` is the
    environment resetting itself, and the episode begins after it.

    >>> none = torch.zeros(2, 1, dtype=torch.bool)
    >>> [part.flatten().tolist() for part in step_factors(torch.tensor([0.5]), none, ~none, discount=0.5)]
    [[0.5, 0.25], [0.125]]
    """
    first = first.to(done.device)
    factors = first.new_empty(done.shape)
    for t in range(len(done)):
        factors[t] = first
        first = (discount * first).masked_fill(done[t] | ~mask[t], 1.0)
    return factors, first


def critic_descent(critic: nn.Module, agent: Agent, *, learning_rate: float | int) -> Descent:
    """Set up a critic's optimiser; an encoder that it shares with the policy is the policy's to move."""
    if not isinstance(critic, nn.Module):
        raise OptionError("learner", "`critic`", expected="an nn.Module", got=type(critic).__name__)
    assert isinstance(agent.policy, nn.Module)  # an Agent takes no other
    theirs = {id(parameter) for parameter in agent.policy.parameters()}
    mine = {name: parameter for name, parameter in critic.named_parameters() if id(parameter) not in theirs}
    limit = agent.options.max_grad_norm
    return Descent(mine, learning_rate=learning_rate, max_grad_norm=limit, group=agent.group)


def shares_parameters(critic: nn.Module, descent: Descent) -> bool:
    """Tell whether a critic has parameters that are not its own to move."""
    return sum(parameter.requires_grad for parameter in critic.parameters()) > len(descent.parameters)


def scaler_tensors(scaler: RewardScaler | None) -> dict[str, Tensor]:
    """Spell a reward scaler's statistics as tensors; nothing where there is none.

    >>> sorted(scaler_tensors(RewardScaler.of_size(2, discount=0.9)))
    ['carried', 'count', 'mean', 'variance']
    """
    if scaler is None:
        return {}
    moments = scaler.moments
    return {
        "count": torch.tensor(moments.count),
        "mean": moments.mean.clone(),
        "variance": moments.variance.clone(),
        "carried": scaler.carried.clone(),
    }


def scaler_from(scaler: RewardScaler | None, tensors: Mapping[str, Tensor]) -> RewardScaler | None:
    """Read them back into a scaler of the same options."""
    if scaler is None:
        return None
    moments = RunningMoments(int(tensors["count"]), tensors["mean"].clone(), tensors["variance"].clone())
    return replace(scaler, moments=moments, carried=tensors["carried"].clone())
