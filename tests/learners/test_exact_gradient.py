"""The learners' own objectives against the exact policy gradient, by sums over everything that can happen.

Episodes, the latents drawn while acting, and the particles proposed afterwards are enumerated; the rows go through the
functions that GRPO and REINFORCE call on what they collected; the Bellman equations give the answer.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeAlias

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from latentpg.estimators import ConditionalIS, Estimator, Guide, JointScore, PosteriorIS, Prior
from latentpg.learners import group_credit
from latentpg.learners.episodic import Aggregation, EpisodeBatch, episode_batch, episode_rows
from latentpg.learners.group_credit import group_advantages
from latentpg.learners.grpo_options import GRPOOptions
from latentpg.learners.grpo_rows import grpo_rows
from latentpg.learners.reinforce_options import ReinforceOptions
from latentpg.learners.reinforce_rows import reinforce_advantages, reinforce_rows
from latentpg.learners.scores import squared_scores
from latentpg.learners.scoring import Fresh
from latentpg.numerics.rng import seeded
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.oracles.grid_world import grid_world
from latentpg.oracles.mdp import TabularMDP, finite_horizon
from latentpg.oracles.trajectories import Trajectories, enumerate_groups, enumerate_trajectories
from latentpg.policies import MixturePolicy
from latentpg.programs import Latents, log_joint, model_parameters, score_prior
from latentpg.rollout import Episodes, Transitions

EXACT = 1e-10
HORIZON, COMPONENTS = 2, 2

Baseline: TypeAlias = Literal["none", "batch-mean", "leave-one-out", "variance-optimal", "state-value"]
Credit: TypeAlias = Literal["total", "reward-to-go"]
Latent: TypeAlias = Literal["step", "episode"]
Ratio: TypeAlias = Literal["none", "step", "per-decision", "trajectory"]


def random_mdp(*, ends: bool, start: float = 0.3) -> TabularMDP:
    """Draw two states that are lived in, and a third in which an episode ends unless it is out of reach."""
    with seeded(3):
        chances = torch.rand(3, 2, 3, dtype=torch.float64)
        reward = torch.randn(3, 2, dtype=torch.float64)
    if not ends:
        chances[:, :, 2] = 0.0
    return TabularMDP(
        transition=chances / chances.sum(-1, keepdim=True),
        reward=reward,
        initial=torch.tensor([start, 1 - start, 0.0], dtype=torch.float64),
        discount=0.8,
        terminal=torch.tensor([False, False, True]),
    )


MDPS: dict[str, Callable[[], TabularMDP]] = {
    "grid-world": lambda: grid_world(start=(1, 2)),
    "ends-early": lambda: random_mdp(ends=True),
    "same-length": lambda: random_mdp(ends=False),
    "one-start": lambda: random_mdp(ends=True, start=1.0),
}


@dataclass(frozen=True, eq=False)
class Task:
    """A decision process, a policy in float64, and all its episodes with the latents that were drawn in them."""

    mdp: TabularMDP
    policy: MixturePolicy
    found: Trajectories
    held: bool

    @property
    def log_prob(self) -> Tensor:
        """Log-probability [N] of each episode with its latents, a constant."""
        prior, decoder = self.tables()
        return (self.found.log_dynamics + self.found.joint_log_prob(prior, decoder).sum(0)).detach()

    def tables(self) -> tuple[Tensor, Tensor]:
        """Log-prior [S, C] and log-decoder [S, C, A] of the policy, differentiable."""
        states, actions = self.mdp.num_states, self.mdp.num_actions
        obs = torch.eye(states, dtype=torch.float64)
        every_z = torch.arange(COMPONENTS)[:, None]
        prior = score_prior(self.policy, obs, {"z": every_z.expand(-1, states)}).log_prob
        action = torch.arange(actions).repeat(states)
        joint = log_joint(
            self.policy, obs.repeat_interleave(actions, 0), action, {"z": every_z.expand(-1, len(action))}
        )
        decoder = joint.reshape(COMPONENTS, states, actions) - prior[:, :, None]
        return prior.T, decoder.transpose(0, 1)

    def gradient(self, value: Tensor) -> Tensor:
        """Differentiate in theta and phi."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, model_parameters(self.policy))])

    def exact_gradient(self, gamma: float) -> Tensor:
        """∇J by the Bellman equations: of the marginal policy, or of the mixture of Markov policies that z picks."""
        prior, decoder = self.tables()
        task = finite_horizon(self.mdp, horizon=HORIZON, discount=gamma)
        if not self.held:
            return self.gradient(task.objective(clocked((prior[..., None] + decoder).logsumexp(1))))
        objective = torch.zeros((), dtype=torch.float64)
        for z in range(COMPONENTS):
            values = task.state_values(clocked(decoder[:, z]))[: self.mdp.num_states]
            objective = objective + self.mdp.initial @ (prior[:, z].exp() * values)
        return self.gradient(objective)

    def episodes(self, columns: Tensor, group_size: int) -> Episodes:
        """Make the columns [E] what a collector would have recorded."""
        found = self.found
        mask = found.mask[:, columns].T  # [E, T]
        episode, step = mask.nonzero(as_tuple=True)
        column = columns[episode]
        state, action = found.states[step, column], found.actions[step, column]
        assert found.latents is not None
        last = found.done[step, column]
        latents: Latents = {"z": found.latents[step, column]}
        return Episodes(
            Transitions(
                torch.eye(self.mdp.num_states, dtype=torch.float64)[state],
                action,
                latents,
                torch.zeros(len(episode), dtype=torch.float64),
                found.rewards[step, column],
                last & (step < HORIZON - 1),
                last & (step == HORIZON - 1),
                torch.zeros(len(episode), self.mdp.num_states, dtype=torch.float64),
            ),
            episode,
            group_size,
            self.held,
        )


