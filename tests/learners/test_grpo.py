"""GRPO: advantages and objectives by hand, what it learns, what it refuses, and that it goes on where it was."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import ConditionalIS, Guide, JointScore
from latentpg.estimators.guides import ConditionalWake
from latentpg.learners import GRPO, Agent, AgentOptions, GRPOOptions, Learner, LearningFault
from latentpg.learners.episodic import EpisodeBatch, episode_batch, episode_rows, whole_episodes
from latentpg.learners.group_credit import group_advantages, group_metrics
from latentpg.learners.grpo_options import annealed
from latentpg.learners.grpo_rows import grpo_rows, penalty_rows
from latentpg.learners.scoring import Rows
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.rollout import (
    EnvironmentFault,
    Episodes,
    ObservationNormalizer,
    Transitions,
    collect_episodes,
    collect_groups,
    make_envs,
)
from tests.learners.grid_env import exact_value, greedy, grid_worlds, optimal_value, table_of
from tests.learners.small import SMALL, Far, agent_for, parameters_of, same, same_state
from tests.rollout.scripted import Scripted, vectorize

SHORT = GRPOOptions(num_groups=2, group_size=3, num_epochs=2)


def grpo_for(
    options: GRPOOptions = SHORT,
    *,
    envs: VectorEnv[Any, Any, Any] | None = None,
    agent_options: AgentOptions = SMALL,
    normalized: bool = False,
    **rest: Any,  # noqa: ANN401 (handed on)
) -> GRPO:
    """Build GRPO in small; equal arguments give equal learners."""
    envs = make_envs("CartPole-v1", 3) if envs is None else envs
    size = envs.single_observation_space.shape[0]  # type: ignore[index]
    normalizer = ObservationNormalizer(size) if normalized else None
    agent = agent_for(envs, options=agent_options, encoder=normalizer, **rest)
    return GRPO(envs, agent, options=options, seed=3, normalizer=normalizer)


def episodes_of(rewards: list[list[float]], group_size: int, *, held: bool = False) -> Episodes:
    """Make episodes that pay these rewards."""
    lengths = torch.tensor([len(episode) for episode in rewards])
    number = int(lengths.sum())
    done = torch.zeros(number, dtype=torch.bool)
    done[lengths.cumsum(0) - 1] = True
    return Episodes(
        Transitions(
            torch.zeros(number, 1),
            torch.zeros(number, dtype=torch.int64),
            {"z": torch.zeros(number, dtype=torch.int64)},
            torch.zeros(number),
            torch.tensor([float(pay) for episode in rewards for pay in episode]),
            done,
            torch.zeros(number, dtype=torch.bool),
            torch.zeros(number, 1),
        ),
        torch.repeat_interleave(torch.arange(len(rewards)), lengths),
        group_size,
        held,
    )


def advantages(rewards: list[list[float]], options: GRPOOptions, *, held: bool = False) -> list[float]:
    episodes = episodes_of(rewards, options.group_size, held=held)
    found = group_advantages(episodes, episodes.transitions.reward, options=options)
    assert found.dtype == torch.float64
    return [round(value, 6) for value in found.tolist()]


# advantages and objectives, by hand


def test_every_step_has_its_episodes_advantage() -> None:
    """Group one: returns 1 + .5 · 2 = 2 and 4, their mean 3. Group two: 0 and 0, and nothing to learn."""
    options = GRPOOptions(group_size=2, gamma=0.5, advantage="group-mean")
    assert advantages([[1, 2], [4], [0, 0, 0], [0]], options) == [-1, -1, 1, 0, 0, 0, 0]
    assert advantages([[1, 2], [4], [0, 0, 0], [0]], options, held=True) == [-1, 1, 0, 0]
    assert advantages([[1, 2], [4], [0, 0], [0]], replace(options, advantage="rloo"), held=True) == [-2, 2, 0, 0]


def test_the_std_is_the_groups_or_the_batchs() -> None:
    """Returns 2, 4 and 0, 0: std √2 in the first group; all four have mean 1.5 and variance (.25 + 6.25 + 4.5) / 3."""
    rewards = [[2.0], [4.0], [0.0], [0.0]]
    of_group = 1 / (math.sqrt(2) + 1e-4)
    of_batch = 1 / (math.sqrt(11 / 3) + 1e-4)
    for name, scale in (("group-std", of_group), ("batch-std", of_batch)):
        expected = [-scale, scale, 0, 0]
        found = advantages(rewards, GRPOOptions(group_size=2, advantage=name))  # type: ignore[arg-type]
        assert found == pytest.approx(expected, abs=1e-6)


def test_reward_to_go_is_compared_step_by_step() -> None:
    """γ = 1/2: what is left, from the start, is 1 + 2/2 = 2 and then 1 of the first, and 4 and then 0 of the second."""
    options = GRPOOptions(group_size=2, gamma=0.5, advantage="rloo", credit="reward-to-go")
    assert advantages([[1, 2], [4]], options) == [-2, 1, 2]


def test_pooled_credit_is_compared_with_all_steps_of_the_group() -> None:
    """γ = 1/2: 2 and 2 are left of the first episode, 4 of the second; their mean is 8/3, the second's own 4.

    Squares of the differences: 4/9, 4/9 and 16/9, so the sample's deviation is 2/√3. The second group's returns agree.
    """
    rewards = [[1.0, 2.0], [4.0], [1.0, 0.0], [1.0]]
    options = GRPOOptions(group_size=2, gamma=0.5, credit="pooled-to-go", advantage="group-mean")
    assert advantages(rewards, options) == pytest.approx([-2 / 3, -2 / 3, 4 / 3, 0, 0, 0], abs=1e-6)
    assert advantages(rewards, replace(options, advantage="rloo")) == [-2, -2, 2, 0, 0, 0]
    scale = 1 / (2 / math.sqrt(3) + 1e-4)
    of_group = [-2 / 3 * scale, -2 / 3 * scale, 4 / 3 * scale, 0, 0, 0]
    assert advantages(rewards, replace(options, advantage="group-std")) == pytest.approx(of_group, abs=1e-6)
    scale = 1 / (float(torch.tensor([2.0, 2, 4, 1, 0, 1]).std()) + 1e-4)
    of_batch = [-2 / 3 * scale, -2 / 3 * scale, 4 / 3 * scale, 0, 0, 0]
    assert advantages(rewards, replace(options, advantage="batch-std")) == pytest.approx(of_batch, abs=1e-6)


def test_group_metrics() -> None:
    told = group_metrics(episodes_of([[2.0], [4.0], [7.0], [7.0]], 2))
    assert told == {"rollout/group_std": pytest.approx(math.sqrt(2) / 2), "train/zero_variance_groups": 1.0}


def batch_of(advantage: list[float], episode: list[int], weight: list[float]) -> EpisodeBatch:
    rows = Rows(torch.zeros(len(episode), 1), torch.zeros(len(episode)), {})
    index = torch.tensor(episode)
    return EpisodeBatch(
        rows, index, torch.tensor(advantage, dtype=torch.float32), torch.bincount(index), torch.tensor(weight)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (GRPOOptions(), [1.2, 0.5, -2.0]),  # min(ρ A, clip(ρ) A), clipped at 1.2 for A = 1 alone
        (GRPOOptions(clip_range_high=0.5), [1.5, 0.5, -2.0]),
        (GRPOOptions(surrogate="cispo"), [1.2 * -3, 0.5 * -4, -1.2 * -5]),  # sg[min(ρ, 1.2)] A log π
        (GRPOOptions(surrogate="cispo", clip_range_high=9.0), [2 * -3, 0.5 * -4, 2 * 5]),
    ],
)
def test_rows_by_hand(options: GRPOOptions, expected: list[float]) -> None:
    """Two rows of one episode, one of another; ratios 2, 1/2 and 2, advantages 1, 1 and -1, log π -3, -4 and -5."""
    batch = batch_of([1, 1, -1], [0, 0, 1], [0.5, 0.25])
    log_ratio = torch.tensor([2.0, 0.5, 2.0]).log()
    rows = grpo_rows(torch.tensor([-3.0, -4, -5]), log_ratio, batch, torch.arange(3), options=options)
    torch.testing.assert_close(rows.value, torch.tensor(expected) * torch.tensor([0.5, 0.5, 0.25]))
    torch.testing.assert_close(rows.ratio, log_ratio.exp())
    one = grpo_rows(torch.tensor([-5.0]), log_ratio[2:], batch, torch.tensor([2]), options=options)
    torch.testing.assert_close(one.value, rows.value[2:])


def test_the_sequence_ratio_by_hand() -> None:
    """Ratios 4 and 1/2 of one episode: √2, past the clip. The other's is 3. Weights are those of all its steps."""
    batch = batch_of([1, 1, -2], [0, 0, 1], [0.5, 0.25])
    log_ratio = torch.tensor([4.0, 0.5, 3.0]).log()
    log_prob = torch.tensor([-3.0, -4, -5])
    options = GRPOOptions(ratio="sequence")
    rows = grpo_rows(log_prob, log_ratio, batch, torch.arange(3), options=options)
    torch.testing.assert_close(rows.value, torch.tensor([2 * 0.5 * 1.2, 0.25 * 3 * -2]))
    torch.testing.assert_close(rows.ratio, torch.tensor([math.sqrt(2), 3.0]))
    weighted = grpo_rows(log_prob, log_ratio, batch, torch.arange(3), options=replace(options, surrogate="cispo"))
    torch.testing.assert_close(weighted.value, torch.tensor([2 * 0.5 * 1.2 * -3.5, 0.25 * 1.2 * -2 * -5]))
    held = batch_of([1, -2], [0, 1], [0.5, 0.25])
    held = replace(held, length=torch.tensor([2, 1]))  # one row of two steps: its log-ratio is their sum
    again = grpo_rows(torch.tensor([-7.0, -5]), torch.tensor([2.0, 3.0]).log(), held, torch.arange(2), options=options)
    torch.testing.assert_close(again.value, rows.value)


