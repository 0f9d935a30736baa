r"""Online actor-critic: learn after every single step, with the TD error as advantage.

``discount_gradient`` multiplies the credit of a step by :math:`\gamma^t`, t counted from the episode's start. With it
and an honest advantage the expected gradient is :math:`\nabla J`; without it, as is the custom, it is another vector.

Sources: A. G. Barto, R. S. Sutton and C. W. Anderson, "Neuronlike adaptive elements that can solve difficult learning
control problems", 1983; R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018,
section 13.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.batches import Means
from latentpg.learners.descent import Descent, check_finite
from latentpg.learners.learner import collector_state, tensors_of
from latentpg.learners.parallel import first_of, mean_of, metrics_over, moments_over, stream_of, total_over
from latentpg.learners.ppo import episode_metrics
from latentpg.learners.scoring import Rows
from latentpg.learners.valued import critic_descent, step_factors, value_steps
from latentpg.numerics._checks import fraction, positive
from latentpg.numerics.devices import device_of
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.targets import td_error
from latentpg.policies.common import check_sizes
from latentpg.rollout import ObservationNormalizer, Rollout, StepCollector, resume_collector


@dataclass(frozen=True)
class OnlineOptions:
    r"""Numbers of the online actor-critic.

    An update is ``num_steps`` steps a member, with learning after each. ``actor_trace_decay`` and
    ``critic_trace_decay`` are the λ of two eligibility traces; 0 is the one-step TD error alone.
    """

    num_steps: int = 128
    gamma: float | int = 0.99
    actor_trace_decay: float | int = 0.0
    critic_trace_decay: float | int = 0.0
    discount_gradient: bool = False
    value_learning_rate: float | int = 1e-3

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_sizes("OnlineOptions()", num_steps=self.num_steps)
        for name in ("gamma", "actor_trace_decay", "critic_trace_decay"):
            fraction("OnlineOptions()", name, getattr(self, name))
        positive("OnlineOptions()", "value_learning_rate", self.value_learning_rate)


class OnlineActorCritic:
    r"""Actor-critic that learns after every step of its N environments, with the TD error as advantage.

    .. math:: \delta = r + \gamma\,(1-\mathrm{terminated})\,V(s') - V(s), \qquad
              e \leftarrow \gamma\lambda\,e + \gamma^t\,\nabla\log\pi(a|s), \qquad
              g = \frac1N \sum_n \delta_n\, e_n

    with a trace of each member, 0 again after an episode's last step, and alike for the critic with :math:`\nabla V(s)`
    (without :math:`\gamma^t`). Adam goes along g, so that λ > 0 is not the return-weighted sum it is for plain steps.

    >>> from latentpg.estimators import ConditionalIS
    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> from latentpg.values import NetworkCritic
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> agent = Agent(policy, estimator=ConditionalIS(4))
    >>> online = OnlineActorCritic(envs, agent, NetworkCritic(4), options=OnlineOptions(num_steps=3), seed=0)
    >>> metrics = online.update()
    >>> online.num_timesteps, online.num_updates
    (6, 1)
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        agent: Agent,
        critic: nn.Module,
        *,
        options: OnlineOptions = OnlineOptions(),
        seed: int,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        """Reset the environments, and begin with empty traces."""
        self.agent, self.critic, self.options, self.seed, self.normalizer = agent, critic, options, seed, normalizer
        self.value = critic_descent(critic, agent, learning_rate=options.value_learning_rate)
        first, members = first_of(agent.group, envs.num_envs)
        self.collector = StepCollector(envs, seed=stream_seed(seed, "environments"), first=first, members=members)
        size = envs.num_envs
        self.actor_trace = _no_trace(agent.model.parameters, size, options.actor_trace_decay)
        self.critic_trace = _no_trace(self.value.parameters, size, options.critic_trace_decay)
        self.factor = torch.ones(size)
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act and learn ``num_steps`` times, and return means of the steps' metrics."""
        self.agent.anneal(progress)
        share = 1.0 - progress if self.agent.options.anneal else 1.0
        self.value.set_rate(self.options.value_learning_rate * share)
        means, episodes, seen, group = Means(), [], [], self.agent.group
        with seeded(stream_seed(self.seed, stream_of(group, f"update {self.num_updates}"))):
            for _ in range(self.options.num_steps):
                rollout = self.collector.collect(self.agent.policy, num_steps=1)
                means.add(self._learn(rollout))
                episodes.append(rollout)
                seen.append(rollout.transitions.obs[rollout.mask])
        taken = sum(rollout.num_transitions for rollout in episodes)
        self.num_timesteps += int(total_over(group, taken))
        self.num_updates += 1
        if self.normalizer is not None:
            self.normalizer.update(torch.cat(seen), joined=partial(moments_over, group))
        return metrics_over(group, {**_joined_episode_metrics(episodes), **means.values()}, taken)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        return {
            **prefixed("agent", self.agent.state()),
            **prefixed("critic", self.critic.state_dict()),
            **prefixed("value", self.value.state()),
            **prefixed("collector", tensors_of(self.collector.state())),
            **prefixed("actor_trace", _by_name(self.agent.model.names, self.actor_trace)),
            **prefixed("critic_trace", _by_name(self.value.names, self.critic_trace)),
            "factor": self.factor.clone(),
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; each member's episode is replayed in the environments."""
        self.agent.restore(under("agent", state))
        self.critic.load_state_dict(under("critic", state))
        self.value.restore(under("value", state))
        envs = self.collector.envs
        first, members = first_of(self.agent.group, envs.num_envs)
        stood = collector_state(under("collector", state))
        self.collector = resume_collector(envs, stood, first=first, members=members)
        actor, critic = under("actor_trace", state), under("critic_trace", state)
        here = device_of(self.critic)
        self.actor_trace = [actor[name].to(here, copy=True) for name in self.agent.model.names if self.actor_trace]
        self.critic_trace = [critic[name].to(here, copy=True) for name in self.value.names if self.critic_trace]
        self.factor = state["factor"].clone()
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _learn(self, rollout: Rollout) -> dict[str, float]:
        """Move theta, phi and the critic by one step of every member, and then psi."""
        agent, options, steps = self.agent, self.options, rollout.transitions
        index = rollout.mask.nonzero().squeeze(1)
        factors, self.factor = step_factors(
            self.factor, steps.done.unsqueeze(0), rollout.mask.unsqueeze(0), discount=options.gamma
        )
        if not len(index):
            return {}
        valued = value_steps(rollout, self.critic)
        error = td_error(
            valued.reward, valued.value, valued.next_value, valued.terminated, discount=options.gamma
        ).squeeze(0)[index]
        check_finite("a TD error", error)
        rows = Rows(steps.obs, steps.action, steps.latents)
        scorer = agent.propose(rows, steps.log_joint)
        scored = scorer.score(agent.policy, index)
        entering = factors.squeeze(0)[index] if options.discount_gradient else torch.ones_like(error)
        told, bonus = (
            {"train/td_error": float(error.abs().mean()), "train/value_loss": float(error.square().mean())},
            None,
        )
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(scored).mean()
            bonus, told["train/entropy"] = agent.options.entropy_coefficient * entropy, float(entropy.detach())
        decay = options.gamma * options.actor_trace_decay
        told["train/grad_norm"], self.actor_trace = _ascend(
            agent.model, scored.log_prob, error, self.actor_trace, index, entering=entering, decay=decay, bonus=bonus
        )
        value, decay = self.critic(steps.obs[index]), options.gamma * options.critic_trace_decay
        told["train/value_grad_norm"], self.critic_trace = _ascend(
            self.value, value, error, self.critic_trace, index, entering=torch.ones_like(error), decay=decay
        )
        for trace in (*self.actor_trace, *self.critic_trace):
            trace[steps.done] = 0.0
        return told | agent.teach_guide(scorer, rows, index)


def _ascend(
    descent: Descent,
    rows: Float[Tensor, " M"],
    error: Float[Tensor, " M"],
    trace: Sequence[Tensor],
    index: Int[Tensor, " M"],
    *,
    entering: Float[Tensor, " M"],
    decay: float,
    bonus: Tensor | None = None,
) -> tuple[float, list[Tensor]]:
    """Go one step up the errors times the traces of the rows' gradients; return its length and the traces after it."""
    if not trace:  # what enters it is then all there is of it
        loss = -(error * entering * rows).mean()
        return descent.step(loss if bonus is None else loss - bonus, rows=len(index)), []
    moved = [part.clone() for part in trace]
    total = [torch.zeros_like(part[0]) for part in trace]
    for place, member in enumerate(index.tolist()):
        for part, sum_, score in zip(moved, total, descent.gradients(rows[place], retain_graph=True), strict=True):
            part[member] = decay * part[member] + entering[place] * score
            sum_ -= error[place] * part[member] / len(index)
    if bonus is not None:
        total = [sum_ + more for sum_, more in zip(total, descent.gradients(-bonus), strict=True)]
    return descent.move(mean_of(descent.group, total, len(index))), moved


def _no_trace(parameters: Sequence[Tensor], members: int, decay: float | int) -> list[Tensor]:
    return [parameter.new_zeros(members, *parameter.shape) for parameter in parameters if decay]


def _by_name(names: Sequence[str], trace: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(names, trace, strict=True)) if trace else {}


def _joined_episode_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    returns = torch.cat([rollout.episode_returns for rollout in rollouts])
    lengths = torch.cat([rollout.episode_lengths for rollout in rollouts])
    return episode_metrics(replace(rollouts[-1], episode_returns=returns, episode_lengths=lengths))