def clocked(log_pi: Tensor) -> Tensor:
    """Repeat a table for every step of the clock, and once more for the end."""
    return torch.cat([log_pi.repeat(HORIZON, 1), log_pi[:1]]).exp()


@cache
def task_of(name: str, *, held: bool) -> Task:
    """Build one of the decision processes with a small mixture policy on it."""
    mdp = MDPS[name]()
    with seeded(1):
        policy = MixturePolicy(
            spaces.Box(-1, 1, (mdp.num_states,)),
            spaces.Discrete(mdp.num_actions),
            num_components=COMPONENTS,
            hidden=(3,),
        ).double()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(torch.randn_like(parameter))
    span = HORIZON if held else 1
    return Task(mdp, policy, enumerate_trajectories(mdp, horizon=HORIZON, num_latents=COMPONENTS, span=span), held)


def expected_gradient(
    task: Task,
    batch: EpisodeBatch,
    estimator: Estimator,
    rows: Callable[[Tensor, Tensor, EpisodeBatch, Tensor], Tensor],
    *,
    by_episode: bool = False,
    moved: MixturePolicy | None = None,
) -> Tensor:
    """Sum the gradient of weighted rows over all particles, those of a row or of a whole episode at once.

    The task's policy has acted; ``moved`` is where it has got to meanwhile, and the gradient is taken there.
    """
    scorer = Fresh(estimator, batch.rows, copy.deepcopy(task.policy))
    policy = task.policy if moved is None else moved

    def program(index: Tensor) -> Tensor:
        if by_episode:  # all of one length: time outermost, the copies innermost
            place, episode, steps = (index * HORIZON + torch.arange(HORIZON)[:, None]).flatten(), index, HORIZON
        else:
            place, episode, steps = index, batch.episode[index], 1
        scored = scorer.score(policy, place)
        copies = torch.arange(len(index)).repeat(steps)  # each copy an episode of its own
        mine = EpisodeBatch(
            batch.rows.take(place), copies, batch.advantage[place], batch.length[episode], batch.weight[episode]
        )
        return rows(scored.log_prob, scored.log_ratio, mine, torch.arange(len(place)))

    every = enumerate_draws(program, num_rows=len(batch.length) if by_episode else batch.rows.size)
    return replace(task, policy=policy).gradient(every.expectation(every.result).sum())


