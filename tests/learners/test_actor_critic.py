"""Batch and online actor-critic: steps by written-out arithmetic, traces, the clock of gamma^t, and going on."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentpg.errors import OptionError, RecordedLatentError
from latentpg.estimators import ClosedForm, ConditionalIS, Guide
from latentpg.learners import (
    A2C,
    A2COptions,
    Agent,
    AgentOptions,
    Learner,
    LearningFault,
    OnlineActorCritic,
    OnlineOptions,
)
from latentpg.learners.valued import step_factors
from latentpg.numerics.rng import seeded
from latentpg.numerics.targets import gae, n_step_target
from latentpg.programs import model_parameters
from latentpg.rollout import ObservationNormalizer, RewardScaler, Rollout, make_envs
from latentpg.values import LinearCritic, NetworkCritic
from latentpg.values.features import Identity
from tests.learners.small import SMALL, agent_for, critic_for, parameters_of, policy_for, same, same_state
from tests.rollout.scripted import Scripted, scripted, vectorize

FREE = AgentOptions(learning_rate=0.01, max_grad_norm=math.inf, gap_every=0)


def a2c_for(
    kind: str = "mixture",
    *,
    num_envs: int = 2,
    mode: str = "sync",
    agent_options: AgentOptions = SMALL,
    **options: Any,  # noqa: ANN401
) -> A2C:
    envs = make_envs("CartPole-v1", num_envs, vectorization_mode=mode)
    agent = agent_for(envs, kind, options=agent_options)
    return A2C(envs, agent, critic_for(envs), options=A2COptions(**{"num_steps": 12, **options}), seed=3)


def online_for(
    kind: str = "mixture",
    *,
    num_envs: int = 2,
    mode: str = "sync",
    agent_options: AgentOptions = SMALL,
    **options: Any,  # noqa: ANN401
) -> OnlineActorCritic:
    envs = make_envs("CartPole-v1", num_envs, vectorization_mode=mode)
    agent = agent_for(envs, kind, options=agent_options)
    options = {"num_steps": 12, **options}
    return OnlineActorCritic(envs, agent, critic_for(envs), options=OnlineOptions(**options), seed=3)


def watched(learner: Any) -> tuple[list[Rollout], list[list[Tensor]], list[list[Tensor]]]:  # noqa: ANN401
    """Note every rollout, and every gradient by which the model and the critic are moved."""
    rollouts: list[Rollout] = []
    moves: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])
    collect = learner.collector.collect

    def noted(*args: Any, **named: Any) -> Rollout:  # noqa: ANN401
        rollouts.append(collect(*args, **named))
        return rollouts[-1]

    learner.collector.collect = noted
    for part, told in zip((learner.agent.model, learner.value), moves, strict=True):

        def descend(gradients: Any, *rest: Any, told: Any = told, to: Any = part.descend, **named: Any) -> None:  # noqa: ANN401
            told.append([gradient.clone() for gradient in gradients])
            to(gradients, *rest, **named)

        part.descend = descend
    return rollouts, *moves


def scores(policy: Any, obs: Tensor, action: Tensor) -> list[Tensor]:  # noqa: ANN401
    """Return the gradient of log pi of a linear-softmax policy by hand: [M, A, S] and [M, A]."""
    (linear,) = (module for module in policy.modules() if isinstance(module, nn.Linear))
    chance = (obs @ linear.weight.T + linear.bias).softmax(-1)
    slope = nn.functional.one_hot(action, chance.shape[-1]).float() - chance
    return [(slope.unsqueeze(-1) * obs.unsqueeze(1)).detach(), slope.detach()]


def linear_agent(envs: Any, options: AgentOptions = FREE) -> tuple[Agent, LinearCritic]:  # noqa: ANN401
    policy = policy_for(envs, "plain", hidden=())
    critic = LinearCritic(Identity(envs.single_observation_space.shape[0]))
    with seeded(9):
        critic.load(torch.randn(critic.weight.shape))
    return Agent(policy, estimator=ClosedForm(), options=options), critic


# --- the batch form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discount_gradient", [False, True])
@pytest.mark.parametrize("kind", ["gae", "n-step"])
def test_an_update_is_its_arithmetic(kind: str, discount_gradient: bool) -> None:
    """Two rollouts in a row with episodes across the cut: the gradients are sums of credit times the score by hand."""
    envs = make_envs("CartPole-v1", 3)
    agent, critic = linear_agent(envs)
    chosen: dict[str, Any] = {"gae_lambda": 0.8} if kind == "gae" else {"n_step": 3}
    options = A2COptions(num_steps=17, gamma=0.9, discount_gradient=discount_gradient, **chosen)
    learner = A2C(envs, agent, critic, options=options, seed=0)
    rollouts, model, values = watched(learner)
    clock = torch.zeros(3)
    for update in range(2):
        weight, policy = critic.weight.detach().clone(), copy.deepcopy(agent.policy)
        learner.update()
        steps, shape = rollouts[update].transitions, rollouts[update].time_major
        value, following = steps.obs @ weight, steps.next_obs @ weight
        parts = shape(steps.reward), shape(value), shape(following), shape(steps.terminated), shape(steps.truncated)
        if kind == "gae":
            advantage = gae(*parts, discount=0.9, trace_decay=0.8)
        else:
            advantage = n_step_target(parts[0], *parts[2:], discount=0.9, num_steps=3) - parts[1]
        factor = torch.ones(17, 3)
        for t in range(17):
            factor[t] = 0.9**clock if discount_gradient else 1.0
            clock = torch.where(shape(steps.done)[t], 0.0, clock + 1)
        credit = (factor * advantage).flatten()
        for found, score in zip(model[update], scores(policy, steps.obs, steps.action), strict=True):
            by_hand = -(credit.reshape(-1, *[1] * (score.ndim - 1)) * score).mean(0)
            torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[update][0], -(advantage.flatten() @ steps.obs) / 51, rtol=1e-4, atol=1e-5)
    assert clock.max() > 0  # an episode is open, and was across the cut


def test_there_is_one_pass_and_then_the_guide() -> None:
    learner = a2c_for()
    _, model, values = watched(learner)
    metrics = learner.update()
    assert len(model) == len(values) == 1
    assert metrics["train/guide_grad_norm"] > 0.0
    assert (learner.num_timesteps, learner.num_updates) == (24, 1)


@pytest.mark.parametrize("make", [a2c_for, online_for])
def test_the_guides_own_moves_never_reach_the_gradient(make: Any) -> None:  # noqa: ANN401
    """A2C's first update, and the online one's first step: those after it may propose from another guide."""
    ends = []
    for epochs in (0, 3):
        learner = make(agent_options=replace(SMALL, guide_epochs=epochs), num_steps=1)
        learner.agent.estimator = ConditionalIS(3, Guide())
        learner.update()
        ends.append([p.detach().clone() for p in model_parameters(learner.agent.policy)])
    assert same(*ends)


def test_advantages_are_standardised_and_rewards_scaled_if_asked() -> None:
    envs = make_envs("CartPole-v1", 2)
    agent, critic = linear_agent(envs)
    options = A2COptions(num_steps=12, normalize_advantage=True, normalize_reward=True)
    learner = A2C(envs, agent, critic, options=options, seed=0)
    weight = critic.weight.detach().clone()
    rollouts, model, _ = watched(learner)
    policy = copy.deepcopy(agent.policy)
    learner.update()
    steps, shape = rollouts[0].transitions, rollouts[0].time_major
    scaler = RewardScaler.of_size(2, discount=0.99).update(shape(steps.reward), shape(steps.done))
    advantage = gae(
        scaler.scale(shape(steps.reward)),
        shape(steps.obs @ weight),
        shape(steps.next_obs @ weight),
        shape(steps.terminated),
        shape(steps.truncated),
        discount=0.99,
        trace_decay=1.0,
    ).flatten()
    credit = (advantage - advantage.mean()) / advantage.std()
    for found, score in zip(model[0], scores(policy, steps.obs, steps.action), strict=True):
        by_hand = -(credit.reshape(-1, *[1] * (score.ndim - 1)) * score).mean(0)
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)


# --- the online form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.5), (0.9, 0.6)])
@pytest.mark.parametrize("discount_gradient", [False, True])
def test_every_step_is_its_arithmetic(decays: tuple[float, float], discount_gradient: bool) -> None:
    """The textbook's loop by hand, member by member, over episodes of two and three steps, one kind cut by time."""

    class Mild(Scripted):
        def _look(self) -> object:
            return np.array([1.0, self.steps - 1.0, self.noise], dtype=np.float32)

    envs = vectorize([lambda: Mild(length=2), lambda: Mild(length=3, truncates=True)])
    agent, critic = linear_agent(envs)
    options = OnlineOptions(
        num_steps=1,
        gamma=0.9,
        actor_trace_decay=decays[0],
        critic_trace_decay=decays[1],
        discount_gradient=discount_gradient,
        value_learning_rate=0.05,
    )
    learner = OnlineActorCritic(envs, agent, critic, options=options, seed=0)
    rollouts, model, values = watched(learner)
    traces: list[list[Any]] = [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]  # of weight, bias and the critic's weight
    clock = [0, 0]
    for update in range(8):
        weight, policy = critic.weight.detach().clone(), copy.deepcopy(agent.policy)
        learner.update()
        steps = rollouts[update].transitions
        delta = steps.reward + 0.9 * (steps.next_obs @ weight) * ~steps.terminated - steps.obs @ weight
        parts = [*scores(policy, steps.obs, steps.action), steps.obs]
        found = [*model[update], *values[update]]
        for place, (trace, part) in enumerate(zip(traces, parts, strict=True)):
            decay = decays[int(place == 2)]
            total: Any = 0.0
            for n in range(2):
                entering = 0.9 ** clock[n] if discount_gradient and place < 2 else 1.0
                trace[n] = 0.9 * decay * trace[n] + entering * part[n]
                total = total - delta[n] * trace[n] / 2
            torch.testing.assert_close(found[place], total, rtol=1e-4, atol=1e-5)
        for n in range(2):
            clock[n] = 0 if steps.done[n] else clock[n] + 1
            if steps.done[n]:
                for trace in traces:
                    trace[n] = 0.0
    assert torch.cat([rollout.transitions.truncated for rollout in rollouts]).any()


