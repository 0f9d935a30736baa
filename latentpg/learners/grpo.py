r"""GRPO over any estimator: groups of whole episodes from one initial state, compared with one another; no critic.

One update: play G episodes from each of several initial states, give each row the advantage of its episode within its
group, propose particles, then several epochs of minibatches with clipped ratios, and the guide last.

**Rows.** With ``latent="step"`` every step is a row. With ``latent="episode"`` one latent is held for an episode, the
episode is one row with its one advantage, and its ratio is that of all its actions together.

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
    total_credit,
    whole_episodes,
)
from latentpg.learners.scoring import Rows, Scored, Scorer
from latentpg.numerics.divergences import k1, k2, k3
from latentpg.numerics.group_advantages import (
    batch_std_advantage,
    group_mean_advantage,
    group_std_advantage,
    rloo_advantage,
    zero_variance_groups,
)
from latentpg.numerics.penalties import penalty, ratio_penalty, reward_penalty
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import cispo, importance_weighted, ppo_clip
from latentpg.programs import LatentPolicy
from latentpg.rollout import Episodes, ObservationNormalizer, collect_groups
from latentpg.rollout.environments import require_our_resets

ADVANTAGES = {
    "group-std": group_std_advantage,
    "group-mean": group_mean_advantage,
    "rloo": rloo_advantage,
    "batch-std": batch_std_advantage,
}
"""Advantages within a group by name; each takes credits with the group's members first."""

KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators of the divergence to the reference by name."""

BLOCK = 2**12
"""Rows that are scored at once where no gradient is needed."""


@dataclass(frozen=True)
class GRPOOptions:
    r"""GRPO's own numbers, by the names the field has for them.

    **Rollout.** ``num_groups`` initial states with ``group_size`` G episodes each; ``latent``, ``noise``,
    ``max_steps`` and ``on_max_steps`` as :func:`~latentpg.rollout.groups.collect_groups` has them.

    **Credit.** ``"episode"`` gives :math:`R = \sum_t\gamma^t r_t` to every step. ``"reward-to-go"`` gives
    :math:`\sum_{k\ge t}\gamma^k r_k` to step t, compared with what the others of the group have to go at *their* step
    t, 0 for those that have ended. ``"pooled-to-go"`` gives :math:`\sum_{k\ge t}\gamma^{k-t} r_k`, compared with all
    steps of the group's episodes: with :math:`\gamma<1` it tells the steps before a fall from all others, where an
    episode's return blames every step alike. It is no multiple of the gradient (the factor :math:`\gamma^t` is missing,
    and groups of equal returns are made 0), and the one that learns fastest where rewards come all along. Both need a
    latent a step: inside one row, later rewards hang on its latent.

    **Surrogate.** ``ratio="sequence"`` is GSPO's, one ratio an episode, the geometric mean of its steps'. Its episode
    weighs as much as all its steps together, so that ``aggregation`` means the same for both ratios: a step weighs
    :math:`1/\sum L` ("token"), :math:`1/(E L_e)` ("sequence") or :math:`1/(EC)` ("constant", C = ``horizon``).
    ``clip_range`` is epsilon, ``clip_range_high`` another one upwards; "cispo" clips from above only.

    **Penalty.** ``kl_coefficient`` beta holds the policy near a reference: the initial policy, or the one of every
    ``reference_every`` updates. ``kl_placement`` is ``"loss"``, descending KL(pi || ref) with k2 and KL(ref || pi) with
    k3; ``"ratio"``, the same times the ratio, descending KL(pi || ref) with k1 and k3; or ``"reward"``, which is that
    of whole episodes with k1. Log-ratios to the reference are on the update's particles; with retained ones they are
    those of the augmented law.

    ``target_kl`` ends an update's epochs once the mean k3 of the ratio exceeds 1.5 times it, None never.
    """

    num_groups: int = 4
    group_size: int = 8
    num_epochs: int = 10
    clip_range: float | int = 0.2
    clip_range_high: float | int | None = None
    advantage: Literal["group-std", "group-mean", "rloo", "batch-std"] = "group-std"
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["ppo-clip", "cispo"] = "ppo-clip"
    aggregation: Aggregation = "token"
    horizon: float | int = 1
    credit: Literal["episode", "reward-to-go", "pooled-to-go"] = "episode"
    latent: Literal["step", "episode"] = "step"
    noise: Literal["shared", "independent"] = "shared"
    gamma: float | int = 1.0
    kl_coefficient: float | int = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_placement: Literal["loss", "ratio", "reward"] = "loss"
    reference_every: int | None = None
    max_steps: int = 100_000
    on_max_steps: Literal["error", "truncate"] = "error"
    target_kl: float | int | None = None

    def __post_init__(self) -> None:
        """Check the numbers, and that they fit together."""
        where = "GRPOOptions()"
        check_counts(
            where,
            {
                "num_groups": (self.num_groups, 1),
                "group_size": (self.group_size, 2),
                "num_epochs": (self.num_epochs, 1),
                "max_steps": (self.max_steps, 1),
                "reference_every": (1 if self.reference_every is None else self.reference_every, 1),
            },
            {"group_size": "a group of one has nothing to be compared with"},
        )
        check_positive(
            where,
            {
                "clip_range": self.clip_range,
                "clip_range_high": self.clip_range_high,
                "horizon": self.horizon,
                "target_kl": self.target_kl,
            },
        )
        check_fraction(where, "gamma", self.gamma)
        check_choices(
            where,
            {
                "advantage": (self.advantage, tuple(ADVANTAGES)),
                "ratio": (self.ratio, ("token", "sequence")),
                "surrogate": (self.surrogate, ("ppo-clip", "cispo")),
                "aggregation": (self.aggregation, ("token", "sequence", "constant")),
                "credit": (self.credit, ("episode", "reward-to-go", "pooled-to-go")),
                "latent": (self.latent, ("step", "episode")),
                "noise": (self.noise, ("shared", "independent")),
                "kl_estimator": (self.kl_estimator, tuple(KL_ESTIMATORS)),
                "kl_placement": (self.kl_placement, ("loss", "ratio", "reward")),
                "on_max_steps": (self.on_max_steps, ("error", "truncate")),
            },
        )
        if not 0 <= self.kl_coefficient < float("inf"):
            raise OptionError(where, "`kl_coefficient`", expected="a number >= 0", got=repr(self.kl_coefficient))
        self._check_together(where)

    def _check_together(self, where: str) -> None:
        if self.credit != "episode" and (self.latent == "episode" or self.ratio == "sequence"):
            raise OptionError(
                where,
                f'`credit="{self.credit}"` gives steps of one row different credits',
                expected='latent="step" and ratio="token"',
                got=f'latent="{self.latent}", ratio="{self.ratio}"',
                fix='credit="episode"',
            )
        if self.kl_coefficient and self.kl_estimator == "k1" and self.kl_placement == "loss":
            raise OptionError(
                where,
                "k1 in the loss has an expected gradient of zero: it would hold nothing near the reference",
                expected='k2 or k3, or k1 with kl_placement="ratio" or "reward"',
                got='kl_estimator="k1", kl_placement="loss"',
                fix='kl_placement="ratio", which descends KL(pi || ref)',
            )


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Rows of an objective to maximise, already weighted: their sum is the objective's share. ``ratio`` is each one's.

    There is one a row of the batch, or one an episode with ``ratio="sequence"``.
    """

    value: Float[Tensor, " R"]
    ratio: Float[Tensor, " R"]