def grpo_gradient(task: Task, options: GRPOOptions, estimator: Estimator) -> Tensor:
    """Differentiate GRPO's objective on average, one group an update."""
    groups = enumerate_groups(task.found, task.mdp, group_size=options.group_size)
    chance = groups.log_prob(task.log_prob).exp()
    assert abs(chance.sum().item() - 1) < EXACT
    episodes = task.episodes(groups.index.T.flatten(), options.group_size)
    advantage = group_advantages(episodes, episodes.transitions.reward, options=options)
    batch = episode_batch(episodes, advantage, aggregation=options.aggregation, horizon=options.horizon)
    # the batch holds every group there is; each counts as if it were the only one, as often as it comes
    weight = batch.weight * len(chance) * chance.repeat_interleave(options.group_size)
    return expected_gradient(
        task,
        replace(batch, weight=weight),
        estimator,
        lambda log_prob, log_ratio, data, part: grpo_rows(log_prob, log_ratio, data, part, options=options).value,
        by_episode=options.ratio == "sequence" and not task.held,
    )


def reinforce_gradient(
    task: Task,
    options: ReinforceOptions,
    estimator: Estimator,
    critic: Callable[[Tensor], Tensor] | None = None,
    moved: MixturePolicy | None = None,
) -> Tensor:
    """Differentiate REINFORCE's objective on average, of one or of two episodes an update."""
    columns = torch.arange(task.found.states.shape[1])
    draws = torch.combinations(columns, options.num_episodes, with_replacement=True)  # one or two: in 1 or 2 orders
    chance = task.log_prob.exp()[draws].prod(-1) * (1 + (draws[:, 0] != draws[:, -1]).double())
    assert abs(chance.sum().item() - 1) < EXACT
    squares_of = squares_in(task, options)
    advantages = []
    for draw in draws:  # a baseline over the update's episodes sees those alone
        episodes = task.episodes(draw, 1)
        value = None if critic is None else critic(episodes.transitions.obs)
        reward = episodes.transitions.reward
        advantages.append(reinforce_advantages(episodes, reward, value, squares_of(draw), options=options))
    together = task.episodes(draws.flatten(), 1)
    batch = episode_batch(together, torch.cat(advantages), aggregation=options.aggregation, horizon=options.horizon)
    weight = batch.weight * len(chance) * chance.repeat_interleave(options.num_episodes)
    whole = options.ratio in ("per-decision", "trajectory") and not task.held

    def rows(log_prob: Tensor, log_ratio: Tensor, data: EpisodeBatch, part: Tensor) -> Tensor:
        found = reinforce_rows(log_prob, log_ratio, data, part, options=options)
        return found.unflatten(0, (HORIZON, -1)).sum(0) if options.ratio == "per-decision" and by_episode else found

    by_episode = whole and not isinstance(estimator, JointScore)
    weighted = replace(batch, weight=weight)
    if whole and not by_episode:  # nothing is drawn beside what was recorded, so all episodes go in as they are
        policy = task.policy if moved is None else moved
        part = torch.arange(batch.rows.size)
        scored = Fresh(estimator, batch.rows, copy.deepcopy(task.policy)).score(policy, part)
        return replace(task, policy=policy).gradient(rows(scored.log_prob, scored.log_ratio, weighted, part).sum())
    return expected_gradient(task, weighted, estimator, rows, by_episode=by_episode, moved=moved)


def squares_in(task: Task, options: ReinforceOptions) -> Callable[[Tensor], Tensor | None]:
    """Return squared scores of the episodes in a draw, or of their steps: those of log p(z, a | s)."""
    if options.baseline != "variance-optimal":
        return lambda draw: None
    every = task.episodes(torch.arange(task.found.states.shape[1]), 1)
    rows = episode_rows(every).rows
    group = every.episode if options.credit == "total" and not task.held else torch.arange(rows.size)
    scorer = Fresh(JointScore(), rows, copy.deepcopy(task.policy))
    squares = squared_scores(task.policy, scorer, group, int(group[-1]) + 1)
    if options.credit == "total":
        return lambda draw: squares[draw]
    padded = every.pad(squares).T  # [E, T]
    return lambda draw: padded[draw][every.mask.T[draw]]


def elsewhere(task: Task, *, far: float = -0.3) -> MixturePolicy:
    """Return the task's policy after it has moved."""
    moved = copy.deepcopy(task.policy)
    with seeded(9), torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(far * torch.randn_like(parameter))
    return moved