@pytest.mark.parametrize(
    ("name", "placement", "expected"),
    [
        ("k2", "loss", [-0.5 * 0.5 * 4.0, 0.0]),
        ("k3", "loss", [-0.5 * (math.exp(-2) + 1), 0.0]),
        ("k1", "ratio", [-0.5 * 3 * 2, 0.0]),
    ],
)
def test_penalties_by_hand(name: Any, placement: Any, expected: list[float]) -> None:  # noqa: ANN401
    """Log π - log π_ref of 2 and 0, ratios 3 and 1, beta = 1/2."""
    options = GRPOOptions(kl_coefficient=0.5, kl_estimator=name, kl_placement=placement)
    batch = batch_of([1, 1], [0, 1], [1.0, 10.0])
    rows = penalty_rows(
        torch.tensor([3.0, 1.0]).log(), torch.tensor([2.0, 0.0]), batch, torch.arange(2), options=options
    )
    torch.testing.assert_close(rows, torch.tensor(expected))


def test_weights_go_by_the_aggregation() -> None:
    """Episodes of 1 and 3 steps."""
    episodes = episodes_of([[1.0], [1.0, 1.0, 1.0]], 2)
    zero = torch.zeros(4)
    for name, expected in (("token", [0.25, 0.25]), ("sequence", [0.5, 1 / 6]), ("constant", [0.05, 0.05])):
        batch = episode_batch(episodes, zero, aggregation=name, horizon=10)  # type: ignore[arg-type]
        assert batch.weight.tolist() == pytest.approx(expected)


