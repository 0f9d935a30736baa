"""REINFORCE: advantages by hand, what it learns, what it refuses, and that it goes on where it was."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium.vector import VectorEnv

from latentpg.errors import OptionError
from latentpg.estimators import ConditionalIS
from latentpg.learners import Agent, AgentOptions, Learner, LearningFault, Reinforce, ReinforceOptions
from latentpg.learners.episodic import EpisodeBatch, episode_rows
from latentpg.learners.reinforce_rows import reinforce_advantages, reinforce_rows
from latentpg.learners.scores import squared_scores
from latentpg.learners.scoring import Rows
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import model_parameters
from latentpg.rollout import EnvironmentFault, Episodes, Transitions, collect_episodes, make_envs
from tests.learners.grid_env import exact_value, greedy, grid_worlds, optimal_value, table_of
from tests.learners.small import SMALL, Far, agent_for, critic_for, parameters_of, same, same_state
from tests.rollout.scripted import Scripted, vectorize

SHORT = ReinforceOptions(num_episodes=4)


def reinforce_for(
    options: ReinforceOptions = SHORT,
    *,
    envs: VectorEnv[Any, Any, Any] | None = None,
    agent_options: AgentOptions = SMALL,
) -> Reinforce:
    """Build REINFORCE in small; equal arguments give equal learners."""
    envs = make_envs("CartPole-v1", 3) if envs is None else envs
    critic = critic_for(envs) if options.baseline == "state-value" else None
    return Reinforce(envs, agent_for(envs, options=agent_options), critic, options=options, seed=3)


def episodes_of(rewards: list[list[float]], *, held: bool = False) -> Episodes:
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
        1,
        held,
    )


# advantages and rows, by hand


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"baseline": "none", "credit": "total"}, [2, 2, 4]),
        ({"baseline": "none"}, [2, 2, 4]),  # from the step on: 1 + 2/2, 2 and 4
        ({"baseline": "none", "discounting": "from-start"}, [2, 1, 4]),
        ({"baseline": "batch-mean", "credit": "total"}, [-1, -1, 1]),
        ({"baseline": "leave-one-out", "credit": "total"}, [-2, -2, 2]),
        ({"baseline": "batch-mean"}, [-1, 1, 1]),  # the second has 0 to go at its second step
        ({"baseline": "leave-one-out", "discounting": "from-start"}, [-2, 1, 2]),
        # of two episodes the other's credit, whatever the scores; no other has a second step
        ({"baseline": "variance-optimal", "credit": "total"}, [-2, -2, 2]),
        ({"baseline": "variance-optimal"}, [-2, 2, 2]),
        ({"baseline": "state-value"}, [2 - 1, 2 - 8, 4 - 3]),
        ({"baseline": "state-value", "discounting": "from-start"}, [2 - 1, 1 - 4, 4 - 3]),
        ({"baseline": "state-value", "credit": "total"}, [2 - 1, 2 - 4, 4 - 3]),
    ],
    ids=str,
)
def test_advantages_by_hand(changes: Mapping[str, Any], expected: list[float]) -> None:
    """Rewards 1, 2 and 4 of two episodes, γ = 1/2; the critic says 1, 8 and 3."""
    options = ReinforceOptions(num_episodes=2, gamma=0.5, **changes)
    episodes = episodes_of([[1, 2], [4]])
    value = torch.tensor([1.0, 8, 3]) if options.baseline == "state-value" else None
    squares = torch.tensor([3.0, 5.0]) if options.credit == "total" else torch.tensor([3.0, 1.0, 5.0])
    found = reinforce_advantages(episodes, episodes.transitions.reward, value, squares, options=options)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("credit", "squares", "expected"),
    [
        ("total", [1.0, 3.0, 1.0], [1 - (3 * 2 + 6) / 4, 2 - (1 + 6) / 2, 6 - (1 + 3 * 2) / 4]),
        # step 0: 1, 2 and 6 with squares 1, 3 and 1; step 1: nothing is left of the first, 4 of the third
        ("reward-to-go", [1.0, 5.0, 3.0, 1.0, 0.0], [1 - 3, 0 - 0, 2 - 3.5, 6 - 1.75, 4 - 0]),
    ],
)
def test_the_others_are_weighted_with_their_squared_scores(
    credit: Any,  # noqa: ANN401
    squares: list[float],
    expected: list[float],
) -> None:
    """Rewards 1 and 0, 2, and 2 and 4 of three episodes; in the first and third, the squares of two steps."""
    options = ReinforceOptions(num_episodes=3, gamma=1.0, credit=credit, baseline="variance-optimal")
    episodes = episodes_of([[1, 0], [2], [2, 4]])
    found = reinforce_advantages(
        episodes, episodes.transitions.reward, squared_score=torch.tensor(squares), options=options
    )
    by_row = [expected[e] for e in (0, 0, 1, 2, 2)] if credit == "total" else expected
    assert found.tolist() == pytest.approx(by_row)


def test_a_held_latent_takes_the_value_of_the_first_step() -> None:
    options = ReinforceOptions(num_episodes=2, gamma=0.5, baseline="state-value", credit="total", latent="episode")
    episodes = episodes_of([[1, 2], [4]], held=True)
    value = torch.tensor([1.0, 8, 3])
    found = reinforce_advantages(episodes, episodes.transitions.reward, value, options=options)
    assert found.tolist() == [1, 1]


def test_normalised_advantages() -> None:
    options = ReinforceOptions(num_episodes=2, gamma=0.5, baseline="none", normalize_advantage=True)
    episodes = episodes_of([[1, 2], [4]])
    found = reinforce_advantages(episodes, episodes.transitions.reward, options=options)
    deviation = math.sqrt(4 / 3)  # of 2, 2 and 4, whose mean is 8/3
    assert found.tolist() == pytest.approx([-2 / 3 / deviation, -2 / 3 / deviation, 4 / 3 / deviation])


@pytest.mark.parametrize(("ratio", "expected"), [("none", [0.5 * 2 * -3, 0.25 * -1 * -4]), ("step", [0.5 * 4, -0.125])])
def test_rows_by_hand(ratio: Any, expected: list[float]) -> None:  # noqa: ANN401
    """Advantages 2 and -1, weights 1/2 and 1/4, log π -3 and -4, ratios 2 and 1/2."""
    index = torch.arange(2)
    rows = Rows(torch.zeros(2, 1), torch.zeros(2), {})
    batch = EpisodeBatch(rows, index, torch.tensor([2.0, -1]), torch.tensor([1, 1]), torch.tensor([0.5, 0.25]))
    log_ratio = torch.tensor([2.0, 0.5]).log()
    options = ReinforceOptions(ratio=ratio)
    found = reinforce_rows(torch.tensor([-3.0, -4]), log_ratio, batch, index, options=options)
    torch.testing.assert_close(found, torch.tensor(expected))


def batch_of(advantage: list[float], episode: list[int], weight: list[float]) -> EpisodeBatch:
    index = torch.tensor(episode)
    rows = Rows(torch.zeros(len(episode), 1), torch.zeros(len(episode)), {})
    return EpisodeBatch(rows, index, torch.tensor(advantage), torch.bincount(index), torch.tensor(weight))


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 2, 1, 4]], ids=["as collected", "any other of the episodes"])
def test_rows_of_ratios_of_episodes_by_hand(order: list[int]) -> None:
    """Ratios 2 and 1/4 of the first episode, 3, 1 and 2 of the second; weights 1/2 and 1/4.

    The rows of an episode lie in the order of its steps, those of the two in any.
    """
    advantage, episode = [[5.0, 1.0, 7.0, 4.0, 2.0][i] for i in range(5)], [0, 0, 1, 1, 1]
    if order != sorted(order):
        order = [2, 0, 3, 1, 4]
    batch = batch_of([advantage[i] for i in order], [episode[i] for i in order], [0.5, 0.25])
    log_ratio = torch.tensor([2.0, 0.25, 3.0, 1.0, 2.0])[torch.tensor(order)].log()
    part, none = torch.arange(5), torch.zeros(5)
    options = ReinforceOptions(ratio="trajectory", credit="total")
    found = reinforce_rows(none, log_ratio, batch, part, options=options)
    torch.testing.assert_close(found, torch.tensor([0.5 * 0.5 * 5, 0.25 * 6 * 7]))
    options = ReinforceOptions(ratio="per-decision", discounting="from-start")
    found = reinforce_rows(none, log_ratio, batch, part, options=options)
    rows = [0.5 * 2 * (5 - 1), 0.5 * 0.5 * 1, 0.25 * 3 * (7 - 4), 0.25 * 3 * (4 - 2), 0.25 * 6 * 2]
    torch.testing.assert_close(found, torch.tensor([rows[i] for i in order]))


@pytest.mark.parametrize("kind", ["mixture", "plain"])
@pytest.mark.parametrize("whole", [False, True])
def test_squared_scores_are_those_of_one_row_after_the_other(kind: str, whole: bool) -> None:
    envs = make_envs("CartPole-v1", 2)
    agent = agent_for(envs, kind)
    with seeded(0):
        episodes = collect_episodes(envs, agent.policy, num_episodes=3, seed=0)
        found = episode_rows(episodes)
        scorer = agent.propose(found.rows, found.log_joint)
    group = episodes.episode if whole else torch.arange(found.rows.size)
    number = int(group[-1]) + 1
    assert number == 3 or found.rows.size > 32  # several blocks
    expected = []
    for each in range(number):
        log_prob = scorer.score(agent.policy, (group == each).nonzero().squeeze(1)).log_prob
        gradients = torch.autograd.grad(log_prob.sum(), model_parameters(agent.policy))
        expected.append(sum(float(g.square().sum()) for g in gradients))
    torch.testing.assert_close(squared_scores(agent.policy, scorer, group, number), torch.tensor(expected))


# an update


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"baseline": "none", "credit": "total", "aggregation": "token"},
        {"baseline": "batch-mean", "normalize_advantage": True, "aggregation": "sequence"},
        {"baseline": "state-value"},
        {"baseline": "state-value", "latent": "episode", "credit": "total"},
        {"latent": "episode", "credit": "total"},
        {"ratio": "step", "num_epochs": 3},
        {"ratio": "trajectory", "credit": "total", "num_epochs": 3},
        {"ratio": "trajectory", "credit": "total", "latent": "episode", "num_epochs": 2},
        {"ratio": "per-decision", "discounting": "from-start", "num_epochs": 3, "baseline": "variance-optimal"},
        {"baseline": "variance-optimal", "credit": "total"},
        {"baseline": "variance-optimal", "credit": "total", "latent": "episode"},
    ],
    ids=str,
)
def test_each_variant_updates(changes: Mapping[str, Any]) -> None:
    learner = reinforce_for(replace(SHORT, **changes), agent_options=replace(SMALL, entropy_coefficient=0.01))
    assert isinstance(learner, Learner)
    before = parameters_of(learner.agent.policy)
    told = learner.update()
    assert not same(before, parameters_of(learner.agent.policy))
    assert all(math.isfinite(value) for value in told.values()) and told["train/skipped"] == 0
    assert {"rollout/ep_rew_mean", "train/policy_gradient_loss", "train/grad_norm", "train/guide_loss"} <= set(told)
    assert ("train/value_loss" in told) == (learner.critic is not None)


def test_one_step_on_all_rows_is_on_policy() -> None:
    """The ratio is 1 at the only step, and not at the later ones of several."""
    once = reinforce_for().update()
    assert once["train/ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert once["train/approx_kl"] == pytest.approx(0, abs=1e-9)
    often = reinforce_for(replace(SHORT, ratio="step", num_epochs=3)).update()
    assert often["train/approx_kl"] > 1e-7


@pytest.mark.parametrize(
    "changes", [{"ratio": "trajectory", "credit": "total"}, {"ratio": "per-decision", "discounting": "from-start"}]
)
def test_minibatches_are_whole_episodes_where_the_ratio_is(
    changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[list[int], list[int]]] = []

    def noted(log_prob: Any, log_ratio: Any, batch: EpisodeBatch, part: Any, *, options: Any) -> Any:  # noqa: ANN401
        parts.append((torch.bincount(batch.episode[part], minlength=4).tolist(), batch.length.tolist()))
        return reinforce_rows(log_prob, log_ratio, batch, part, options=options)

    monkeypatch.setattr("latentpg.learners.reinforce.reinforce_rows", noted)
    reinforce_for(replace(SHORT, num_epochs=2, **changes)).update()
    assert len(parts) > 2
    for counts, lengths in parts:
        assert all(count in (0, length) for count, length in zip(counts, lengths, strict=True))


@pytest.mark.parametrize(("by", "message"), [(1000.0, "a ratio is not finite"), (60.0, "the loss is not finite")])
def test_a_ratio_that_overflows_is_named_and_moves_nothing(by: float, message: str) -> None:
    """That of a step, and that of an episode whose steps' are finite."""
    learner = reinforce_for(replace(SHORT, ratio="trajectory", credit="total"))
    propose, before = learner.agent.propose, learner.state()
    learner.agent.propose = lambda rows, log_joint: Far(propose(rows, log_joint), by)  # type: ignore[method-assign]
    with pytest.raises(LearningFault, match=message):
        learner.update()
    assert same_state(before, learner.state())