def off_by(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max())


def turned_by(value: Tensor, expected: Tensor) -> float:
    """Return the sine of the angle between two gradients."""
    along = (value @ expected) / (expected @ expected) * expected
    return float((value - along).norm() / value.norm())


# GRPO


@pytest.mark.parametrize("held", [False, True], ids=["step", "episode"])
@pytest.mark.parametrize("name", ["grid-world", "ends-early"])
@pytest.mark.parametrize("surrogate", ["ppo-clip", "cispo"])
def test_rloo_is_the_gradient(name: str, held: bool, surrogate: Literal["ppo-clip", "cispo"]) -> None:
    """C = 3, so the objective's gradient is a third of ∇J, whatever the episodes' lengths."""
    task = task_of(name, held=held)
    options = GRPOOptions(
        group_size=2, advantage="rloo", surrogate=surrogate, aggregation="constant", horizon=3, gamma=0.9,
        latent="episode" if held else "step",
    )  # fmt: skip
    exact = task.exact_gradient(0.9)
    assert exact.norm() > 0.05
    assert off_by(3 * grpo_gradient(task, options, ConditionalIS(2)), exact) < EXACT


@pytest.mark.parametrize("held", [False, True], ids=["step", "episode"])
@pytest.mark.parametrize(
    "estimator", [JointScore(), ConditionalIS(1), ConditionalIS(3), ConditionalIS(2, Guide())], ids=repr
)
def test_it_is_for_every_number_of_particles_and_every_proposal(estimator: Estimator, held: bool) -> None:
    task = task_of("ends-early", held=held)
    options = GRPOOptions(
        group_size=2, advantage="rloo", aggregation="constant", gamma=0.9, latent="episode" if held else "step"
    )
    assert off_by(grpo_gradient(task, options, estimator), task.exact_gradient(0.9)) < EXACT


@pytest.mark.parametrize(("group_size", "held"), [(2, False), (2, True), (3, True)])
def test_the_groups_mean_shortens_it_by_a_known_factor(group_size: int, held: bool) -> None:
    task = task_of("ends-early", held=held)
    options = GRPOOptions(
        group_size=group_size, advantage="group-mean", aggregation="constant", gamma=0.9,
        latent="episode" if held else "step",
    )  # fmt: skip
    exact = task.exact_gradient(0.9) * (group_size - 1) / group_size
    assert off_by(grpo_gradient(task, options, ConditionalIS(2)), exact) < EXACT


@pytest.mark.parametrize("advantage", ["rloo", "group-mean"])
def test_credit_of_what_follows_is_the_gradient_too(advantage: Literal["rloo", "group-mean"]) -> None:
    """With the others' credit at the same step for a baseline; those that have ended have 0 to go."""
    task = task_of("ends-early", held=False)
    options = GRPOOptions(
        group_size=2, advantage=advantage, credit="reward-to-go", aggregation="constant", gamma=0.9
    )  # fmt: skip
    factor = 1.0 if advantage == "rloo" else 0.5
    assert off_by(grpo_gradient(task, options, ConditionalIS(2)), factor * task.exact_gradient(0.9)) < EXACT


@pytest.mark.parametrize("held", [False, True], ids=["step", "episode"])
@pytest.mark.parametrize("surrogate", ["ppo-clip", "cispo"])
def test_the_sequence_ratio_weighs_as_its_steps_do(surrogate: Literal["ppo-clip", "cispo"], held: bool) -> None:
    task = task_of("same-length", held=held)
    options = GRPOOptions(
        group_size=2, advantage="rloo", ratio="sequence", surrogate=surrogate, aggregation="constant", gamma=0.9,
        latent="episode" if held else "step",
    )  # fmt: skip
    assert off_by(grpo_gradient(task, options, ConditionalIS(2)), task.exact_gradient(0.9)) < EXACT


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_the_other_aggregations_keep_the_direction_where_lengths_agree(aggregation: Aggregation) -> None:
    """All episodes have T = 2 steps, so both are ∇J / 2."""
    task = task_of("same-length", held=False)
    options = GRPOOptions(group_size=2, advantage="rloo", aggregation=aggregation, gamma=0.9)
    assert off_by(2 * grpo_gradient(task, options, ConditionalIS(2)), task.exact_gradient(0.9)) < EXACT