def group_advantages(episodes: Episodes, reward: Float[Tensor, " M"], *, options: GRPOOptions) -> Float[Tensor, " B"]:
    """Return the advantage of every row within its group, from the rewards of every step, in float64.

    A group of equal credits has the advantage 0 in every row; its rows stay where they are.
    """
    if options.credit == "pooled-to-go":
        to_go = credit_to_go(episodes, reward, gamma=options.gamma, from_start=False)
        return _pooled_advantages(episodes, episodes.unpad(to_go), reward, options.advantage)
    if options.credit == "reward-to-go":
        credit = credit_to_go(episodes, reward, gamma=options.gamma, from_start=True)  # [T, E]
    else:
        credit = total_credit(episodes, reward, gamma=options.gamma)  # [E]
    members_first = credit.unflatten(-1, (-1, episodes.group_size)).movedim(-1, 0)
    advantage = ADVANTAGES[options.advantage](members_first).movedim(0, -1).flatten(-2)
    if options.credit == "reward-to-go":
        return episodes.unpad(advantage)
    return advantage if episodes.held else episodes.spread(advantage)


def _pooled_advantages(
    episodes: Episodes, credit: Float[Tensor, " M"], reward: Float[Tensor, " M"], kind: str
) -> Float[Tensor, " M"]:
    """Compare every step with all steps of its group, or of the group's other episodes."""
    groups, group = episodes.num_groups, episodes.group
    total, steps = _sums(credit, group, groups)[group], torch.bincount(group)[group]
    if kind == "rloo":
        total = total - episodes.spread(_sums(credit, episodes.episode, episodes.num_episodes))
        steps = steps - episodes.spread(episodes.lengths)
    centred = credit - total / steps
    if kind == "group-std":
        squares = _sums(centred.square(), group, groups) / (torch.bincount(group) - 1)
        centred = centred / (squares.sqrt()[group] + 1e-4)
    elif kind == "batch-std":
        centred = centred / (credit.std() + 1e-4)
    returns = total_credit(episodes, reward, gamma=1.0).unflatten(0, (groups, -1)).T
    return centred.masked_fill(zero_variance_groups(returns)[group], 0.0)


def grpo_rows(
    log_prob: Float[Tensor, " M"],
    log_ratio: Float[Tensor, " M"],
    batch: EpisodeBatch,
    part: Int[Tensor, " M"],
    *,
    options: GRPOOptions,
) -> WeightedRows:
    """Return the weighted rows of the surrogate for the batch's rows ``part``, of which these are the estimates.

    With ``ratio="sequence"`` the part must hold whole episodes.
    """
    episode, advantage = batch.episode[part], batch.advantage[part]
    weight = batch.weight[episode]
    if options.ratio == "sequence":
        ids = episode.unique()
        length = batch.length[ids]
        log_prob, log_ratio, advantage = (
            _sums(values, episode, len(batch.length))[ids] / divisor
            for values, divisor in ((log_prob, length), (log_ratio, length), (advantage, _counts(episode)[ids]))
        )
        weight = batch.weight[ids] * length  # the ratio is a mean over steps already
    ratio = log_ratio.exp()
    if options.surrogate == "cispo":
        high = options.clip_range if options.clip_range_high is None else options.clip_range_high
        rows = cispo(log_prob, ratio, advantage, epsilon_high=high)
    else:
        rows = ppo_clip(ratio, advantage, epsilon=options.clip_range, epsilon_high=options.clip_range_high)
    return WeightedRows(weight * rows, ratio.detach())


def penalty_rows(
    log_ratio: Float[Tensor, " M"],
    log_ratio_reference: Float[Tensor, " M"],
    batch: EpisodeBatch,
    part: Int[Tensor, " M"],
    *,
    options: GRPOOptions,
) -> Float[Tensor, " M"]:
    """Return the weighted rows of the penalty in the loss, to be added to the surrogate's and maximised."""
    estimator, beta = KL_ESTIMATORS[options.kl_estimator], options.kl_coefficient
    if options.kl_placement == "ratio":
        rows = ratio_penalty(log_ratio.exp(), log_ratio_reference, beta=beta, estimator=estimator)
    else:
        rows = penalty(log_ratio_reference, beta=beta, estimator=estimator)
    return batch.weight[batch.episode[part]] * rows