def test_minibatches_of_whole_episodes() -> None:
    lengths = torch.tensor([3, 1, 2, 4, 1, 1])
    episode = torch.repeat_interleave(torch.arange(6), lengths)
    parts = list(whole_episodes(episode, lengths, 4))
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    for part in parts:
        counts = torch.bincount(episode[part], minlength=6)
        assert ((counts == 0) | (counts == lengths)).all()
    assert len(parts) > 1


# an update


def test_it_is_a_learner_and_tells_what_it_did() -> None:
    learner = grpo_for()
    assert isinstance(learner, Learner)
    before = parameters_of(learner.agent.policy)
    told = learner.update()
    assert not same(before, parameters_of(learner.agent.policy))
    named = {
        "rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/episodes", "rollout/group_std",
        "train/zero_variance_groups", "train/policy_gradient_loss", "train/clip_fraction", "train/approx_kl",
        "train/ratio_mean", "train/ess", "train/grad_norm", "train/guide_loss", "train/epochs", "train/skipped",
    }  # fmt: skip
    assert named <= set(told) and all(math.isfinite(value) for value in told.values())
    assert told["rollout/episodes"] == 6 and told["train/epochs"] == 2 and told["train/skipped"] == 0


def test_every_environment_step_is_counted() -> None:
    """Four episodes of two steps on three members: the fourth is played while two members wait."""
    envs = vectorize([lambda: Scripted(length=2)] * 3)
    learner = grpo_for(GRPOOptions(num_groups=1, group_size=4), envs=envs)
    told = learner.update()
    assert learner.num_timesteps == 4 * 3
    assert told["rollout/idle_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("given", "entropy", "moves"),
    [
        ({"kl_coefficient": 0.1}, 0.0, True),
        ({"kl_coefficient": 0.1, "kl_placement": "reward"}, 0.0, True),
        ({}, 0.1, True),
        ({}, 0.0, False),
    ],
)
def test_equal_returns_leave_a_bonus_or_a_penalty_to_act(given: dict[str, Any], entropy: float, moves: bool) -> None:
    """A penalty in the reward makes returns unequal by itself, once the policy has left its reference."""
    options = GRPOOptions(num_groups=2, group_size=2, num_epochs=1, **given)
    learner = grpo_for(options, agent_options=replace(SMALL, entropy_coefficient=entropy))
    learner.update()
    learner.envs = vectorize([lambda: Four()] * 2)
    before = parameters_of(learner.agent.policy)
    assert learner.update()["train/skipped"] == (not moves)
    assert same(before, parameters_of(learner.agent.policy)) != moves