def test_what_is_listed_as_another_direction_is_one() -> None:
    """The group's std, and the mean over steps where lengths differ; and the test's own test, fresh particles."""
    task = task_of("ends-early", held=False)
    exact = task.exact_gradient(0.9)
    for options in (
        GRPOOptions(group_size=2, advantage="group-std", aggregation="constant", gamma=0.9),
        GRPOOptions(group_size=2, advantage="rloo", aggregation="sequence", gamma=0.9),
    ):
        assert turned_by(grpo_gradient(task, options, ConditionalIS(2)), exact) > 5e-3
    honest = GRPOOptions(group_size=2, advantage="rloo", aggregation="constant", gamma=0.9)
    assert off_by(grpo_gradient(task, honest, PosteriorIS(2, Prior())), exact) > 1e-3


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("advantage", ["rloo", "group-mean", "group-std"])
def test_pooled_credit_is_another_direction(
    gamma: float, advantage: Literal["rloo", "group-mean", "group-std"]
) -> None:
    for name in ("ends-early", "grid-world", "same-length"):
        options = GRPOOptions(
            group_size=2, advantage=advantage, credit="pooled-to-go", aggregation="constant", gamma=gamma
        )
        task = task_of(name, held=False)
        assert turned_by(grpo_gradient(task, options, ConditionalIS(2)), task.exact_gradient(gamma)) > 5e-3


def test_what_turns_pooled_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a discount and with the others' mean, only that groups of equal returns are made 0."""
    options = GRPOOptions(group_size=2, advantage="rloo", credit="pooled-to-go", aggregation="constant")
    monkeypatch.setattr(group_credit, "zero_variance_groups", lambda returns: torch.zeros(returns.shape[1]) > 0)
    task = task_of("same-length", held=False)
    assert off_by(grpo_gradient(task, options, ConditionalIS(2)), task.exact_gradient(1.0)) < EXACT
    discounted = replace(options, gamma=0.9)
    assert turned_by(grpo_gradient(task, discounted, ConditionalIS(2)), task.exact_gradient(0.9)) > 5e-3


# REINFORCE


def critic(obs: Tensor) -> Tensor:
    """Value the three states at random: no baseline of the state does harm."""
    return obs @ torch.tensor([3.0, -2.0, 1.0], dtype=obs.dtype)


@pytest.mark.parametrize("baseline", ["none", "state-value"])
@pytest.mark.parametrize(("credit", "latent"), [("total", "step"), ("total", "episode"), ("reward-to-go", "step")])
@pytest.mark.parametrize("ratio", ["none", "step"])
def test_reinforce_is_the_gradient(
    baseline: Baseline, credit: Credit, latent: Latent, ratio: Literal["none", "step"]
) -> None:
    task = task_of("ends-early", held=latent == "episode")
    options = ReinforceOptions(
        num_episodes=1, baseline=baseline, credit=credit, discounting="from-start", gamma=0.8, latent=latent,
        ratio=ratio,
    )  # fmt: skip
    value = critic if baseline == "state-value" else None
    assert off_by(reinforce_gradient(task, options, ConditionalIS(2), value), task.exact_gradient(0.8)) < EXACT


@pytest.mark.parametrize(("baseline", "factor"), [("leave-one-out", 1.0), ("batch-mean", 0.5)])
@pytest.mark.parametrize(("credit", "latent"), [("total", "episode"), ("reward-to-go", "step")])
def test_reinforce_with_the_mean_of_the_episodes(
    baseline: Baseline, factor: float, credit: Credit, latent: Latent
) -> None:
    """Two episodes an update: the others' mean is free, the mean of all takes half."""
    task = task_of("one-start", held=latent == "episode")
    options = ReinforceOptions(
        num_episodes=2, baseline=baseline, credit=credit, discounting="from-start", gamma=0.8,
        latent=latent,
    )  # fmt: skip
    assert off_by(reinforce_gradient(task, options, ConditionalIS(2)), factor * task.exact_gradient(0.8)) < EXACT