def test_every_environment_step_is_counted() -> None:
    learner = reinforce_for(envs=vectorize([lambda: Scripted(length=2)] * 3))
    learner.update()
    assert learner.num_timesteps == 4 * 3  # the fourth episode is played while two members wait


def test_equal_credits_move_nothing() -> None:
    """Less the others' mean nothing is left; the critic has something to learn all the same."""
    envs = vectorize([lambda: Scripted(length=2)] * 2)
    learner = reinforce_for(envs=envs)
    before = learner.state()
    assert learner.update()["train/skipped"] == 1
    after = learner.state()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("num_"))


def test_the_critic_learns_what_follows() -> None:
    """Two steps that pay 1 and 2, γ = 1/2: worth 2 each."""
    options = ReinforceOptions(
        num_episodes=8, gamma=0.5, baseline="state-value", value_learning_rate=0.02, value_epochs=20
    )
    envs = vectorize([lambda: Flat(length=2)] * 2)
    learner = reinforce_for(options, envs=envs)
    told = [learner.update()["train/value_loss"] for _ in range(15)]
    assert told[0] > 0.5 and told[-1] < 0.01


class Flat(Scripted):
    """Shows the step alone."""

    def _look(self) -> object:
        return torch.tensor([0.0, self.steps, 0.0]).numpy()


