r"""Batch actor-critic: the policy gradient with a critic's word for what an action was worth, by the rollout.

:class:`A2C` acts for T steps in N environments and goes over them once, along :math:`\sum A_t\nabla\log\pi(a_t|s_t)` at
the parameters that acted, so that no ratio is needed: what :class:`~latentpg.estimators.ConditionalIS` says of the
gradient is exact in expectation there, for any number of particles.

``discount_gradient`` multiplies the credit of a step by :math:`\gamma^t`, t counted from the episode's start. With it
and an honest advantage the expected gradient is :math:`\nabla J`; without it, as is the custom, it is another vector.

Source: V. Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016, whose workers' steps are taken
together here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.descent import check_finite
from latentpg.learners.learner import collector_state, tensors_of
from latentpg.learners.parallel import (
    first_of,
    metrics_over,
    moments_over,
    standardized_over,
    stream_of,
    together,
    total_over,
)
from latentpg.learners.ppo import critic_metrics, episode_metrics
from latentpg.learners.scoring import Rows
from latentpg.learners.valued import (
    Valued,
    critic_descent,
    scaler_from,
    scaler_tensors,
    step_factors,
    value_steps,
)
from latentpg.numerics._checks import fraction, positive
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import reinforce
from latentpg.numerics.targets import gae, n_step_target
from latentpg.policies.common import check_sizes
from latentpg.rollout import ObservationNormalizer, RewardScaler, Rollout, StepCollector, resume_collector
from latentpg.values import value_loss


@dataclass(frozen=True)
class A2COptions:
    """Numbers of the batch actor-critic, by the names the field has for them.

    ``num_steps`` T a member and update. Advantages are GAE's with ``gae_lambda``, where 1 is all rewards up to the
    rollout's end and then the critic; ``n_step`` takes at most that many rewards instead.
    """

    num_steps: int = 5
    gamma: float | int = 0.99
    gae_lambda: float | int = 1.0
    n_step: int | None = None
    discount_gradient: bool = False
    normalize_advantage: bool = False
    value_learning_rate: float | int = 1e-3
    normalize_reward: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_sizes("A2COptions()", num_steps=self.num_steps)
        if self.n_step is not None:
            check_sizes("A2COptions()", n_step=self.n_step)
        fraction("A2COptions()", "gamma", self.gamma)
        fraction("A2COptions()", "gae_lambda", self.gae_lambda)
        positive("A2COptions()", "value_learning_rate", self.value_learning_rate)
        if self.n_step is not None and self.gae_lambda != 1:
            raise OptionError(
                "A2COptions()",
                "`n_step` and `gae_lambda` are two ways to an advantage",
                expected="one of them",
                got=f"n_step={self.n_step}, gae_lambda={self.gae_lambda}",
            )


class A2C:
    """Batch actor-critic over any estimator: one pass over each rollout, no ratio.

    Environments, agent and critic are the caller's, as for :class:`~latentpg.learners.ppo.PPO`; the rollout is one
    batch whatever the agent's ``batch_size``, which the guide's passes keep to.

    >>> from latentpg.estimators import ConditionalIS
    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> from latentpg.values import NetworkCritic
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> a2c = A2C(envs, Agent(policy, estimator=ConditionalIS(4)), NetworkCritic(4), seed=0)
    >>> metrics = a2c.update()
    >>> a2c.num_timesteps, a2c.num_updates
    (10, 1)
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        agent: Agent,
        critic: nn.Module,
        *,
        options: A2COptions = A2COptions(),
        seed: int,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        """Reset the environments and set up the critic's optimiser."""
        self.agent, self.critic, self.options, self.seed, self.normalizer = agent, critic, options, seed, normalizer
        self.value = critic_descent(critic, agent, learning_rate=options.value_learning_rate)
        first, members = first_of(agent.group, envs.num_envs)
        self.collector = StepCollector(envs, seed=stream_seed(seed, "environments"), first=first, members=members)
        self.scaler = RewardScaler.of_size(envs.num_envs, discount=options.gamma) if options.normalize_reward else None
        self.factor = torch.ones(envs.num_envs)
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        group = self.agent.group
        with seeded(stream_seed(self.seed, stream_of(group, f"update {self.num_updates}"))):
            rollout = self.collector.collect(self.agent.policy, num_steps=self.options.num_steps)
            metrics = self._learn(rollout, progress)
        if self.normalizer is not None:
            seen = partial(moments_over, group)
            self.normalizer.update(rollout.transitions.obs, mask=rollout.mask, joined=seen)
        self.num_timesteps += int(total_over(group, rollout.num_transitions))
        self.num_updates += 1
        return metrics_over(group, {**episode_metrics(rollout), **metrics}, rollout.num_transitions)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        return {
            **prefixed("agent", self.agent.state()),
            **prefixed("critic", self.critic.state_dict()),
            **prefixed("value", self.value.state()),
            **prefixed("scaler", scaler_tensors(self.scaler)),
            **prefixed("collector", tensors_of(self.collector.state())),
            "factor": self.factor.clone(),
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; each member's episode is replayed in the environments."""
        self.agent.restore(under("agent", state))
        self.critic.load_state_dict(under("critic", state))
        self.value.restore(under("value", state))
        self.scaler = scaler_from(self.scaler, under("scaler", state))
        envs = self.collector.envs
        first, members = first_of(self.agent.group, envs.num_envs)
        stood = collector_state(under("collector", state))
        self.collector = resume_collector(envs, stood, first=first, members=members)
        self.factor = state["factor"].clone()
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _learn(self, rollout: Rollout, progress: float) -> dict[str, float]:
        agent, options, steps = self.agent, self.options, rollout.transitions
        agent.anneal(progress)
        share = 1.0 - progress if agent.options.anneal else 1.0
        self.value.set_rate(options.value_learning_rate * share)
        valued = value_steps(rollout, self.critic, self.scaler, group=agent.group)
        advantage = rollout.flat(_advantage(valued, options))
        check_finite("an advantage", advantage)
        target = advantage + rollout.flat(valued.value)
        self.scaler = valued.scaler
        factors, self.factor = step_factors(
            self.factor,
            rollout.time_major(steps.done),
            rollout.time_major(rollout.mask),
            discount=options.gamma if options.discount_gradient else 1.0,
        )
        rows, index = Rows(steps.obs, steps.action, steps.latents), rollout.mask.nonzero().squeeze(1)
        scorer = agent.propose(rows, steps.log_joint)
        scored = scorer.score(agent.policy, index)
        credit = advantage[index]
        if options.normalize_advantage and (len(index) > 1 or agent.group.size > 1):
            credit = standardized_over(agent.group, credit)
        surrogate = reinforce(scored.log_prob, rollout.flat(factors)[index] * credit).mean()
        loss, told = -surrogate, {"train/policy_gradient_loss": -float(surrogate.detach())}
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(scored).mean()
            loss = loss - agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        told["train/grad_norm"] = agent.model.step(loss, rows=len(index))
        fit = value_loss(self.critic(steps.obs[index]), target[index]).mean()
        told["train/value_grad_norm"] = self.value.step(fit, rows=len(index))
        told["train/value_loss"] = 2 * float(fit.detach())
        told |= agent.teach_guide(scorer, rows, index)
        every = [together(agent.group, values[index]).rows for values in (rollout.flat(valued.value), target)]
        return told | critic_metrics(*every)


def _advantage(valued: Valued, options: A2COptions) -> Float[Tensor, "T N"]:
    ends = valued.terminated, valued.truncated
    if options.n_step is None:
        return gae(
            valued.reward,
            valued.value,
            valued.next_value,
            *ends,
            discount=options.gamma,
            trace_decay=options.gae_lambda,
        )
    target = n_step_target(valued.reward, valued.next_value, *ends, discount=options.gamma, num_steps=options.n_step)
    return target - valued.value
