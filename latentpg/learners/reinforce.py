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
:math:`J = E[\sum_t\gamma^t r_t]`.

Sources: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
1992; R. S. Sutton et al., "Policy gradient methods for reinforcement learning with function approximation", 2000.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners.agent import Agent, prefixed, under
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import Descent
from latentpg.learners.episodic import (
    Aggregation,
    EpisodeBatch,
    check_choices,
    check_counts,
    check_fraction,
    check_positive,
    credit_to_go,
    episode_batch,
    episode_metrics,
    episode_rows,
    step_discounts,
    total_credit,
)
from latentpg.learners.scoring import Scorer
from latentpg.numerics.baselines import batch_mean_baseline, leave_one_out_baseline, less_baseline, standardized
from latentpg.numerics.divergences import k3
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import importance_weighted, reinforce
from latentpg.rollout import Episodes, ObservationNormalizer, collect_episodes
from latentpg.rollout.environments import require_our_resets
from latentpg.values import explained_variance, value_loss


@dataclass(frozen=True)
class ReinforceOptions:
    r"""REINFORCE's own numbers.

    **Credit.** ``"total"`` gives :math:`\sum_t\gamma^t r_t` of the episode to every step. ``"reward-to-go"`` gives step
    t what followed it, discounted ``"from-step"``, :math:`\sum_{k\ge t}\gamma^{k-t}r_k`, as most code does, or
    ``"from-start"``, which is the same times :math:`\gamma^t`, as the theorem says. A latent that is held for an
    episode makes it one row, and wants ``"total"``.

    **Baseline.** ``"batch-mean"`` and ``"leave-one-out"`` are means over the update's episodes, of what each has at
    step t (0 if it has ended); ``"state-value"`` is a critic, fitted to what followed by ``value_epochs`` passes
    *after* it has served, times :math:`\gamma^t` where the credit has it.

    **Step.** ``ratio="none"`` is REINFORCE itself: one step on all rows, valid on-policy only, and so
    ``num_epochs=1``. ``ratio="step"`` goes over minibatches, several times if asked to, with single-step ratios to the
    policy that acted; its gradient is that of the former at the first step and something else afterwards.
    ``normalize_advantage`` standardises advantages over all rows, which is no honest baseline.
    """

    num_episodes: int = 16
    baseline: Literal["none", "batch-mean", "leave-one-out", "state-value"] = "leave-one-out"
    credit: Literal["total", "reward-to-go"] = "reward-to-go"
    discounting: Literal["from-step", "from-start"] = "from-step"
    gamma: float | int = 0.99
    ratio: Literal["none", "step"] = "none"
    num_epochs: int = 1
    normalize_advantage: bool = False
    aggregation: Aggregation = "constant"
    horizon: float | int = 1
    latent: Literal["step", "episode"] = "step"
    max_steps: int = 100_000
    on_max_steps: Literal["error", "truncate"] = "error"
    value_learning_rate: float | int = 1e-3
    value_epochs: int = 5

    def __post_init__(self) -> None:
        """Check the numbers, and that they fit together."""
        where = "ReinforceOptions()"
        check_counts(
            where,
            {
                "num_episodes": (self.num_episodes, 2 if self.baseline in ("leave-one-out", "batch-mean") else 1),
                "num_epochs": (self.num_epochs, 1),
                "max_steps": (self.max_steps, 1),
                "value_epochs": (self.value_epochs, 1),
            },
            {"num_episodes": "a mean over episodes is taken off, and one has nothing to be compared with"}
            if self.baseline in ("leave-one-out", "batch-mean")
            else None,
        )
        check_positive(where, {"horizon": self.horizon, "value_learning_rate": self.value_learning_rate})
        check_fraction(where, "gamma", self.gamma)
        check_choices(
            where,
            {
                "baseline": (self.baseline, ("none", "batch-mean", "leave-one-out", "state-value")),
                "credit": (self.credit, ("total", "reward-to-go")),
                "discounting": (self.discounting, ("from-step", "from-start")),
                "ratio": (self.ratio, ("none", "step")),
                "aggregation": (self.aggregation, ("token", "sequence", "constant")),
                "latent": (self.latent, ("step", "episode")),
                "on_max_steps": (self.on_max_steps, ("error", "truncate")),
            },
        )
        if self.latent == "episode" and self.credit == "reward-to-go":
            raise OptionError(
                where,
                '`credit="reward-to-go"` gives steps of one row different credits',
                expected='latent="step"',
                got='latent="episode"',
                fix='credit="total"',
            )
        if self.ratio == "none" and self.num_epochs > 1:
            raise OptionError(
                where,
                "after the first step the episodes are another policy's",
                expected='num_epochs=1, or ratio="step"',
                got=f'num_epochs={self.num_epochs}, ratio="none"',
                fix='ratio="step"',
            )