def test_equal_returns_move_nothing() -> None:
    """Also not by what Adam remembers: the second update skips, the first has moved."""
    learner = grpo_for(GRPOOptions(num_groups=2, group_size=2, num_epochs=1), agent_options=SMALL)
    learner.update()
    learner.envs = vectorize([lambda: Four()] * 2)
    before = learner.state()
    told = learner.update()
    assert (told["train/zero_variance_groups"], told["train/skipped"]) == (2.0, 1.0)
    after = learner.state()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("num_"))
    assert learner.num_updates == 2


class Four(Scripted):
    """Two steps that pay 1 and 2, shown as CartPole shows its own."""

    def __init__(self) -> None:
        super().__init__(length=2)
        self.observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (4,))

    def _look(self) -> object:
        return torch.tensor([0.0, 0.1, 0.2, 0.3]).numpy()


def test_a_group_without_differences_stays_in_the_batch() -> None:
    """Its rows have the advantage 0 and their weight all the same."""
    episodes = episodes_of([[2.0], [4.0], [7.0], [7.0]], 2)
    advantage = group_advantages(episodes, episodes.transitions.reward, options=GRPOOptions(group_size=2))
    batch = episode_batch(episodes, advantage, aggregation="token", horizon=1)
    assert batch.advantage[2:].tolist() == [0, 0] and batch.weight.tolist() == [0.25] * 4


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_latent_held_for_the_episode(ratio: Any) -> None:  # noqa: ANN401
    """Each episode is one row: one minibatch of six, whatever their lengths."""
    learner = grpo_for(GRPOOptions(num_groups=2, group_size=3, num_epochs=2, latent="episode", ratio=ratio))
    before = parameters_of(learner.agent.policy)
    told = learner.update()
    assert told["train/skipped"] == 0 and not same(before, parameters_of(learner.agent.policy))
    with seeded(0):
        episodes = collect_groups(
            learner.envs, learner.agent.policy, num_groups=1, group_size=2, seed=0, latent="episode"
        )
    assert episode_rows(episodes).rows.size == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"ratio": "sequence"},
        {"surrogate": "cispo", "aggregation": "constant", "horizon": 500},
        {"credit": "reward-to-go", "gamma": 0.99, "advantage": "batch-std"},
        {"credit": "pooled-to-go", "gamma": 0.99},
        {"anneal_clip": True},
        {"noise": "independent", "advantage": "rloo", "aggregation": "sequence"},
        {"kl_coefficient": 0.1},
        {"kl_coefficient": 0.1, "kl_estimator": "k1", "kl_placement": "ratio"},
        {"kl_coefficient": 0.1, "kl_estimator": "k1", "kl_placement": "reward"},
        {"kl_coefficient": 0.1, "kl_placement": "reward", "latent": "episode", "kl_estimator": "k1"},
    ],
    ids=str,
)
def test_each_variant_updates(changes: Mapping[str, Any]) -> None:
    learner = grpo_for(replace(SHORT, **changes))
    learner.update()
    told = learner.update()
    assert all(math.isfinite(value) for value in told.values()) and told["train/skipped"] == 0
    if "kl_coefficient" in changes:
        assert told["train/kl_reference"] > 0  # the policy has left the one it began as