class GRPO:
    """GRPO over any estimator; every call of :meth:`update` is one iteration.

    Environments and agent are the caller's; a ``normalizer`` is the agent's encoder, and moves between updates only.
    Each update starts from fresh resets and draws from streams of its own, named by ``seed`` and the update's number.
    ``num_timesteps`` counts every step of every environment, those of members that waited for the others too.

    An update all of whose advantages are zero moves nothing: ``train/skipped`` is then 1.

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
        options: GRPOOptions = GRPOOptions(),
        seed: int,
        normalizer: ObservationNormalizer | None = None,
    ) -> None:
        """Check that the environments can be started in a chosen state, and copy the policy if it is the reference."""
        require_our_resets("GRPO()", envs)
        self.envs, self.agent, self.options, self.seed, self.normalizer = envs, agent, options, seed, normalizer
        self.reference = _frozen(agent.policy) if options.kl_coefficient else None
        self.num_timesteps = self.num_updates = 0

    def update(self, progress: float = 0.0) -> Mapping[str, float]:
        """Act, learn, and return metrics; ``progress`` in [0, 1] is the share of the run that is over."""
        options = self.options
        self._replace_reference()
        with seeded(stream_seed(self.seed, f"update {self.num_updates}")):
            episodes = collect_groups(
                self.envs,
                self.agent.policy,
                num_groups=options.num_groups,
                group_size=options.group_size,
                seed=stream_seed(self.seed, f"environments {self.num_updates}"),
                noise=options.noise,
                latent=options.latent,
                max_steps=options.max_steps,
                on_max_steps=options.on_max_steps,
            )
            metrics = self._learn(episodes, progress)
        if self.normalizer is not None:
            self.normalizer.update(episodes.transitions.obs)
        self.num_timesteps += episodes.transitions.num_rows + episodes.num_idle_steps
        self.num_updates += 1
        return {**episode_metrics(episodes), **group_metrics(episodes), **metrics}

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next update hangs on, as tensors by name; see :class:`Learner`."""
        reference = {} if self.reference is None else prefixed("reference", _module(self.reference).state_dict())
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
            _module(self.reference).load_state_dict(under("reference", state))
        self.num_timesteps, self.num_updates = int(state["num_timesteps"]), int(state["num_updates"])

    def _learn(self, episodes: Episodes, progress: float) -> dict[str, float]:
        agent, options = self.agent, self.options
        agent.anneal(progress)
        found = episode_rows(episodes)
        behaviour = copy.deepcopy(agent.policy) if self._measures_gap() else None
        scorer = agent.propose(found.rows, found.log_joint)
        reward, told = self._penalized(episodes, scorer, found.rows)
        advantage = group_advantages(episodes, reward, options=options)
        batch = episode_batch(episodes, advantage, aggregation=options.aggregation, horizon=options.horizon)
        if not bool(batch.advantage.any()):  # Adam would go on by its momentum
            return {**told, "train/skipped": 1.0}
        means, stopped, epochs = Means(), False, 0
        while epochs < options.num_epochs and not stopped:
            epochs += 1
            divergences = []
            for part in self._parts(batch):
                step = self._step(scorer, batch, part)
                divergences.append(step["train/approx_kl"])
                means.add(step)
            limit = options.target_kl
            stopped = limit is not None and sum(divergences) / len(divergences) > 1.5 * limit
        metrics = {**told, **means.values(), "train/epochs": float(epochs), "train/stopped_early": float(stopped)}
        index = torch.arange(batch.rows.size)
        if behaviour is not None:
            metrics |= agent.gap(batch.rows, behaviour, scorer, torch.randperm(len(index)), self._gap_rows(batch))
        return {**metrics, **agent.teach_guide(scorer, batch.rows, index), "train/skipped": 0.0}

    def _step(self, scorer: Scorer, batch: EpisodeBatch, part: Tensor) -> dict[str, float]:
        """Move theta and phi by one minibatch."""
        agent, options = self.agent, self.options
        scored = scorer.score(agent.policy, part)
        surrogate = grpo_rows(scored.log_prob, scored.log_ratio, batch, part, options=options)
        share = batch.rows.size / len(part)  # a minibatch stands for the batch
        objective = share * surrogate.value.sum()
        told = {"train/policy_gradient_loss": -float(objective.detach())}
        if self.reference is not None and options.kl_placement != "reward":
            divergence = scored.log_prob - self._reference_log_prob(self.reference, batch.rows.take(part), scored)
            rows = penalty_rows(scored.log_ratio, divergence, batch, part, options=options)
            objective = objective + share * rows.sum()
            told["train/kl_reference"] = float(k3(divergence.detach()).mean())
        if agent.options.entropy_coefficient:
            entropy = agent.entropy(batch.rows.take(part), scored).mean()
            objective = objective + agent.options.entropy_coefficient * entropy
            told["train/entropy"] = float(entropy.detach())
        told["train/grad_norm"] = agent.model.step(-objective)
        return told | self._tell(scored, surrogate.ratio)

    def _tell(self, scored: Scored, ratio: Tensor) -> dict[str, float]:
        options = self.options
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

    def _parts(self, batch: EpisodeBatch) -> Iterator[Tensor]:
        size = self.agent.options.batch_size
        if self.options.ratio == "sequence":
            return whole_episodes(batch.episode, batch.length, size)
        return minibatches(torch.arange(batch.rows.size), size)

    def _penalized(self, episodes: Episodes, scorer: Scorer, rows: Rows) -> tuple[Tensor, dict[str, float]]:
        """Take the penalty off the rewards, where that is its place; a row's goes to its first step."""
        reward = episodes.transitions.reward.double()
        if self.reference is None or self.options.kl_placement != "reward":
            return reward, {}
        parts = []
        with torch.no_grad():
            for index in torch.arange(rows.size).split(BLOCK):
                scored = scorer.score(self.agent.policy, index)
                parts.append(scored.log_prob - self._reference_log_prob(self.reference, rows.take(index), scored))
        divergence = torch.cat(parts).double()
        estimator = KL_ESTIMATORS[self.options.kl_estimator]
        penalties = reward_penalty(divergence, beta=self.options.kl_coefficient, estimator=estimator)
        where = (episodes.step == 0).nonzero().squeeze(1) if episodes.held else torch.arange(len(reward))
        return reward.index_add(0, where, penalties), {"train/kl_reference": float(k3(divergence).mean())}

    def _reference_log_prob(self, reference: LatentPolicy, rows: Rows, scored: Scored) -> Tensor:
        with torch.no_grad():
            return self.agent.estimator.estimate(reference, rows.obs, rows.action, scored.particles).log_prob

    def _gap_rows(self, batch: EpisodeBatch) -> Any:  # noqa: ANN401
        def rows(ratio: Tensor, index: Tensor) -> Tensor:
            advantage = batch.advantage[index]
            if self.options.surrogate == "cispo" or self.options.ratio == "sequence":
                return importance_weighted(ratio, advantage)
            return ppo_clip(
                ratio, advantage, epsilon=self.options.clip_range, epsilon_high=self.options.clip_range_high
            )

        return rows

    def _replace_reference(self) -> None:
        every = self.options.reference_every
        if self.reference is not None and every is not None and self.num_updates and self.num_updates % every == 0:
            self.reference = _frozen(self.agent.policy)

    def _measures_gap(self) -> bool:
        every = self.agent.options.gap_every
        return bool(every) and self.num_updates % every == 0


def group_metrics(episodes: Episodes) -> dict[str, float]:
    """Return the mean over groups of the returns' standard deviation, and how many groups have equal returns."""
    members_first = episodes.group_returns.T
    return {
        "rollout/group_std": float(members_first.std(0).mean()),
        "train/zero_variance_groups": float(zero_variance_groups(members_first).sum()),
    }


def _sums(values: Tensor, episode: Tensor, number: int) -> Tensor:
    return values.new_zeros(number).index_add(0, episode, values)


def _counts(episode: Tensor) -> Tensor:
    return torch.bincount(episode)


def _frozen(policy: LatentPolicy) -> LatentPolicy:
    copied = copy.deepcopy(policy)
    _module(copied).requires_grad_(False)
    return copied


def _module(policy: LatentPolicy) -> nn.Module:
    assert isinstance(policy, nn.Module)  # Agent() has seen to it
    return policy
