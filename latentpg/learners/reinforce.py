r"""REINFORCE over any estimator: whole episodes, what followed each action less a baseline, one step of ascent.

One update: play whole episodes, give each row its credit, propose particles, go one step up
:math:`\sum_t\nabla\log\pi(a_t|s_t)\,(c_t - b_t)`, then the critic if there is one, and the guide last.

With :class:`~latentpg.estimators.importance.ConditionalIS` (or any estimator whose gradient is exact in expectation),
``aggregation="constant"`` and advantages that are not normalised, the expected gradient of the objective is

==============================================================  =======================================
credit                                                          expected gradient
==============================================================  =======================================
"total", or "reward-to-go" with ``discounting="from-start"``    :math:`\nabla J/C`
"reward-to-go" with ``discounting="from-step"``                 something else, unless :math:`\gamma=1`
==============================================================  =======================================

with every baseline but the batch's mean, which makes it :math:`\frac{E-1}{E}` of that. C is ``horizon`` and
:math:`J = E[\sum_t\gamma^t r_t]`. Over several epochs ``ratio="trajectory"`` and ``"per-decision"`` keep that gradient,
at the policy as it then is and for parameters that do not hang on the update's own episodes; ``"step"`` does not
(:mod:`latentpg.learners.reinforce_rows`).

Sources: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
1992; R. S. Sutton et al., "Policy gradient methods for reinforcement learning with function approximation", 2000.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import Descent, check_finite
from latentpg.learners.episodic import (
    EpisodeBatch,
    credit_to_go,
    episode_batch,
    episode_metrics,
    episode_rows,
    whole_episodes,
)
from latentpg.learners.parallel import agreed, metrics_over, moments_over, share_of, stream_of, together, total_over
from latentpg.learners.reinforce_options import ReinforceOptions
from latentpg.learners.reinforce_rows import reinforce_advantages, reinforce_rows
from latentpg.learners.scores import squared_scores
from latentpg.learners.scoring import Scorer
from latentpg.numerics.divergences import k3
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import importance_weighted
from latentpg.rollout import Episodes, ObservationNormalizer, collect_episodes
from latentpg.rollout.environments import require_our_resets
from latentpg.values import explained_variance, value_loss

_DEFAULTS = ReinforceOptions()


class Reinforce:
    """REINFORCE over any estimator; every call of :meth:`update` is one iteration.

    Environments, agent and critic are the caller's; a critic is wanted with ``baseline="state-value"`` and with nothing
    else. A ``normalizer`` is the encoder that agent and critic share, and moves between updates only. Each update
    starts from fresh resets and draws from streams of its own, named by ``seed`` and the update's number.
    ``num_timesteps`` counts every step of every environment, those of members that waited for the others too.

    >>> from latentpg.estimators import ConditionalIS
    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("CartPole-v1", 4)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> agent = Agent(policy, estimator=ConditionalIS(4))
    >>> learner = Reinforce(envs, agent, options=ReinforceOptions(num_episodes=4), seed=0)
    >>> learner.update()["rollout/episodes"], learner.num_updates
    (4.0, 1)
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        agent: Agent,
        critic: nn.Module | None = None,
        *,
        options: ReinforceOptions = _DEFAULTS,
        seed: int,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        """Check that the environments wait for our resets, and set up the critic's optimiser."""
        require_our_resets("Reinforce()", envs)
        wanted = options.baseline == "state-value"
        if wanted != isinstance(critic, nn.Module):
            raise OptionError(
                "Reinforce()",
                "`critic`",
                expected='an nn.Module with baseline="state-value", and None with any other',
                got=f'{type(critic).__name__} with baseline="{options.baseline}"',
                fix="NetworkCritic(...)" if wanted else 'ReinforceOptions(baseline="state-value")',
            )
        self.envs, self.agent, self.critic, self.options = envs, agent, critic, options
        self.seed, self.normalizer = seed, normalizer
        self.value = Descent(
            {} if critic is None else dict(critic.named_parameters()),
            learning_rate=options.value_learning_rate,
            max_grad_norm=agent.options.max_grad_norm,
            group=agent.group,
        )
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        options, group = self.options, self.agent.group
        with seeded(stream_seed(self.seed, stream_of(group, f"update {self.num_updates}"))):
            episodes = collect_episodes(
                self.envs,
                self.agent.policy,
                num_episodes=options.num_episodes,
                seed=stream_seed(self.seed, f"environments {self.num_updates}"),
                latent=options.latent,
                max_steps=options.max_steps,
                on_max_steps=options.on_max_steps,
                share=share_of(group, options.num_episodes, what="episodes"),
            )
            metrics = self._learn(episodes, progress)
        rows = episodes.transitions.num_rows
        if self.normalizer is not None:
            self.normalizer.update(episodes.transitions.obs, joined=partial(moments_over, group))
        self.num_timesteps += int(total_over(group, rows + episodes.num_idle_steps))
        self.num_updates += 1
        return metrics_over(group, {**episode_metrics(episodes), **metrics}, rows)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        return {
            **prefixed("agent", self.agent.state()),
            **prefixed("critic", {} if self.critic is None else self.critic.state_dict()),
            **prefixed("value", self.value.state()),
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        self.agent.restore(under("agent", state))
        if self.critic is not None:
            self.critic.load_state_dict(under("critic", state))
        self.value.restore(under("value", state))
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _learn(self, episodes: Episodes, progress: float) -> dict[str, float]:
        agent, options = self.agent, self.options
        self._anneal(progress)
        found, reward = episode_rows(episodes), episodes.transitions.reward.double()
        value = self._values(episodes)
        behaviour = copy.deepcopy(agent.policy) if self._measures_gap() else None
        scorer = agent.propose(found.rows, found.log_joint)
        squares = self._squared_scores(episodes, scorer)
        group, weighing = agent.group, (options.aggregation, options.horizon)
        advantage = reinforce_advantages(episodes, reward, value, squares, options=options, group=group)
        batch = episode_batch(episodes, advantage, aggregation=weighing[0], horizon=weighing[1], group=group)
        means, index = Means(), torch.arange(batch.rows.size, device=advantage.device)
        moves = agreed(group, bool(batch.advantage.any()))  # Adam would go on by its momentum
        for _ in range(options.num_epochs if moves else 0):
            for part in self._parts(batch):
                means.add(self._step(scorer, batch, part))
        metrics = {**means.values(), "train/skipped": float(not moves)}
        if behaviour is not None and moves:
            metrics |= agent.gap(
                batch.rows,
                behaviour,
                scorer,
                torch.randperm(len(index), device=index.device),
                lambda ratio, part: importance_weighted(ratio, batch.advantage[part]),
            )
        if moves:
            metrics |= agent.teach_guide(scorer, batch.rows, index)
        if value is not None:
            metrics |= self._fit_critic(episodes, reward, value)
        return metrics

    def _step(self, scorer: Scorer, batch: EpisodeBatch, part: Tensor) -> dict[str, float]:
        """Move theta and phi by one minibatch."""
        agent = self.agent
        scored = scorer.score(agent.policy, part)
        share = batch.size / len(part)  # a minibatch stands for the batch of all workers, whose mean is taken
        check_finite("a ratio", scored.log_ratio.exp())
        rows = reinforce_rows(scored.log_prob, scored.log_ratio, batch, part, options=self.options)
        objective = share * rows.sum()
        told = {"train/policy_gradient_loss": -float(objective.detach())}
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(scored).mean()
            objective = objective + agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        told["train/grad_norm"] = agent.model.step(-objective, rows=len(part))
        log_ratio = scored.log_ratio.detach()
        told["train/approx_kl"] = float(k3(-log_ratio).mean())
        told["train/ratio_mean"] = float(log_ratio.exp().mean())
        if "ess" in scored.estimate.info:
            told["train/ess"] = float(scored.estimate.info["ess"].mean()) / scored.particles.num_particles
        return told

    def _parts(self, batch: EpisodeBatch) -> Iterator[Tensor]:
        ratio, size, group = self.options.ratio, self.agent.options.batch_size, self.agent.group
        index = torch.arange(batch.rows.size, device=batch.episode.device)
        if ratio == "none":
            return iter([index])
        if ratio == "step" or self.options.latent == "episode":
            return minibatches(index, size, group=group)
        return whole_episodes(batch.episode, batch.length, size, group=group)

    def _squared_scores(self, episodes: Episodes, scorer: Scorer) -> Tensor | None:
        if self.options.baseline != "variance-optimal":
            return None
        if episodes.held:
            group = torch.arange(episodes.num_episodes, device=episodes.episode.device)
        elif self.options.credit == "total":
            group = episodes.episode
        else:
            group = torch.arange(len(episodes.episode), device=episodes.episode.device)
        return squared_scores(self.agent.policy, scorer, group, int(group[-1]) + 1)

    def _values(self, episodes: Episodes) -> Tensor | None:
        if self.critic is None:
            return None
        with torch.no_grad():
            return self.critic(episodes.transitions.obs)

    def _fit_critic(self, episodes: Episodes, reward: Tensor, value: Tensor) -> dict[str, float]:
        """Fit the critic to what followed every step, now that its values have served."""
        assert self.critic is not None
        to_go = credit_to_go(episodes, reward, gamma=self.options.gamma, from_start=False)
        obs, target, means = episodes.transitions.obs, episodes.unpad(to_go).to(value.dtype), Means()
        index, group = torch.arange(len(target), device=target.device), self.agent.group
        for _ in range(self.options.value_epochs):
            for part in minibatches(index, self.agent.options.batch_size, group=group):
                loss = value_loss(self.critic(obs[part]), target[part]).mean()
                norm = self.value.step(loss, rows=len(part))
                means.add({"train/value_grad_norm": norm, "train/value_loss": 2 * float(loss.detach())})
        explained = explained_variance(together(group, value).rows, together(group, target).rows)
        return {**means.values(), "train/explained_variance": explained}

    def _anneal(self, progress: float) -> None:
        self.agent.anneal(progress)
        share = 1.0 - progress if self.agent.options.anneal else 1.0
        self.value.set_rate(self.options.value_learning_rate * share)

    def _measures_gap(self) -> bool:
        every = self.agent.options.gap_every
        return bool(every) and self.num_updates % every == 0
