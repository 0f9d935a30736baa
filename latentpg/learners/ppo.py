r"""PPO on the marginal of a latent policy: clipped ratios of estimated log pi, advantages by GAE, a critic.

One update: act for T steps in N environments, value every step, propose particles, then several epochs of minibatches
over both networks, and the guide last. The ratio of a row is that of two estimates on the same particles.

A latent that spans several steps makes the span one row (``latent="chunk"`` or ``"episode"``): whole episodes are
played, ``num_episodes`` of them, from fresh resets, and every decision has an advantage of its own
(:mod:`latentpg.learners.spans`). None is cut by the rollout's end, so that no row is without its end.

Sources: J. Schulman et al., "Proximal policy optimization algorithms", 2017; the same, "High-dimensional continuous
control using generalized advantage estimation", 2016; L. Engstrom et al., "Implementation matters in deep policy
gradients", 2020, for what is done besides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import check_finite, step_together
from latentpg.learners.episodic import episode_metrics as of_whole_episodes
from latentpg.learners.learner import collector_state, tensors_of
from latentpg.learners.parallel import (
    Group,
    first_of,
    metrics_over,
    moments_over,
    share_of,
    standardized_over,
    stream_of,
    together,
    total_over,
)
from latentpg.learners.ppo_options import PPOOptions
from latentpg.learners.reference import frozen, module_of, reference_log_prob
from latentpg.learners.scoring import Rows, Scorer
from latentpg.learners.spans import span_credit
from latentpg.learners.valued import critic_descent, scaler_from, scaler_tensors, shares_parameters, value_steps
from latentpg.numerics.divergences import k3
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import ppo_clip
from latentpg.numerics.targets import gae
from latentpg.programs import Observations, Span
from latentpg.rollout import (
    Episodes,
    ObservationNormalizer,
    RewardScaler,
    Rollout,
    StepCollector,
    collect_episodes,
    resume_collector,
)
from latentpg.rollout.environments import require_our_resets
from latentpg.values import clipped_value_loss, explained_variance, value_loss

_DEFAULTS = PPOOptions()


@dataclass(frozen=True, eq=False)
class _Data:
    """What an update learns from: rows, their credit, what the critic said of them, and which of them count."""

    rows: Rows
    log_joint: Float[Tensor, " M"]
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
        options: PPOOptions = _DEFAULTS,
        seed: int,
        normalizer: ObservationNormalizer | None = None,
        execute: int | None = None,
    ) -> None:
        """Set up where experience comes from, the critic's optimiser, and the reference if there is one.

        ``execute`` is how many actions of a chunk are carried out, all unless told.
        """
        self.envs, self.execute = envs, execute
        self.agent, self.critic, self.options, self.seed, self.normalizer = agent, critic, options, seed, normalizer
        self.value = critic_descent(critic, agent, learning_rate=options.value_learning_rate)
        self.collector: StepCollector | None = None
        if options.num_episodes is None:
            first, members = first_of(agent.group, envs.num_envs)
            self.collector = StepCollector(envs, seed=stream_seed(seed, "environments"), first=first, members=members)
            columns = envs.num_envs
        else:
            require_our_resets("PPO()", envs)
            columns = len(self._share())
        self.scaler = RewardScaler.of_size(columns, discount=options.gamma) if options.normalize_reward else None
        self.reference = frozen(agent.policy) if options.kl_coefficient else None
        self._is_shared = False  # whether the critic has parameters that the policy moves; looked up once an update
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        group = self.agent.group
        with seeded(stream_seed(self.seed, stream_of(group, f"update {self.num_updates}"))):
            acted = self._act()
            metrics = self._learn(acted, progress)
        steps = acted.transitions
        if self.normalizer is not None:
            seen = partial(moments_over, group)
            mask = acted.mask if isinstance(acted, Rollout) else None
            self.normalizer.update(steps.obs, mask=mask, joined=seen)
        taken = acted.num_transitions if isinstance(acted, Rollout) else steps.num_rows + acted.num_idle_steps
        self.num_timesteps += int(total_over(group, taken))
        self.num_updates += 1
        return metrics_over(group, {**episode_metrics(acted), **metrics}, taken)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        return {
            **prefixed("agent", self.agent.state()),
            **prefixed("critic", self.critic.state_dict()),
            **prefixed("value", self.value.state()),
            **prefixed("scaler", scaler_tensors(self.scaler)),
            **({} if self.collector is None else prefixed("collector", tensors_of(self.collector.state()))),
            **({} if self.reference is None else prefixed("reference", module_of(self.reference).state_dict())),
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; each member's episode is replayed in the environments."""
        self.agent.restore(under("agent", state))
        self.critic.load_state_dict(under("critic", state))
        self.value.restore(under("value", state))
        self.scaler = scaler_from(self.scaler, under("scaler", state))
        if self.reference is not None:
            module_of(self.reference).load_state_dict(under("reference", state))
        if self.collector is not None:
            first, members = first_of(self.agent.group, self.envs.num_envs)
            stood = collector_state(under("collector", state))
            self.collector = resume_collector(self.envs, stood, first=first, members=members)
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _act(self) -> Rollout | Episodes:
        """Act for so many steps, or for whole episodes."""
        options, policy = self.options, self.agent.policy
        if self.collector is not None:
            return self.collector.collect(policy, num_steps=options.num_steps)
        assert options.num_episodes is not None
        return collect_episodes(
            self.envs,
            policy,
            num_episodes=options.num_episodes,
            seed=stream_seed(self.seed, f"environments {self.num_updates}"),
            latent=options.latent,
            execute=self.execute,
            share=self._share(),
        )

    def _share(self) -> range:
        """Return which of an update's episodes this worker plays."""
        assert self.options.num_episodes is not None
        return share_of(self.agent.group, self.options.num_episodes, what="episodes")

    def _learn(self, acted: Rollout | Episodes, progress: float) -> dict[str, float]:
        agent, options = self.agent, self.agent.options
        self._anneal(progress)
        self._is_shared = shares_parameters(self.critic, self.value)
        data = self._evaluate(acted)
        behaviour = copy.deepcopy(agent.policy) if self._measures_gap() else None
        scorer = agent.propose(data.rows, data.log_joint)
        means, stopped, epochs = Means(), False, 0
        while epochs < self.options.num_epochs and not stopped:
            epochs += 1
            divergences = []
            for part in minibatches(data.index, options.batch_size, group=agent.group):
                told = self._step(scorer, data, part, progress)
                divergences.append((told["train/approx_kl"], float(len(part))))
                means.add(told)
            stopped = has_gone_far(agent.group, divergences, self.options.target_kl)
        metrics = {**means.values(), "train/epochs": float(epochs), "train/stopped_early": float(stopped)}
        if behaviour is not None:
            low, high = self._clip(progress)

            def surrogate(ratio: Tensor, index: Tensor) -> Tensor:
                return ppo_clip(ratio, data.advantage[index], epsilon=low, epsilon_high=high)

            metrics |= agent.gap(data.rows, behaviour, scorer, data.index, surrogate)
        if not self._warms_up():
            metrics |= agent.teach_guide(scorer, data.rows, data.index)
        every = [together(agent.group, values[data.index]).rows for values in (data.value, data.target)]
        return metrics | critic_metrics(*every)

    def _step(self, scorer: Scorer, data: _Data, part: Tensor, progress: float) -> dict[str, float]:
        """Move theta and phi, then the critic, by one minibatch."""
        agent, options = self.agent, self.options
        scored = scorer.score(agent.policy, part)
        log_ratio, advantage = scored.log_ratio, data.advantage[part]
        if options.normalize_advantage and (len(part) > 1 or agent.group.size > 1):
            advantage = standardized_over(agent.group, advantage)
        ratio, (low, high) = log_ratio.exp(), self._clip(progress)
        check_finite("a ratio", ratio)
        surrogate = ppo_clip(ratio, advantage, epsilon=low, epsilon_high=high).mean()
        loss, told = -surrogate, {"train/policy_gradient_loss": -float(surrogate.detach())}
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(scored).mean()
            loss = loss - agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        if self.reference is not None:
            held = reference_log_prob(self.reference, agent.estimator, scored)
            divergence = k3(scored.log_prob - held).mean()
            loss = loss + self.options.kl_coefficient * divergence
            told["train/kl_reference"] = float(divergence.detach())
        told |= self._descend(loss, first_of_rows(scored.rows.obs), data, part)
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
        self, loss: Float[Tensor, ""], obs: Float[Tensor, "B S"], data: _Data, part: Int[Tensor, " B"]
    ) -> dict[str, float]:
        """Move theta and phi down their loss and the critic down its own; an encoder of both is the policy's alone."""
        if self._warms_up():
            critic_loss = self._value_loss(obs, data, part)
            value_norm = self.value.step(critic_loss, rows=len(part))
            return {"train/value_grad_norm": value_norm, "train/value_loss": 2 * float(critic_loss.detach())}
        if self._is_shared:
            norm = self.agent.model.step(loss, rows=len(part))
            critic_loss = self._value_loss(obs, data, part)
            value_norm = self.value.step(critic_loss, rows=len(part))
        else:
            critic_loss = self._value_loss(obs, data, part)
            both = (self.agent.model, loss), (self.value, critic_loss)
            norm, value_norm = step_together(*both, rows=len(part))
        told = {"train/grad_norm": norm, "train/value_grad_norm": value_norm}
        return told | {"train/value_loss": 2 * float(critic_loss.detach())}

    def _value_loss(self, obs: Float[Tensor, "B S"], data: _Data, part: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        value, target, clip = self.critic(obs), data.target[part], self.options.clip_range_vf
        if clip is None:
            return value_loss(value, target).mean()
        return clipped_value_loss(value, data.value[part], target, clip_range=clip).mean()

    def _evaluate(self, acted: Rollout | Episodes) -> _Data:
        """Value every decision and what followed it, and give credit."""
        return self._evaluate_steps(acted) if isinstance(acted, Rollout) else self._evaluate_spans(acted)

    def _evaluate_spans(self, episodes: Episodes) -> _Data:
        discounts = {"discount": self.options.gamma, "trace_decay": self.options.gae_lambda}
        found = span_credit(episodes, self.critic, self.scaler, **discounts, group=self.agent.group)
        self.scaler = found.scaler
        check_finite("an advantage", found.advantage)
        index = torch.arange(len(found.value), device=found.value.device)
        target = found.advantage + found.value
        return _Data(found.rows.rows, found.rows.log_joint, found.advantage, target, found.value, index)

    def _evaluate_steps(self, rollout: Rollout) -> _Data:
        valued = value_steps(rollout, self.critic, self.scaler, group=self.agent.group)
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
        return _Data(rows, steps.log_joint, flat, flat + value, value, rollout.mask.nonzero().squeeze(1))

    def _warms_up(self) -> bool:
        return self.num_updates < self.options.value_warmup_updates

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


def first_of_rows(obs: Observations) -> Float[Tensor, "B S"]:
    """Return what was seen at each row's first step, which a critic values."""
    return obs.first if isinstance(obs, Span) else obs


def has_gone_far(group: Group, divergences: Sequence[tuple[float, float]], limit: float | int | None) -> bool:
    """Tell whether an epoch's mean divergence exceeds 1.5 times the limit, from each minibatch's and its rows.

    >>> from latentpg.learners.parallel import ALONE
    >>> has_gone_far(ALONE, [(0.1, 64.0), (0.3, 64.0)], 0.1)
    True
    """
    if limit is None:
        return False
    value, rows = group.gather(torch.tensor(divergences, dtype=torch.float64)).unbind(-1)
    return float(((value * rows).sum(0) / rows.sum(0)).mean()) > 1.5 * limit


def critic_metrics(value: Float[Tensor, " M"], target: Float[Tensor, " M"]) -> dict[str, float]:
    """Return how much of the targets the critic explained, where they vary at all."""
    explained = explained_variance(value, target)
    return {} if math.isnan(explained) else {"train/explained_variance": explained}


def episode_metrics(rollout: Rollout | Episodes) -> dict[str, float]:
    """Return mean return and length of the episodes that ended, where any did."""
    if isinstance(rollout, Episodes):
        return of_whole_episodes(rollout)
    if not len(rollout.episode_returns):
        return {}
    return {
        "rollout/ep_rew_mean": float(rollout.episode_returns.mean()),
        "rollout/ep_len_mean": float(rollout.episode_lengths.double().mean()),
        "rollout/episodes": float(len(rollout.episode_returns)),
    }