def test_the_gap_is_measured_when_it_should_be() -> None:
    learner = reinforce_for(agent_options=replace(SMALL, gap_every=2))
    assert [("train/surrogate_gap" in learner.update()) for _ in range(3)] == [True, False, True]


@pytest.mark.parametrize("baseline", ["leave-one-out", "variance-optimal", "state-value"])
def test_it_goes_on_bit_for_bit(baseline: Any) -> None:  # noqa: ANN401
    options = replace(SHORT, baseline=baseline, ratio="per-decision", discounting="from-start", num_epochs=2)
    straight = reinforce_for(options)
    told = [dict(straight.update(0.1)) for _ in range(6)]
    half, resumed = reinforce_for(options), reinforce_for(options)
    for _ in range(3):
        half.update(0.1)
    resumed.restore(half.state())
    assert [dict(resumed.update(0.1)) for _ in range(3)] == told[3:]
    assert same_state(resumed.state(), straight.state())
    assert (resumed.num_timesteps, resumed.num_updates) == (straight.num_timesteps, 6)


# bad input: one clear error, nothing moved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_episodes": 1}, r"`num_episodes`[\s\S]*>= 2[\s\S]*nothing to be compared with"),
        ({"num_episodes": 0, "baseline": "none"}, r"`num_episodes`[\s\S]*>= 1"),
        ({"num_epochs": 0}, r"`num_epochs`"),
        ({"value_epochs": 0}, r"`value_epochs`"),
        ({"max_steps": 0}, r"`max_steps`"),
        ({"horizon": 0}, r"`horizon`[\s\S]*> 0"),
        ({"value_learning_rate": -1.0}, r"`value_learning_rate`"),
        ({"gamma": -0.1}, r"`gamma`"),
        ({"baseline": "mean"}, r"`baseline`[\s\S]*batch-mean"),
        ({"credit": "return"}, r"`credit`"),
        ({"discounting": "both"}, r"`discounting`"),
        ({"ratio": "token"}, r"`ratio`"),
        ({"aggregation": "sum"}, r"`aggregation`"),
        ({"latent": "run"}, r"`latent`"),
        ({"on_max_steps": "stop"}, r"`on_max_steps`"),
        ({"latent": "episode"}, r"different credits[\s\S]*credit=\"total\""),
        ({"num_epochs": 2}, r"another policy's[\s\S]*ratio=\"step\""),
        ({"num_episodes": 1, "baseline": "variance-optimal"}, r"nothing to be compared with"),
        ({"ratio": "trajectory"}, r"an episode as a whole[\s\S]*per-decision"),
        ({"ratio": "per-decision"}, r"up to its own step[\s\S]*discounting=\"from-start\""),
        ({"ratio": "per-decision", "credit": "total"}, r"up to its own step[\s\S]*ratio=\"trajectory\""),
    ],
    ids=str,
)
@pytest.mark.production
def test_options_are_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ReinforceOptions(**changes)