def test_an_update_is_several_steps_each_learnt_from() -> None:
    learner = online_for(num_steps=12, actor_trace_decay=0.5)
    rollouts, model, values = watched(learner)
    metrics = learner.update()
    assert len(rollouts) == len(model) == len(values) == 12
    assert (learner.num_timesteps, learner.num_updates) == (24, 1)
    assert {"train/td_error", "train/value_loss", "train/grad_norm", "train/guide_loss"} <= set(metrics)


def test_the_entropy_bonus_enters_no_trace() -> None:
    """At the first step a trace is the score itself: with or without one, the same gradient, bonus and all."""
    first: dict[tuple[float, float], list[Tensor]] = {}
    traces: dict[float, list[Tensor]] = {}
    for coefficient in (0.0, 0.5):
        for decay in (0.0, 0.9):
            envs = scripted(2, length=50)
            agent = agent_for(envs, "plain", options=replace(FREE, entropy_coefficient=coefficient))
            options = OnlineOptions(num_steps=1, actor_trace_decay=decay)
            learner = OnlineActorCritic(envs, agent, critic_for(envs), options=options, seed=0)
            _, model, _ = watched(learner)
            assert ("train/entropy" in learner.update()) is bool(coefficient)
            first[coefficient, decay] = model[0]
            traces[coefficient] = learner.actor_trace
    assert traces[0.0] and same(traces[0.0], traces[0.5])
    for coefficient in (0.0, 0.5):
        torch.testing.assert_close(first[coefficient, 0.0], first[coefficient, 0.9])
    assert max(float((a - b).abs().max()) for a, b in zip(first[0.0, 0.9], first[0.5, 0.9], strict=True)) > 1e-3