def test_fresh_particles_and_a_plain_policy_update_too() -> None:
    for learner in (grpo_for(agent_options=replace(SMALL, particles="fresh")), grpo_for(kind="plain")):
        told = learner.update()
        assert told["train/skipped"] == 0


def test_a_strong_penalty_holds_the_policy() -> None:
    """The divergence from the initial policy after three updates, with beta = 0 in effect and with 100."""
    kl = []
    for beta in (1e-9, 100.0):
        options = GRPOOptions(
            num_groups=2, group_size=4, num_epochs=4, kl_coefficient=beta, kl_estimator="k2", advantage="group-mean"
        )
        learner = grpo_for(options, agent_options=replace(SMALL, learning_rate=1e-2), estimator=JointScore())
        kl.append([learner.update()["train/kl_reference"] for _ in range(3)][-1])
    assert kl[1] < 0.1 * kl[0]


def test_the_reference_is_a_copy_and_may_be_replaced() -> None:
    def reference(learner: GRPO) -> list[Tensor]:
        return parameters_of(learner.reference)  # type: ignore[arg-type]

    kept, replaced = (grpo_for(replace(SHORT, kl_coefficient=0.1, reference_every=n)) for n in (None, 2))
    start = reference(kept)
    for learner in (kept, replaced):
        learner.update()
        learner.update()
    second = parameters_of(replaced.agent.policy)
    assert same(reference(kept), start) and same(reference(replaced), start)
    for learner in (kept, replaced):
        learner.update()
    assert same(reference(kept), start) and same(reference(replaced), second)
    assert not any(p.requires_grad for p in kept.reference.parameters())  # type: ignore[union-attr]


def test_a_penalty_in_the_reward_comes_off_the_return() -> None:
    """Log π - log π_ref of every row is taken off its reward times beta, by k1; of an episode's row, off its first."""
    for latent in ("step", "episode"):
        options = replace(
            SHORT, kl_coefficient=0.5, kl_estimator="k1", kl_placement="reward", latent=latent, num_epochs=1
        )
        learner = grpo_for(options, estimator=JointScore())
        learner.update()
        with seeded(1):
            episodes = collect_groups(
                learner.envs, learner.agent.policy, num_groups=1, group_size=2, seed=0, latent=latent
            )
        found = episode_rows(episodes)
        scorer = learner.agent.propose(found.rows, found.log_joint)
        reward, _ = learner._penalized(episodes, scorer, found.rows)
        estimator, rows = learner.agent.estimator, found.rows
        particles = estimator.propose(learner.agent.policy, rows.obs, rows.action, rows.latents)
        assert learner.reference is not None
        with torch.no_grad():
            now, then = (
                estimator.estimate(policy, rows.obs, rows.action, particles).log_prob
                for policy in (learner.agent.policy, learner.reference)
            )
        taken = (episodes.transitions.reward - reward).float()
        expected = 0.5 * (now - then)
        where = episodes.step == 0 if latent == "episode" else slice(None)
        torch.testing.assert_close(taken[where], expected)
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(taken.sum(), expected.sum())


def test_the_clip_range_falls_over_the_run() -> None:
    """At the very end every ratio that is not 1 counts as clipped; options of its own decide that it falls."""
    options = GRPOOptions(clip_range=0.5, clip_range_high=1.0, anneal_clip=True)
    assert [annealed(options, share).clip_range for share in (0.0, 0.5, 1.0)] == [0.5, 0.25, 0.0005]
    assert annealed(options, 0.5).clip_range_high == 0.5
    assert annealed(replace(options, clip_range_high=None), 0.5).clip_range_high is None
    assert annealed(replace(options, anneal_clip=False), 0.5).clip_range == 0.5
    clipped = {}
    for falls in (False, True):
        learner = grpo_for(replace(SHORT, num_epochs=5, anneal_clip=falls), agent_options=replace(SMALL, gap_every=1))
        clipped[falls] = learner.update(1.0)["train/clip_fraction"]
    assert clipped[False] == 0 and clipped[True] > 0.3


