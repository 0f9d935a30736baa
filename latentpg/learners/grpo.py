r"""GRPO over any estimator: groups of whole episodes from one initial state, compared with one another; no critic.

One update: play G episodes from each of several initial states, give each row the advantage of its episode within its
group, propose particles, then several epochs of minibatches with clipped ratios, and the guide last.

**Rows.** With ``latent="step"`` every step is a row. With ``latent="episode"`` one latent is held for an episode, the
episode is one row with its one advantage, and its ratio is that of all its actions together. With ``latent="chunk"``
the policy decides on several actions at once, of which ``execute`` are carried out: the chunk is one row.

**What is the gradient.** At the first step of an update, with :class:`~latentpg.estimators.importance.ConditionalIS`
(or any estimator whose gradient is exact in expectation) and ``aggregation="constant"``, the expected gradient of the
objective is, by ``advantage``,

==============  ===========================================  ========================================================
advantage       expected gradient                            function
==============  ===========================================  ========================================================
"rloo"          :math:`\nabla J/C`                           :func:`~latentpg.numerics.group_advantages.rloo_advantage`
"group-mean"    :math:`\frac{G-1}{G}\nabla J/C`              :func:`~latentpg.numerics.group_advantages.group_mean_advantage`
"group-std"     another direction                            :func:`~latentpg.numerics.group_advantages.group_std_advantage`
"batch-std"     another direction, nearer with more groups   :func:`~latentpg.numerics.group_advantages.batch_std_advantage`
==============  ===========================================  ========================================================

for ``credit="episode"`` and ``"reward-to-go"``, either surrogate and either ratio, with C = ``horizon`` and :math:`J = E[\sum_t\gamma^t r_t]`. "token" and
"sequence" keep the direction only where all episodes have one length (:mod:`latentpg.numerics.aggregation`), and from
the second step on every one of them is something else (:mod:`latentpg.numerics.surrogates`).

Sources: Z. Shao et al., "DeepSeekMath: pushing the limits of mathematical reasoning in open language models", 2024;
variants are credited where their functions are.
"""  # noqa: E501 (a table)

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import check_finite
from latentpg.learners.episodic import EpisodeBatch, episode_batch, episode_metrics, episode_rows, whole_episodes
from latentpg.learners.group_credit import group_advantages, group_metrics
from latentpg.learners.grpo_options import KL_ESTIMATORS, GRPOOptions, annealed
from latentpg.learners.grpo_rows import grpo_rows, penalty_rows
from latentpg.learners.parallel import agreed, metrics_over, moments_over, share_of, stream_of, total_over
from latentpg.learners.ppo import has_gone_far
from latentpg.learners.reference import frozen, module_of, reference_log_prob
from latentpg.learners.scoring import Rows, Scored, Scorer
from latentpg.numerics.divergences import k3
from latentpg.numerics.penalties import reward_penalty
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import importance_weighted, ppo_clip
from latentpg.rollout import Episodes, ObservationNormalizer, collect_groups
from latentpg.rollout.environments import require_our_resets

BLOCK = 2**12
"""Rows that are scored at once where no gradient is needed."""

_DEFAULTS = GRPOOptions()


