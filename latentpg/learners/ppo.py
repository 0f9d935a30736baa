r"""PPO on the marginal of a latent policy: clipped ratios of estimated log pi, advantages by GAE, a critic.

One update: act for T steps in N environments, value every step, propose particles, then several epochs of minibatches
over both networks, and the guide last. The ratio of a row is that of two estimates on the same particles.

Sources: J. Schulman et al., "Proximal policy optimization algorithms", 2017; the same, "High-dimensional continuous
control using generalized advantage estimation", 2016; L. Engstrom et al., "Implementation matters in deep policy
gradients", 2020, for what is done besides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import check_finite, step_together
from latentpg.learners.learner import collector_state, tensors_of
from latentpg.learners.scoring import Rows, Scorer
from latentpg.learners.valued import critic_descent, scaler_from, scaler_tensors, shares_parameters, value_steps
from latentpg.numerics.baselines import standardized
from latentpg.numerics.divergences import k3
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import ppo_clip
from latentpg.numerics.targets import gae
from latentpg.programs import Observations
from latentpg.rollout import (
    ObservationNormalizer,
    RewardScaler,
    Rollout,
    StepCollector,
    resume_collector,
)
from latentpg.values import clipped_value_loss, explained_variance, value_loss


@dataclass(frozen=True)
class PPOOptions:
    """PPO's own numbers, by the names the field has for them.

    ``num_steps`` T a member and update; ``clip_range`` is epsilon, ``clip_range_high`` another one upwards, and
    ``anneal_clip`` lets both fall linearly to zero over the run. ``clip_range_vf`` clips the value's move too, if it is
    given. ``target_kl`` ends an update's epochs once the mean k3 of the ratio exceeds 1.5 times it, None never.
    """

    num_steps: int = 2048
    num_epochs: int = 10
    gamma: float | int = 0.99
    gae_lambda: float | int = 0.95
    clip_range: float | int = 0.2
    clip_range_high: float | int | None = None
    anneal_clip: bool = False
    clip_range_vf: float | int | None = None
    normalize_advantage: bool = True
    target_kl: float | int | None = None
    value_learning_rate: float | int = 3e-4
    normalize_reward: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_steps", "num_epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError("PPOOptions()", f"`{name}`", expected="an integer >= 1", got=repr(value))
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(
                    "PPOOptions()", f"`{name}`", expected="a number in [0, 1]", got=repr(getattr(self, name))
                )
        for name in ("clip_range", "clip_range_high", "clip_range_vf", "target_kl", "value_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError("PPOOptions()", f"`{name}`", expected="a number > 0", got=repr(value))


@dataclass(frozen=True, eq=False)
class _Data:
    """What an update learns from: rows, their credit, what the critic said of them, and which of them count."""

    rows: Rows
    advantage: Float[Tensor, " M"]
    target: Float[Tensor, " M"]
    value: Float[Tensor, " M"]
    index: Tensor


class PPO:
    """PPO over any estimator; every call of :meth:`update` is one iteration.

    Environments, agent and critic are the caller's; a ``normalizer`` is the encoder that agent and critic share, and
    moves between updates only. Parameters that the critic shares with the policy are moved by the policy's loss alone.
    Each update draws from a stream of its own, named by ``seed`` and the update's number.

    >>> from latentpg.estimators import ConditionalIS
    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> from latentpg.values import NetworkCritic
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> agent = Agent(policy, estimator=ConditionalIS(4))
    >>> ppo = PPO(envs, agent, NetworkCritic(4), options=PPOOptions(num_steps=8), seed=0)
    >>> metrics = ppo.update()
    >>> ppo.num_timesteps, ppo.num_updates
    (16, 1)
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        agent: Agent,
        critic: nn.Module,
        *,
        options: PPOOptions = PPOOptions(),
        seed: int,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        """Reset the environments and set up the critic's optimiser."""
        self.agent, self.critic, self.options, self.seed, self.normalizer = agent, critic, options, seed, normalizer
        self.value = critic_descent(critic, agent, learning_rate=options.value_learning_rate)
        self.collector = StepCollector(envs, seed=stream_seed(seed, "environments"))
        self.scaler = RewardScaler.of_size(envs.num_envs, discount=options.gamma) if options.normalize_reward else None
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        with seeded(stream_seed(self.seed, f"update {self.num_updates}")):
            rollout = self.collector.collect(self.agent.policy, num_steps=self.options.num_steps)
            metrics = self._learn(rollout, progress)
        if self.normalizer is not None:
            self.normalizer.update(rollout.transitions.obs, mask=rollout.mask)
        self.num_timesteps += rollout.num_transitions
        self.num_updates += 1
        return {**episode_metrics(rollout), **metrics}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        return {
            **prefixed("agent", self.agent.state()),
            **prefixed("critic", self.critic.state_dict()),
            **prefixed("value", self.value.state()),
            **prefixed("scaler", scaler_tensors(self.scaler)),
            **prefixed("collector", tensors_of(self.collector.state())),
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; each member's episode is replayed in the environments."""
        self.agent.restore(under("agent", state))
        self.critic.load_state_dict(under("critic", state))
        self.value.restore(under("value", state))
        self.scaler = scaler_from(self.scaler, under("scaler", state))
        self.collector = resume_collector(self.collector.envs, collector_state(under("collector", state)))
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _learn(self, rollout: Rollout, progress: float) -> dict[str, float]:
        agent, options = self.agent, self.agent.options
        self._anneal(progress)
        data = self._evaluate(rollout)
        behaviour = copy.deepcopy(agent.policy) if self._measures_gap() else None
        scorer = agent.propose(data.rows, rollout.transitions.log_joint)
        means, stopped, epochs = Means(), False, 0
        while epochs < self.options.num_epochs and not stopped:
            epochs += 1
            divergences = []
            for part in minibatches(data.index, options.batch_size):
                told = self._step(scorer, data, part, progress)
                divergences.append(told["train/approx_kl"])
                means.add(told)
            limit = self.options.target_kl
            stopped = limit is not None and sum(divergences) / len(divergences) > 1.5 * limit
        metrics = {**means.values(), "train/epochs": float(epochs), "train/stopped_early": float(stopped)}
        if behaviour is not None:
            low, high = self._clip(progress)

            def surrogate(ratio: Tensor, index: Tensor) -> Tensor:
                return ppo_clip(ratio, data.advantage[index], epsilon=low, epsilon_high=high)

            metrics |= agent.gap(data.rows, behaviour, scorer, data.index, surrogate)
        metrics |= agent.teach_guide(scorer, data.rows, data.index)
        return metrics | critic_metrics(data.value[data.index], data.target[data.index])

    def _step(self, scorer: Scorer, data: _Data, part: Tensor, progress: float) -> dict[str, float]:
        """Move theta and phi, then the critic, by one minibatch."""
        agent, options = self.agent, self.options
        scored = scorer.score(agent.policy, part)
        log_ratio, advantage = scored.log_ratio, data.advantage[part]
        if options.normalize_advantage and len(part) > 1:
            advantage = standardized(advantage)
        ratio, (low, high) = log_ratio.exp(), self._clip(progress)
        check_finite("a ratio", ratio)
        surrogate = ppo_clip(ratio, advantage, epsilon=low, epsilon_high=high).mean()
        loss, told = -surrogate, {"train/policy_gradient_loss": -float(surrogate.detach())}
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(scored).mean()
            loss = loss - agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        told |= self._descend(loss, scored.rows.obs, data, part)
        with torch.no_grad():
            moved = ratio.detach()
            outside = (moved < 1 - low) | (moved > 1 + (high if high is not None else low))
            told["train/clip_fraction"] = int(outside.count_nonzero()) / len(outside)
            told["train/approx_kl"] = float(k3(-log_ratio.detach()).mean())
            told["train/ratio_mean"] = float(moved.mean())
            ess = scored.estimate.info.get("ess")  # computed when it is looked up, under one percent of a minibatch
            if ess is not None:
                told["train/ess"] = float(ess.mean()) / scored.particles.num_particles
        return told

    def _descend(
        self, loss: Float[Tensor, ""], obs: Observations, data: _Data, part: Int[Tensor, " B"]
    ) -> dict[str, float]:
        """Move theta and phi down their loss and the critic down its own; an encoder of both is the policy's alone."""
        if shares_parameters(self.critic, self.value):
            norm = self.agent.model.step(loss)
            critic_loss = self._value_loss(obs, data, part)
            value_norm = self.value.step(critic_loss)
        else:
            critic_loss = self._value_loss(obs, data, part)
            norm, value_norm = step_together((self.agent.model, loss), (self.value, critic_loss))
        told = {"train/grad_norm": norm, "train/value_grad_norm": value_norm}
        return told | {"train/value_loss": 2 * float(critic_loss.detach())}

    def _value_loss(self, obs: Observations, data: _Data, part: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        value, target, clip = self.critic(obs), data.target[part], self.options.clip_range_vf
        if clip is None:
            return value_loss(value, target).mean()
        return clipped_value_loss(value, data.value[part], target, clip_range=clip).mean()

    def _evaluate(self, rollout: Rollout) -> _Data:
        """Value every step and its successor, and give credit."""
        valued = value_steps(rollout, self.critic, self.scaler)
        self.scaler = valued.scaler
        advantage = gae(
            valued.reward,
            valued.value,
            valued.next_value,
            valued.terminated,
            valued.truncated,
            discount=self.options.gamma,
            trace_decay=self.options.gae_lambda,
        )
        value, flat = rollout.flat(valued.value), rollout.flat(advantage)
        check_finite("an advantage", flat)
        steps = rollout.transitions
        rows = Rows(steps.obs, steps.action, steps.latents)
        return _Data(rows, flat, flat + value, value, rollout.mask.nonzero().squeeze(1))

    def _anneal(self, progress: float) -> None:
        self.agent.anneal(progress)
        share = 1.0 - progress if self.agent.options.anneal else 1.0
        self.value.set_rate(self.options.value_learning_rate * share)

    def _clip(self, progress: float) -> tuple[float, float | None]:
        share = max(1.0 - progress, 1e-3) if self.options.anneal_clip else 1.0
        high = self.options.clip_range_high
        return self.options.clip_range * share, None if high is None else high * share

    def _measures_gap(self) -> bool:
        every = self.agent.options.gap_every
        return bool(every) and self.num_updates % every == 0


def critic_metrics(value: Float[Tensor, " M"], target: Float[Tensor, " M"]) -> dict[str, float]:
    """Return how much of the targets the critic explained, where they vary at all."""
    explained = explained_variance(value, target)
    return {} if math.isnan(explained) else {"train/explained_variance": explained}


def episode_metrics(rollout: Rollout) -> dict[str, float]:
    """Return mean return and length of the episodes that ended, where any did."""
    if not len(rollout.episode_returns):
        return {}
    return {
        "rollout/ep_rew_mean": float(rollout.episode_returns.mean()),
        "rollout/ep_len_mean": float(rollout.episode_lengths.double().mean()),
        "rollout/episodes": float(len(rollout.episode_returns)),
    }