def test_episodes_that_ended_in_an_update_are_told_together() -> None:
    envs = vectorize([lambda: Scripted(length=2), lambda: Scripted(length=4)])
    agent = agent_for(envs, "plain", options=SMALL)
    learner = OnlineActorCritic(envs, agent, critic_for(envs), options=OnlineOptions(num_steps=4), seed=0)
    metrics = learner.update()
    assert metrics["rollout/episodes"] == 3.0
    assert metrics["rollout/ep_len_mean"] == pytest.approx(8 / 3)
    assert metrics["rollout/ep_rew_mean"] == pytest.approx((3 + 3 + 10) / 3)


# --- the clock --------------------------------------------------------------------------------------------------------


def test_the_clock_goes_on_and_begins_anew() -> None:
    done = torch.tensor([[False, True], [False, False], [True, False]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])  # the second member resets itself in its 2nd step
    factors, after = step_factors(torch.tensor([0.25, 1.0]), done, mask, discount=0.5)
    assert factors.T.tolist() == [[0.25, 0.125, 0.0625], [1.0, 1.0, 1.0]]
    assert after.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("make", [a2c_for, online_for])
def test_a_resetting_environments_dummy_rows_are_never_learnt_from(make: Any) -> None:  # noqa: ANN401
    learner = make(num_envs=4, mode="native", num_steps=40, discount_gradient=True)
    rollouts, *_ = watched(learner)
    learner.update()
    mask = torch.stack([rollout.time_major(rollout.mask) for rollout in rollouts]).flatten(0, 1)
    assert not mask.all() and learner.num_timesteps == int(mask.sum())