def test_a_critic_is_wanted_with_its_baseline_and_with_no_other() -> None:
    envs = make_envs("CartPole-v1", 2)
    with pytest.raises(OptionError, match=r"`critic`[\s\S]*None[\s\S]*NetworkCritic"):
        Reinforce(envs, agent_for(envs), options=ReinforceOptions(baseline="state-value"), seed=0)
    with pytest.raises(OptionError, match=r"`critic`[\s\S]*baseline=\"state-value\""):
        Reinforce(envs, agent_for(envs), critic_for(envs), seed=0)


def test_environments_that_reset_themselves() -> None:
    envs = make_envs("CartPole-v1", 2, vectorization_mode="native")
    with pytest.raises(OptionError, match=r"Reinforce\(\)[\s\S]*reset themselves"):
        Reinforce(envs, agent_for(envs), seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"length": 0}, "does not end"), ({"length": 3, "bad_reward": math.nan}, "reward")],
    ids=["endless", "nan"],
)
def test_an_update_that_fails_moves_nothing(settings: Mapping[str, Any], message: str) -> None:
    envs = vectorize([lambda: Scripted(**settings)] * 2)
    learner = reinforce_for(replace(SHORT, max_steps=30), envs=envs)
    before = learner.state()
    with pytest.raises(EnvironmentFault, match=message):
        learner.update()
    assert same_state(before, learner.state())


# what it ends up with


def test_it_reaches_the_optimum_of_the_grid_world() -> None:
    """From scratch, the likeliest actions are optimal in every cell; trials had 0.95 of it by then, and rising."""
    envs = grid_worlds(24)
    with seeded(0):
        policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(16,))
    agent = Agent(policy, estimator=ConditionalIS(4), options=AgentOptions(learning_rate=1e-2, gap_every=0))
    options = ReinforceOptions(num_episodes=72, gamma=0.9, discounting="from-start")
    learner = Reinforce(envs, agent, options=options, seed=0)
    for _ in range(70):
        learner.update()
    table, best = table_of(policy, 3), optimal_value()
    assert exact_value(greedy(table)) == pytest.approx(best, abs=1e-9)
    assert 0.95 * best < exact_value(table) <= best