def reinforce_advantages(
    episodes: Episodes,
    reward: Float[Tensor, " M"],
    value: Float[Tensor, " M"] | None = None,
    *,
    options: ReinforceOptions,
) -> Float[Tensor, " B"]:
    """Return the credit of every row less its baseline, in float64; ``value`` is the critic's of every step."""
    if options.credit == "total":
        credit = total_credit(episodes, reward, gamma=options.gamma)  # [E]
        rows_of = (lambda total: total) if episodes.held else episodes.spread
    else:
        from_start = options.discounting == "from-start"
        credit = credit_to_go(episodes, reward, gamma=options.gamma, from_start=from_start).T  # [E, T]
        rows_of = lambda steps: episodes.unpad(steps.T)  # noqa: E731
    if options.baseline == "batch-mean":
        advantage = rows_of(less_baseline(credit, batch_mean_baseline(credit)))
    elif options.baseline == "leave-one-out":
        advantage = rows_of(less_baseline(credit, leave_one_out_baseline(credit)))
    elif value is not None:
        advantage = less_baseline(rows_of(credit), _baseline_of(value, episodes, options))
    else:
        advantage = rows_of(credit)
    return standardized(advantage) if options.normalize_advantage else advantage


def reinforce_rows(
    log_prob: Float[Tensor, " M"],
    log_ratio: Float[Tensor, " M"],
    batch: EpisodeBatch,
    part: Int[Tensor, " M"],
    *,
    options: ReinforceOptions,
) -> Float[Tensor, " M"]:
    """Return the weighted rows of the surrogate for the batch's rows ``part``; their sum is the objective's share."""
    advantage = batch.advantage[part]
    if options.ratio == "step":
        rows = importance_weighted(log_ratio.exp(), advantage)
    else:
        rows = reinforce(log_prob, advantage)
    return batch.weight[batch.episode[part]] * rows


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
        options: ReinforceOptions = ReinforceOptions(),
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
        )
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        options = self.options
        with seeded(stream_seed(self.seed, f"update {self.num_updates}")):
            episodes = collect_episodes(
                self.envs,
                self.agent.policy,
                num_episodes=options.num_episodes,
                seed=stream_seed(self.seed, f"environments {self.num_updates}"),
                latent=options.latent,
                max_steps=options.max_steps,
                on_max_steps=options.on_max_steps,
            )
            metrics = self._learn(episodes, progress)
        if self.normalizer is not None:
            self.normalizer.update(episodes.transitions.obs)
        self.num_timesteps += episodes.transitions.num_rows + episodes.num_idle_steps
        self.num_updates += 1
        return {**episode_metrics(episodes), **metrics}

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
        advantage = reinforce_advantages(episodes, reward, value, options=options)
        batch = episode_batch(episodes, advantage, aggregation=options.aggregation, horizon=options.horizon)
        behaviour = copy.deepcopy(agent.policy) if self._measures_gap() else None
        scorer = agent.propose(found.rows, found.log_joint)
        means, index = Means(), torch.arange(batch.rows.size)
        moves = bool(batch.advantage.any())  # Adam would go on by its momentum
        for _ in range(options.num_epochs if moves else 0):
            for part in self._parts(index):
                means.add(self._step(scorer, batch, part))
        metrics = {**means.values(), "train/skipped": float(not moves)}
        if behaviour is not None and moves:
            metrics |= agent.gap(
                batch.rows,
                behaviour,
                scorer,
                torch.randperm(len(index)),
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
        share = batch.rows.size / len(part)  # a minibatch stands for the batch
        rows = reinforce_rows(scored.log_prob, scored.log_ratio, batch, part, options=self.options)
        objective = share * rows.sum()
        told = {"train/policy_gradient_loss": -float(objective.detach())}
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(batch.rows.take(part), scored).mean()
            objective = objective + agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        told["train/grad_norm"] = agent.model.step(-objective)
        log_ratio = scored.log_ratio.detach()
        told["train/approx_kl"] = float(k3(-log_ratio).mean())
        told["train/ratio_mean"] = float(log_ratio.exp().mean())
        if "ess" in scored.estimate.info:
            told["train/ess"] = float(scored.estimate.info["ess"].mean()) / scored.particles.num_particles
        return told

    def _parts(self, index: Tensor) -> Iterator[Tensor]:
        if self.options.ratio == "none":
            return iter([index])
        return minibatches(index, self.agent.options.batch_size)

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
        for _ in range(self.options.value_epochs):
            for part in minibatches(torch.arange(len(target)), self.agent.options.batch_size):
                loss = value_loss(self.critic(obs[part]), target[part]).mean()
                norm = self.value.step(loss)
                means.add({"train/value_grad_norm": norm, "train/value_loss": 2 * float(loss.detach())})
        return {**means.values(), "train/explained_variance": explained_variance(value, target)}

    def _anneal(self, progress: float) -> None:
        self.agent.anneal(progress)
        share = 1.0 - progress if self.agent.options.anneal else 1.0
        self.value.set_rate(self.options.value_learning_rate * share)

    def _measures_gap(self) -> bool:
        every = self.agent.options.gap_every
        return bool(every) and self.num_updates % every == 0


def _baseline_of(value: Tensor, episodes: Episodes, options: ReinforceOptions) -> Tensor:
    """Put the values of every step in the units of the credit: times gamma^t where it counts from the start."""
    baseline = value.double()
    if options.credit == "total" or options.discounting == "from-start":
        baseline = baseline * step_discounts(episodes, gamma=options.gamma)
    return baseline[episodes.step == 0] if episodes.held else baseline