class GRPO:
    """GRPO over any estimator; every call of :meth:`update` is one iteration.

    Environments and agent are the caller's; a ``normalizer`` is the agent's encoder, and moves between updates only.
    Each update starts from fresh resets and draws from streams of its own, named by ``seed`` and the update's number.
    ``num_timesteps`` counts every step of every environment, those of members that waited for the others too.

    An update all of whose advantages are zero moves nothing, unless there is an entropy bonus or a penalty in the loss:
    ``train/skipped`` is then 1.

    >>> from latentpg.estimators import ConditionalIS
    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("CartPole-v1", 4)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> agent = Agent(policy, estimator=ConditionalIS(4))
    >>> grpo = GRPO(envs, agent, options=GRPOOptions(num_groups=1, group_size=4, num_epochs=1), seed=0)
    >>> grpo.update()["rollout/episodes"], grpo.num_updates
    (4.0, 1)
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        agent: Agent,
        *,
        options: GRPOOptions = _DEFAULTS,
        seed: int,
        normalizer: ObservationNormalizer | None = None,
        execute: int | None = None,
    ) -> None:
        """Check that the environments can be started in a chosen state, and copy the policy if it is the reference."""
        require_our_resets("GRPO()", envs)
        self.envs, self.agent, self.options, self.seed, self.normalizer = envs, agent, options, seed, normalizer
        self.execute = execute
        self.reference = frozen(agent.policy) if options.kl_coefficient else None
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        options, group = self.options, self.agent.group
        self._replace_reference()
        with seeded(stream_seed(self.seed, stream_of(group, f"update {self.num_updates}"))):
            episodes = collect_groups(
                self.envs,
                self.agent.policy,
                num_groups=options.num_groups,
                group_size=options.group_size,
                seed=stream_seed(self.seed, f"environments {self.num_updates}"),
                noise=options.noise,
                latent=options.latent,
                execute=self.execute,
                max_steps=options.max_steps,
                on_max_steps=options.on_max_steps,
                share=share_of(group, options.num_groups, what="groups"),
            )
            metrics = self._learn(episodes, progress)
        rows = episodes.transitions.num_rows
        if self.normalizer is not None:
            self.normalizer.update(episodes.transitions.obs, joined=partial(moments_over, group))
        self.num_timesteps += int(total_over(group, rows + episodes.num_idle_steps))
        self.num_updates += 1
        return metrics_over(group, {**episode_metrics(episodes), **group_metrics(episodes), **metrics}, rows)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        reference = {} if self.reference is None else prefixed("reference", module_of(self.reference).state_dict())
        return {
            **prefixed("agent", self.agent.state()),
            **reference,
            "num_timesteps": torch.tensor(self.num_timesteps),
            "num_updates": torch.tensor(self.num_updates),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        self.agent.restore(under("agent", state))
        if self.reference is not None:
            module_of(self.reference).load_state_dict(under("reference", state))
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _learn(self, episodes: Episodes, progress: float) -> dict[str, float]:
        agent, options = self.agent, annealed(self.options, progress)
        agent.anneal(progress)
        found = episode_rows(episodes)
        behaviour = copy.deepcopy(agent.policy) if self._measures_gap() else None
        scorer = agent.propose(found.rows, found.log_joint)
        reward, told = self._penalized(episodes, scorer, found.rows)
        group, weighing = agent.group, (options.aggregation, options.horizon)
        advantage = group_advantages(episodes, reward, options=options, group=group)
        batch = episode_batch(episodes, advantage, aggregation=weighing[0], horizon=weighing[1], group=group)
        moves = agreed(group, bool(batch.advantage.any()))
        if not (moves or self._has_more_than_credit()):  # Adam would go on by its momentum
            return {**told, "train/skipped": 1.0}
        means, stopped, epochs = Means(), False, 0
        while epochs < options.num_epochs and not stopped:
            epochs += 1
            divergences = []
            for part in self._parts(batch):
                step = self._step(scorer, batch, part, options)
                divergences.append((step["train/approx_kl"], float(len(part))))
                means.add(step)
            stopped = has_gone_far(group, divergences, options.target_kl)
        metrics = {**told, **means.values(), "train/epochs": float(epochs), "train/stopped_early": float(stopped)}
        index = torch.arange(batch.rows.size, device=batch.episode.device)
        if behaviour is not None:
            shuffled = torch.randperm(len(index), device=index.device)
            metrics |= agent.gap(batch.rows, behaviour, scorer, shuffled, _gap_rows(batch, options))
        return {**metrics, **agent.teach_guide(scorer, batch.rows, index), "train/skipped": 0.0}

    def _step(self, scorer: Scorer, batch: EpisodeBatch, part: Tensor, options: GRPOOptions) -> dict[str, float]:
        """Move theta and phi by one minibatch."""
        agent = self.agent
        scored = scorer.score(agent.policy, part)
        check_finite("a ratio", scored.log_ratio.exp())
        surrogate = grpo_rows(scored.log_prob, scored.log_ratio, batch, part, options=options)
        share = batch.size / len(part)  # a minibatch stands for the batch of all workers, whose mean is taken
        objective = share * surrogate.value.sum()
        told = {"train/policy_gradient_loss": -float(objective.detach())}
        if self.reference is not None and options.kl_placement != "reward":
            divergence = scored.log_prob - reference_log_prob(self.reference, agent.estimator, scored)
            rows = penalty_rows(scored.log_ratio, divergence, batch, part, options=options)
            objective = objective + share * rows.sum()
            told["train/kl_reference"] = float(k3(divergence.detach()).mean())
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(scored).mean()
            objective = objective + agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        told["train/grad_norm"] = agent.model.step(-objective, rows=len(part))
        return told | _tell(scored, surrogate.ratio, options)

    def _parts(self, batch: EpisodeBatch) -> Iterator[Tensor]:
        size, group = self.agent.options.batch_size, self.agent.group
        if self.options.ratio == "sequence":
            return whole_episodes(batch.episode, batch.length, size, group=group)
        return minibatches(torch.arange(batch.rows.size, device=batch.episode.device), size, group=group)

    def _penalized(self, episodes: Episodes, scorer: Scorer, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        """Take the penalty off the rewards, where that is its place; a row's goes to its first step."""
        reward = episodes.transitions.reward.double()
        if self.reference is None or self.options.kl_placement != "reward":
            return reward, {}
        parts = []
        with torch.no_grad():
            for index in torch.arange(rows.size, device=reward.device).split(BLOCK):
                scored = scorer.score(self.agent.policy, index)
                parts.append(scored.log_prob - reference_log_prob(self.reference, self.agent.estimator, scored))
        divergence = torch.cat(parts).double()
        estimator = KL_ESTIMATORS[self.options.kl_estimator]
        penalties = reward_penalty(divergence, beta=self.options.kl_coefficient, estimator=estimator)
        begins = episodes.begins.nonzero().squeeze(1)
        return reward.index_add(0, begins, penalties), {"train/kl_reference": float(k3(divergence).mean())}

    def _replace_reference(self) -> None:
        every = self.options.reference_every
        if self.reference is not None and every is not None and self.num_updates and self.num_updates % every == 0:
            self.reference = frozen(self.agent.policy)

    def _has_more_than_credit(self) -> bool:
        """Tell whether an entropy bonus or a penalty in the loss moves the policy where no episode was better."""
        penalized = self.reference is not None and self.options.kl_placement != "reward"
        return bool(self.agent.options.entropy_coefficient) or penalized

    def _measures_gap(self) -> bool:
        every = self.agent.options.gap_every
        return bool(every) and self.num_updates % every == 0


def _tell(scored: Scored, ratio: Tensor, options: GRPOOptions) -> dict[str, float]:
    high = options.clip_range if options.clip_range_high is None else options.clip_range_high
    outside = ratio > 1 + high
    if options.surrogate == "ppo-clip":
        outside |= ratio < 1 - options.clip_range
    told = {
        "train/clip_fraction": float(outside.double().mean()),
        "train/approx_kl": float(k3(-scored.log_ratio.detach()).mean()),
        "train/ratio_mean": float(ratio.mean()),
    }
    if "ess" in scored.estimate.info:
        told["train/ess"] = float(scored.estimate.info["ess"].mean()) / scored.particles.num_particles
    return told


def _gap_rows(batch: EpisodeBatch, options: GRPOOptions) -> Callable[[Tensor, Tensor], Tensor]:
    def rows(ratio: Tensor, index: Tensor) -> Tensor:
        advantage = batch.advantage[index]
        if options.surrogate == "cispo" or options.ratio == "sequence":
            return importance_weighted(ratio, advantage)
        return ppo_clip(ratio, advantage, epsilon=options.clip_range, epsilon_high=options.clip_range_high)

    return rows