def test_dropping_the_discount_of_the_start_turns_the_gradient() -> None:
    task = task_of("ends-early", held=False)
    options = ReinforceOptions(num_episodes=1, baseline="none", discounting="from-step", gamma=0.3)
    assert turned_by(reinforce_gradient(task, options, ConditionalIS(2)), task.exact_gradient(0.3)) > 5e-3
    undiscounted = ReinforceOptions(num_episodes=1, baseline="none", discounting="from-step", gamma=1.0)
    assert off_by(reinforce_gradient(task, undiscounted, ConditionalIS(2)), task.exact_gradient(1.0)) < EXACT


def off_policy(
    name: str,
    estimator: Estimator,
    *,
    ratio: Ratio,
    baseline: Baseline = "none",
    num_episodes: int = 1,
    held: bool = False,
    moved: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return REINFORCE's expected gradient after the policy has moved, and the exact one there; γ = 0.8."""
    task = task_of(name, held=held)
    options = ReinforceOptions(
        num_episodes=num_episodes,
        baseline=baseline,
        credit="total" if ratio == "trajectory" else "reward-to-go",
        discounting="from-start",
        ratio=ratio,
        gamma=0.8,
        latent="episode" if held else "step",
    )
    target = elsewhere(task) if moved else task.policy
    value = critic if baseline == "state-value" else None
    found = reinforce_gradient(task, options, estimator, value, target)
    return found, replace(task, policy=target).exact_gradient(0.8)


@pytest.mark.parametrize("baseline", ["none", "state-value"])
@pytest.mark.parametrize("ratio", ["trajectory", "per-decision"])
@pytest.mark.parametrize(
    ("name", "estimator"),
    [("same-length", ConditionalIS(1)), ("same-length", ConditionalIS(2)), ("ends-early", JointScore())],
    ids=str,
)
def test_ratios_of_episodes_stay_the_gradient(
    name: str, estimator: Estimator, ratio: Ratio, baseline: Baseline
) -> None:
    """Wherever the policy has moved; through the product of estimated ratios, each of particles of its own."""
    found, exact = off_policy(name, estimator, ratio=ratio, baseline=baseline)
    assert exact.norm() > 0.05 and off_by(found, exact) < EXACT


@pytest.mark.parametrize(
    ("baseline", "factor"), [("leave-one-out", 1.0), ("variance-optimal", 1.0), ("batch-mean", 0.5)]
)
@pytest.mark.parametrize("ratio", ["trajectory", "per-decision"])
def test_they_do_with_baselines_from_the_episodes(ratio: Ratio, baseline: Baseline, factor: float) -> None:
    found, exact = off_policy("one-start", JointScore(), ratio=ratio, baseline=baseline, num_episodes=2)
    assert off_by(found, factor * exact) < EXACT


def test_a_held_latent_has_the_ratio_of_its_episode() -> None:
    found, exact = off_policy("ends-early", ConditionalIS(2), ratio="trajectory", held=True)
    assert off_by(found, exact) < EXACT


@pytest.mark.parametrize("ratio", ["trajectory", "per-decision", "step"])
def test_where_it_acted_every_ratio_is_the_gradient(ratio: Ratio) -> None:
    found, exact = off_policy("same-length", ConditionalIS(2), ratio=ratio, moved=False)
    assert off_by(found, exact) < EXACT


def test_the_single_step_ratio_is_another_direction_elsewhere() -> None:
    found, exact = off_policy("same-length", ConditionalIS(2), ratio="step")
    assert turned_by(found, exact) > 5e-3


@pytest.mark.parametrize(("credit", "latent"), [("total", "step"), ("total", "episode"), ("reward-to-go", "step")])
def test_the_variance_optimal_baseline_keeps_the_gradient(credit: Credit, latent: Latent) -> None:
    """From the other episode's score alone; with its own it would not."""
    task = task_of("one-start", held=latent == "episode")
    options = ReinforceOptions(
        num_episodes=2, baseline="variance-optimal", credit=credit, discounting="from-start", gamma=0.8,
        latent=latent,
    )  # fmt: skip
    assert off_by(reinforce_gradient(task, options, ConditionalIS(2)), task.exact_gradient(0.8)) < EXACT