def test_epochs_stop_at_the_target() -> None:
    told = grpo_for(replace(SHORT, num_epochs=50, target_kl=1e-6)).update()
    assert told["train/epochs"] < 50 and told["train/stopped_early"] == 1


def test_the_gap_is_measured_when_it_should_be() -> None:
    for changes in ({}, {"surrogate": "cispo"}):
        learner = grpo_for(replace(SHORT, **changes), agent_options=replace(SMALL, gap_every=2))  # type: ignore[arg-type]
        assert [("train/surrogate_gap" in learner.update()) for _ in range(3)] == [True, False, True]


# going on


@pytest.mark.parametrize("changes", [{}, {"kl_coefficient": 0.1, "reference_every": 2}], ids=str)
@pytest.mark.parametrize("normalized", [False, True])
def test_it_goes_on_bit_for_bit(changes: Mapping[str, Any], normalized: bool) -> None:
    options = replace(SHORT, **changes)
    build = partial(grpo_for, options, normalized=normalized, agent_options=replace(SMALL, batch_size=64))
    straight = build()
    told = [dict(straight.update(0.1)) for _ in range(6)]
    half = build()
    for _ in range(3):
        half.update(0.1)
    resumed = build()
    resumed.restore(half.state())
    assert [dict(resumed.update(0.1)) for _ in range(3)] == told[3:]
    assert same_state(resumed.state(), straight.state())
    assert (resumed.num_timesteps, resumed.num_updates) == (straight.num_timesteps, 6)


def test_another_seed_is_another_run() -> None:
    first, second = grpo_for(), grpo_for()
    second.seed = 4
    assert first.update() != second.update()


# bad input: one clear error, nothing moved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, r"`group_size`[\s\S]*>= 2[\s\S]*nothing to be compared with"),
        ({"num_groups": 0}, r"`num_groups`[\s\S]*>= 1"),
        ({"num_epochs": True}, r"`num_epochs`"),
        ({"max_steps": 0}, r"`max_steps`"),
        ({"reference_every": 0}, r"`reference_every`"),
        ({"clip_range": 0.0}, r"`clip_range`[\s\S]*> 0"),
        ({"clip_range_high": math.inf}, r"`clip_range_high`"),
        ({"horizon": -1}, r"`horizon`"),
        ({"target_kl": 0}, r"`target_kl`"),
        ({"gamma": 1.5}, r"`gamma`[\s\S]*\[0, 1\]"),
        ({"advantage": "group-st"}, r"`advantage`[\s\S]*group-std"),
        ({"ratio": "step"}, r"`ratio`"),
        ({"surrogate": "ppo"}, r"`surrogate`"),
        ({"aggregation": "mean"}, r"`aggregation`"),
        ({"credit": "return"}, r"`credit`"),
        ({"latent": "run"}, r"`latent`"),
        ({"noise": "none"}, r"`noise`"),
        ({"kl_estimator": "k4"}, r"`kl_estimator`"),
        ({"kl_placement": "advantage"}, r"`kl_placement`"),
        ({"on_max_steps": "stop"}, r"`on_max_steps`"),
        ({"kl_coefficient": -1.0}, r"`kl_coefficient`[\s\S]*>= 0"),
        ({"credit": "reward-to-go", "latent": "episode"}, r"different credits[\s\S]*credit=\"episode\""),
        ({"credit": "pooled-to-go", "ratio": "sequence"}, r"different credits"),
        ({"kl_coefficient": 0.1, "kl_estimator": "k1"}, r"expected gradient of zero[\s\S]*kl_placement=\"ratio\""),
    ],
    ids=str,
)
@pytest.mark.production
def test_options_are_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        GRPOOptions(**changes)


def refused(learner: GRPO, error: type[Exception], message: str) -> None:
    """One update ends in an error that says so, and moves neither parameters nor counts."""
    before = learner.state()
    with pytest.raises(error, match=message):
        learner.update()
    assert same_state(before, learner.state())