def test_a_dummy_row_counts_for_nothing_in_the_gradient() -> None:
    """Make what is seen in such rows absurd: the same update comes out."""
    ends = []
    for spoilt in (False, True):
        learner = a2c_for("plain", num_envs=4, mode="native", num_steps=40, agent_options=FREE)
        collect = learner.collector.collect

        def spoil(*args: Any, collect: Any = collect, spoilt: bool = spoilt, **named: Any) -> Rollout:  # noqa: ANN401
            rollout: Rollout = collect(*args, **named)
            assert not rollout.mask.all()
            reward = torch.where(rollout.mask | (not spoilt), rollout.transitions.reward, 1e6)
            return replace(rollout, transitions=replace(rollout.transitions, reward=reward))

        learner.collector.collect = spoil  # type: ignore[method-assign]
        learner.update()
        ends.append(parameters_of(learner.agent.policy, learner.critic))
    assert same(*ends)


# --- what both share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixture", "plain"])
@pytest.mark.parametrize("make", [a2c_for, online_for])
def test_an_interrupted_run_is_the_run(make: Any, kind: str) -> None:  # noqa: ANN401
    agent_options = replace(SMALL, anneal=True, entropy_coefficient=0.01)
    extra: dict[str, Any] = {"discount_gradient": True, "agent_options": agent_options}
    if make is online_for:
        extra |= {"num_steps": 5, "actor_trace_decay": 0.8, "critic_trace_decay": 0.5}
    else:
        extra |= {"normalize_reward": True, "gae_lambda": 0.9}
    whole, first, second = (make(kind, **extra) for _ in range(3))
    assert isinstance(whole, Learner)
    told = [dict(whole.update(n / 6)) for n in range(6)]
    for n in range(3):
        first.update(n / 6)
    state = first.state()
    kept = {name: value.clone() for name, value in state.items()}
    first.update(0.5)
    assert same_state(state, kept)
    second.restore(state)
    assert [dict(second.update(n / 6)) for n in range(3, 6)] == told[3:]
    assert same_state(whole.state(), second.state())
    assert second.num_updates == 6 and second.num_timesteps == whole.num_timesteps


@pytest.mark.parametrize("learner_class", [A2C, OnlineActorCritic])
def test_a_normaliser_moves_between_updates(learner_class: Any) -> None:  # noqa: ANN401
    envs = make_envs("CartPole-v1", 2)
    normalizer = ObservationNormalizer(4)
    agent = agent_for(envs, encoder=normalizer)
    critic = nn.Sequential(normalizer, NetworkCritic(4, hidden=(4,)))
    options = A2COptions(num_steps=6) if learner_class is A2C else OnlineOptions(num_steps=6)
    learner = learner_class(envs, agent, critic, options=options, seed=0, normalizer=normalizer)
    learner.update()
    learner.update()
    assert int(normalizer.count) == 24


@pytest.mark.parametrize("make", [a2c_for, online_for])
def test_annealing_reaches_every_rate(make: Any) -> None:  # noqa: ANN401
    agent_options = AgentOptions(learning_rate=0.4, guide_learning_rate=0.2, anneal=True, batch_size=16)
    learner = make(agent_options=agent_options, value_learning_rate=0.1)
    learner.update(0.75)
    parts = (learner.agent.model, learner.agent.guide, learner.value)
    assert [part.learning_rate for part in parts] == [0.1, 0.05, 0.025]


@pytest.mark.parametrize("make", [a2c_for, online_for])
def test_a_policy_that_moved_between_acting_and_learning_is_refused(make: Any) -> None:  # noqa: ANN401
    learner = make()
    collect = learner.collector.collect
    before: list[Tensor] = []

    def late(policy: Any, *, num_steps: int) -> Rollout:  # noqa: ANN401
        rollout: Rollout = collect(policy, num_steps=num_steps)
        with torch.no_grad():
            policy.decoder_parameters()[0].add_(0.01)
        before[:] = parameters_of(policy, learner.critic)
        return rollout

    learner.collector.collect = late
    with pytest.raises(RecordedLatentError, match="no longer what it was"):
        learner.update()
    assert same(before, parameters_of(learner.agent.policy, learner.critic))