def test_an_episode_that_never_ends() -> None:
    envs = vectorize([lambda: Scripted(length=0)] * 2)
    options = GRPOOptions(num_groups=1, group_size=2, max_steps=30)
    refused(grpo_for(options, envs=envs), EnvironmentFault, r"does not end[\s\S]*max_steps=30")
    told = grpo_for(replace(options, on_max_steps="truncate"), envs=envs).update()
    assert told["rollout/ep_len_mean"] == 30


def test_a_ratio_that_overflows_is_named() -> None:
    learner = grpo_for()
    propose = learner.agent.propose
    learner.agent.propose = lambda rows, log_joint: Far(propose(rows, log_joint), 1000.0)  # type: ignore[method-assign]
    refused(learner, LearningFault, "a ratio is not finite")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_and_observations_that_are_not_finite(bad: float) -> None:
    options = GRPOOptions(num_groups=1, group_size=2)
    paid = vectorize([lambda: Scripted(length=3, bad_reward=bad)] * 2)
    refused(grpo_for(options, envs=paid), EnvironmentFault, r"reward")
    seen = vectorize([lambda: Scripted(length=3, bad_obs=bad)] * 2)
    refused(grpo_for(options, envs=seen), EnvironmentFault, r"observation")


def test_members_that_do_not_start_together() -> None:
    class Restless(Scripted):
        count = 0

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            Restless.count += 1
            return super().reset(seed=Restless.count)

    refused(grpo_for(envs=vectorize([Restless] * 3)), EnvironmentFault, r"did not start in the same state")


def test_environments_that_reset_themselves() -> None:
    envs = make_envs("CartPole-v1", 2, vectorization_mode="native")
    agent = agent_for(envs)
    with pytest.raises(OptionError, match=r"GRPO\(\)[\s\S]*reset themselves[\s\S]*make_envs"):
        GRPO(envs, agent, seed=0)


def test_environments_that_ignore_whom_to_reset() -> None:
    """They reset every member, silently; the second reset gives them away."""

    class Deaf(gymnasium.vector.VectorWrapper[Any, Any, Any]):
        def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
            return self.env.reset(seed=seed)

    envs = Deaf(vectorize([lambda: Scripted(length=4), lambda: Scripted(length=2)]))
    refused(grpo_for(envs=envs), EnvironmentFault, r"reset")


# what it ends up with


def test_it_reaches_the_optimum_of_the_grid_world() -> None:
    """From scratch, the likeliest actions are optimal in every cell, and the policy itself is within two per cent."""
    envs = grid_worlds(24)
    with seeded(0):
        policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(16,))
    agent_options = AgentOptions(learning_rate=1e-2, batch_size=288, gap_every=0)
    agent = Agent(policy, estimator=ConditionalIS(4), options=agent_options)
    options = GRPOOptions(num_groups=9, group_size=8, num_epochs=4, gamma=0.9, advantage="rloo", credit="reward-to-go")
    learner = GRPO(envs, agent, options=options, seed=0)
    best = optimal_value()
    assert exact_value(table_of(policy, 3)) < 0.2 * best
    for _ in range(30):
        learner.update()
    table = table_of(policy, 3)
    assert exact_value(greedy(table)) == pytest.approx(best, abs=1e-9)
    assert 0.98 * best < exact_value(table) <= best


@pytest.mark.slow
def test_it_learns_cartpole() -> None:
    """Above 400 within 120,000 steps, every one counted; five trials of 200,000 ended where the how-to page says."""
    envs = make_envs("CartPole-v1", 8)
    with seeded(0):
        policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    options = AgentOptions(learning_rate=1e-3, batch_size=256, anneal=True, gap_every=0)
    agent = Agent(policy, estimator=ConditionalIS(8, Guide()), objective=ConditionalWake(), options=options)
    learner = GRPO(envs, agent, options=GRPOOptions(num_groups=2, credit="pooled-to-go", gamma=0.99), seed=0)
    while learner.num_timesteps < 120_000:
        learner.update(learner.num_timesteps / 200_000)
    with seeded(1):
        played = collect_episodes(make_envs("CartPole-v1", 20), policy, num_episodes=100, seed=12345)
    assert float(played.returns.mean()) > 400