@pytest.mark.parametrize(("make", "what"), [(a2c_for, "an advantage"), (online_for, "a TD error")])
def test_a_critic_that_gives_no_numbers_is_refused(make: Any, what: str) -> None:  # noqa: ANN401
    learner = make()
    with torch.no_grad():
        next(iter(learner.critic.parameters())).fill_(math.nan)
    before = parameters_of(learner.agent.policy)
    with pytest.raises(LearningFault, match=f"{what} is not finite"):
        learner.update()
    assert same(before, parameters_of(learner.agent.policy))


@pytest.mark.parametrize("learner_class", [A2C, OnlineActorCritic])
def test_a_shared_encoder_belongs_to_the_policy(learner_class: Any) -> None:  # noqa: ANN401
    envs = make_envs("CartPole-v1", 2)
    encoder = nn.Linear(4, 6)
    critic = nn.Sequential(encoder, NetworkCritic(6, hidden=(4,)))
    learner = learner_class(envs, agent_for(envs, encoder=encoder), critic, seed=0)
    assert all(name.startswith("1.") for name in learner.value.names) and learner.value.names


A2C_BAD: list[tuple[str, Any, str]] = [
    *[(name, value, "an integer >= 1") for name in ("num_steps", "n_step") for value in (0, True, 1.5)],
    *[(name, v, r"a number in \[0, 1\]") for name in ("gamma", "gae_lambda") for v in (-0.1, 1.1, math.nan)],
    *[("value_learning_rate", value, "a positive number") for value in (0.0, -1.0, math.inf, math.nan)],
]
ONLINE_BAD: list[tuple[str, Any, str]] = [
    *[("num_steps", value, "an integer >= 1") for value in (0, True, 1.5)],
    *[
        (name, value, r"a number in \[0, 1\]")
        for name in ("gamma", "actor_trace_decay", "critic_trace_decay")
        for value in (-0.1, 1.1, math.nan)
    ],
    *[("value_learning_rate", value, "a positive number") for value in (0.0, -1.0, math.inf, math.nan)],
]


@pytest.mark.production
@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [(A2COptions, *bad) for bad in A2C_BAD] + [(OnlineOptions, *bad) for bad in ONLINE_BAD],
)
def test_bad_options_are_refused(kind: Any, name: str, value: Any, expected: str) -> None:  # noqa: ANN401
    message = rf"{kind.__name__}\(\): `{name}`\n  expected: {expected}\n  got:      .*"
    with pytest.raises(OptionError, match=message):
        kind(**{name: value})


def test_two_ways_to_an_advantage_are_refused() -> None:
    with pytest.raises(OptionError, match=r"two ways to an advantage\n(.*\n)*  got:      n_step=3, gae_lambda=0.9"):
        A2COptions(n_step=3, gae_lambda=0.9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "plain"])
@pytest.mark.parametrize("form", ["batch", "online"])
def test_cartpole_gets_better(form: str, kind: str) -> None:
    """From returns around 20 to above 100, within 60,000 steps."""
    envs = make_envs("CartPole-v1", 8)
    agent = agent_for(envs, kind, hidden=(64, 64), options=AgentOptions(learning_rate=1e-3, gap_every=0))
    with seeded(0):
        critic = NetworkCritic(4, init="orthogonal")
    learner: Any
    if form == "batch":
        options = A2COptions(num_steps=16, gae_lambda=0.95, value_learning_rate=3e-3)
        learner = A2C(envs, agent, critic, options=options, seed=0)
    else:
        decay = 0.8 if kind == "plain" else 0.0  # traces take a backward pass a member: ten minutes for the mixture
        online = OnlineOptions(actor_trace_decay=decay, critic_trace_decay=decay)
        learner = OnlineActorCritic(envs, agent, critic, options=online, seed=0)
    returns: list[float] = []
    while learner.num_timesteps < 60_000:
        metrics = learner.update()
        returns += [metrics["rollout/ep_rew_mean"]] if "rollout/ep_rew_mean" in metrics else []
    assert sum(returns[-10:]) / 10 > 100
