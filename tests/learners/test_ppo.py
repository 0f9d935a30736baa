"""PPO: one update by written-out arithmetic, the order of its moves, what it refuses, and going on bit for bit."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentpg.errors import OptionError, RecordedLatentError
from latentpg.estimators import ClosedForm, ConditionalIS, Estimate, Exact, Guide, Particles
from latentpg.estimators.guides import ConditionalWake, Recorded
from latentpg.learners import PPO, Agent, AgentOptions, Learner, LearningFault, PPOOptions, Stored
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy, PlainPolicy
from latentpg.programs import LatentPolicy, Observations, log_joint, model_parameters
from latentpg.rollout import EnvironmentFault, Episodes, Rollout, make_envs
from latentpg.values import LinearCritic, NetworkCritic
from latentpg.values.features import Identity
from tests.learners.small import SMALL, critic_for, parameters_of, policy_for, ppo_for, same, same_state
from tests.rollout.scripted import Scripted, scripted, vectorize

Array = NDArray[np.float64]


def rollouts_of(learner: PPO) -> list[Rollout]:
    """Note every rollout that a learner learns from."""
    seen: list[Rollout] = []
    learn = learner._learn

    def noted(acted: Rollout | Episodes, progress: float) -> dict[str, float]:
        assert isinstance(acted, Rollout)
        seen.append(acted)
        return learn(acted, progress)

    learner._learn = noted  # type: ignore[method-assign]
    return seen


# --- one update, written out ------------------------------------------------------------------------------------------


@dataclass
class Adam:
    """Adam as its paper has it, on one vector of parameters."""

    size: int
    rate: float
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        self.first, self.second, self.steps = np.zeros(self.size), np.zeros(self.size), 0

    def move(self, gradient: Array, limit: float) -> Array:
        gradient = gradient * min(1.0, limit / (float(np.linalg.norm(gradient)) + 1e-6))
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean, square = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return -self.rate * mean / (np.sqrt(square) + self.epsilon)


def log_softmax(logits: Array) -> Array:
    top = logits.max(1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))


def written_out(
    weight: Array, value_weight: Array, data: dict[str, Array], options: PPOOptions, agent: AgentOptions
) -> tuple[Array, Array]:
    """Update a linear-softmax policy [A, S + 1] (bias last) and a linear critic [S], all rows in one minibatch."""
    obs, following, act = data["obs"], data["next_obs"], data["action"].astype(int)
    steps, members = data["reward"].shape
    value, later = (part @ value_weight for part in (obs, following))
    delta = data["reward"] + options.gamma * np.where(data["terminated"], 0.0, later.reshape(steps, members))
    delta = delta - value.reshape(steps, members)
    credits, carried = np.zeros((steps, members)), np.zeros(members)
    for t in reversed(range(steps)):
        carried = delta[t] + options.gamma * options.gae_lambda * np.where(data["done"][t], 0.0, carried)
        credits[t] = carried
    advantage: Array = credits.ravel()
    target = advantage + value
    if options.normalize_advantage:
        credit = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    else:
        credit = advantage
    inputs, rows = np.concatenate([obs, np.ones((len(obs), 1))], 1), np.arange(len(obs))
    one_hot = np.eye(len(weight))[act]
    old = log_softmax(inputs @ weight.T)[rows, act]
    policy_adam = Adam(weight.size, float(agent.learning_rate))
    value_adam = Adam(value_weight.size, float(options.value_learning_rate))
    high = options.clip_range if options.clip_range_high is None else options.clip_range_high
    for _ in range(options.num_epochs):
        log_pi = log_softmax(inputs @ weight.T)
        ratio = np.exp(log_pi[rows, act] - old)
        free = np.where(credit > 0, ratio < 1 + high, ratio > 1 - options.clip_range)
        slope = -(np.where(free, ratio * credit, 0.0)[:, None] * (one_hot - np.exp(log_pi))) / len(obs)
        if agent.entropy_coefficient:  # dH/dlogit_j = -p_j (log p_j + H)
            entropy = -(np.exp(log_pi) * log_pi).sum(1, keepdims=True)
            slope = slope + agent.entropy_coefficient * np.exp(log_pi) * (log_pi + entropy) / len(obs)
        weight = weight + policy_adam.move((slope.T @ inputs).ravel(), float(agent.max_grad_norm)).reshape(weight.shape)
        error = obs @ value_weight - target
        value_weight = value_weight + value_adam.move(error @ obs / len(obs), float(agent.max_grad_norm))
    return weight, value_weight


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("entropy", [0.0, 0.3])
@pytest.mark.parametrize("epochs", [1, 6])
def test_an_update_is_its_arithmetic(normalize: bool, entropy: float, epochs: int) -> None:
    """A linear plain policy and a linear critic; in six epochs of rate .05 rows are clipped, above and below."""
    envs = make_envs("CartPole-v1", 2)
    with seeded(0):
        policy = PlainPolicy(envs.single_observation_space, envs.single_action_space, hidden=())
    options = PPOOptions(
        num_steps=24,
        num_epochs=epochs,
        gae_lambda=0.9,
        clip_range=0.1,
        clip_range_high=0.15,
        normalize_advantage=normalize,
        value_learning_rate=0.02,
    )
    agent_options = AgentOptions(learning_rate=0.05, batch_size=48, entropy_coefficient=entropy, gap_every=0)
    critic = LinearCritic(Identity(4))
    critic.load([0.5, -0.25, 1.0, 0.1])
    agent = Agent(policy, estimator=ClosedForm(), options=agent_options)
    ppo = PPO(envs, agent, critic, options=options, seed=1)
    seen = rollouts_of(ppo)
    linear = next(module for module in policy.modules() if isinstance(module, nn.Linear))
    start = torch.cat([linear.weight, linear.bias[:, None]], 1).detach().double().numpy()
    critic_start = critic.weight.detach().double().numpy().copy()
    metrics = ppo.update()
    steps, shape = seen[0].transitions, seen[0].time_major
    assert steps.done.any() and not steps.done.all()
    data = {
        "obs": steps.obs.double().numpy(),
        "next_obs": steps.next_obs.double().numpy(),
        "action": steps.action.numpy(),
        "reward": shape(steps.reward).double().numpy(),
        "terminated": shape(steps.terminated).numpy(),
        "done": shape(steps.done).numpy(),
    }
    weight, value_weight = written_out(start, critic_start, data, options, agent_options)
    found = torch.cat([linear.weight, linear.bias[:, None]], 1).detach().double().numpy()
    assert np.abs(weight - start).max() > 0.03
    np.testing.assert_allclose(found, weight, rtol=0, atol=2e-5)
    np.testing.assert_allclose(critic.weight.detach().double().numpy(), value_weight, rtol=0, atol=2e-5)
    if epochs > 1:
        assert metrics["train/clip_fraction"] > 0.02
    else:
        assert metrics["train/clip_fraction"] == metrics["train/approx_kl"] == 0.0
        assert metrics["train/ratio_mean"] == 1.0


# --- the order of the moves -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noting:
    """ConditionalIS with the guide as proposal, and a note of when it proposes."""

    told: list[str]
    inner: ConditionalIS = ConditionalIS(3, Guide())  # noqa: RUF009 (frozen)

    def propose(self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Any = None) -> Particles:  # noqa: ANN401
        self.told.append("propose")
        return self.inner.propose(policy, obs, action, latents)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return self.inner.estimate(policy, obs, action, particles)


def order_of(learner: Callable[..., PPO]) -> str:
    """Update once, and say in one word what happened, in order, repetitions taken together."""
    envs, told = make_envs("CartPole-v1", 2), []  # type: ignore[var-annotated]
    policy = policy_for(envs)
    agent = Agent(policy, estimator=Noting(told), objective=ConditionalWake(), options=SMALL)
    ppo = learner(envs, agent, critic_for(envs), options=PPOOptions(num_steps=16, num_epochs=2), seed=0)
    for name, part in (("model", agent.model), ("guide", agent.guide)):
        descend = part.descend

        def noted(*given: Any, name: str = name, descend: Any = descend, **named: Any) -> None:  # noqa: ANN401
            told.append(name)
            descend(*given, **named)

        part.descend = noted  # type: ignore[method-assign]
    ppo.update()
    return " ".join(name for place, name in enumerate(told) if place == 0 or told[place - 1] != name)


class GuideFirst(PPO):
    """The planted mistake: the guide learns from the recorded latents, and proposes after that."""

    def _learn(self, acted: Rollout | Episodes, progress: float) -> dict[str, float]:
        steps, options = acted.transitions, self.agent.options
        data = self._evaluate(acted)
        self.agent.teach_guide(self.agent.propose(data.rows, steps.log_joint), data.rows, data.index)
        assert options is self.agent.options
        return super()._learn(acted, progress)


def test_psi_moves_after_theta_and_phi() -> None:
    assert order_of(PPO) == "propose model guide"
    assert order_of(GuideFirst) == "propose guide propose model guide"


def test_the_guides_own_moves_never_reach_the_ratio() -> None:
    """Two runs that differ in how the guide is taught alone: theta, phi and the critic end up in the same place."""
    ends = []
    for epochs in (0, 3):
        ppo = ppo_for(agent_options=replace(SMALL, guide_epochs=epochs), estimator=ConditionalIS(3, Guide()))
        ppo.update()
        policy = ppo.agent.policy
        ends.append([p.detach().clone() for p in model_parameters(policy)] + parameters_of(ppo.critic))
    assert same(*ends)


# --- guards -----------------------------------------------------------------------------------------------------------


def spoil(rollout: Rollout, how: str) -> Rollout:
    steps = rollout.transitions
    if how == "rows":
        return replace(rollout, transitions=replace(steps, action=steps.action.roll(1)))
    return replace(rollout, transitions=replace(steps, log_joint=steps.log_joint + 0.01))


@pytest.mark.parametrize("kind", ["mixture", "plain"])
@pytest.mark.parametrize("how", ["policy", "normaliser", "rows", "record"])
def test_a_rollout_of_another_policy_is_refused_before_anything_moves(kind: str, how: str) -> None:
    ppo = ppo_for(kind, normalized=True)
    assert ppo.collector is not None
    collect = ppo.collector.collect
    before: list[Tensor] = []

    def late(policy: LatentPolicy, *, num_steps: int) -> Rollout:
        rollout = collect(policy, num_steps=num_steps)
        if how == "policy":
            with torch.no_grad():
                policy.decoder_parameters()[0].add_(0.01)
        elif how == "normaliser":
            assert ppo.normalizer is not None
            ppo.normalizer.update(rollout.transitions.obs)
        else:
            rollout = spoil(rollout, how)
        before.extend(parameters_of(ppo.agent.policy, ppo.critic))
        return rollout

    ppo.collector.collect = late  # type: ignore[method-assign, assignment]
    with pytest.raises(RecordedLatentError, match="no longer what it was"):
        ppo.update()
    assert same(before, parameters_of(ppo.agent.policy, ppo.critic))
    assert ppo.num_updates == 0


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_environments_that_give_no_numbers_are_refused(what: str) -> None:
    bad = {"bad_obs": math.nan} if what == "observation" else {"bad_reward": math.inf}
    envs = vectorize([lambda: Scripted(length=4), lambda: Scripted(length=4, **bad)])  # type: ignore[arg-type]
    agent = Agent(policy_for(envs), estimator=ConditionalIS(3), options=SMALL)
    ppo = PPO(envs, agent, critic_for(envs), options=PPOOptions(num_steps=8), seed=0)
    before = parameters_of(agent.policy, ppo.critic)
    with pytest.raises(EnvironmentFault, match=f"member 1 gave a {what} that is not finite"):
        ppo.update()
    assert same(before, parameters_of(agent.policy, ppo.critic))


@dataclass(frozen=True)
class Wild:
    """Exact, but log pi of one row is far off whenever a gradient is asked for."""

    by: float

    def propose(self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Any = None) -> Particles:  # noqa: ANN401
        return Exact().propose(policy, obs, action, latents)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        log_prob = Exact().estimate(policy, obs, action, particles).log_prob
        if torch.is_grad_enabled():
            log_prob = log_prob + torch.nn.functional.one_hot(torch.tensor(2), len(log_prob)) * self.by
        return Estimate(log_prob)


@pytest.mark.parametrize(("by", "got"), [(math.inf, "inf in 1 of 16|nan in 16 of 16"), (1e4, "inf in 1 of 16")])
def test_a_ratio_that_is_no_number_is_refused(by: float, got: str) -> None:
    ppo = ppo_for(estimator=Wild(by))
    before = parameters_of(ppo.agent.policy, ppo.critic)
    with pytest.raises(LearningFault, match=rf"a ratio is not finite\n(.*\n)*  got:      ({got})"):
        ppo.update()
    assert same(before, parameters_of(ppo.agent.policy, ppo.critic))
    assert ppo.agent.model.state() == {} == ppo.value.state()


def test_a_critic_that_gives_no_numbers_is_refused() -> None:
    ppo = ppo_for()
    with torch.no_grad():
        next(iter(ppo.critic.parameters())).fill_(math.nan)
    before = parameters_of(ppo.agent.policy)
    with pytest.raises(LearningFault, match="an advantage is not finite"):
        ppo.update()
    assert same(before, parameters_of(ppo.agent.policy))


@pytest.mark.production
def test_a_critic_that_is_no_module_is_refused() -> None:
    critic: Any = lambda obs: obs.sum(-1)  # noqa: E731
    envs = make_envs("CartPole-v1", 2)
    with pytest.raises(OptionError, match=r"`critic`\n  expected: an nn.Module\n  got:      function"):
        PPO(envs, Agent(policy_for(envs), estimator=Exact()), critic, seed=0)


BAD: list[tuple[str, Any, str]] = [
    *[(name, value, "an integer >= 1") for name in ("num_steps", "num_epochs") for value in (0, True, 2.0)],
    *[(name, v, r"a number in \[0, 1\]") for name in ("gamma", "gae_lambda") for v in (-0.1, 1.1, math.nan)],
    *[
        (name, value, "a number > 0")
        for name in ("clip_range", "clip_range_high", "clip_range_vf", "target_kl", "value_learning_rate")
        for value in (0.0, -1.0, math.inf, math.nan)
    ],
]


@pytest.mark.production
@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_bad_options_are_refused(name: str, value: Any, expected: str) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=rf"PPOOptions\(\): `{name}`\n  expected: {expected}\n  got:      .*"):
        PPOOptions(**{name: value})


# --- options ----------------------------------------------------------------------------------------------------------


def test_annealing_reaches_every_rate_and_the_clip() -> None:
    annealed = AgentOptions(learning_rate=0.4, guide_learning_rate=0.2, anneal=True, batch_size=16)
    options = PPOOptions(
        num_steps=8, num_epochs=1, clip_range=0.2, clip_range_high=0.4, anneal_clip=True, value_learning_rate=0.1
    )
    ppo = ppo_for(agent_options=annealed, options=options)
    ppo.update(0.75)
    parts = (ppo.agent.model, ppo.agent.guide, ppo.value)
    assert [part.learning_rate for part in parts] == [0.1, 0.05, 0.025]
    assert ppo._clip(0.75) == (0.05, 0.1)
    assert ppo._clip(1.0)[0] > 0.0
    assert ppo_for(options=PPOOptions(num_steps=8))._clip(0.75) == (0.2, None)
    before = parameters_of(ppo.agent.policy, ppo.critic)
    ppo.update(1.0)
    assert same(before, parameters_of(ppo.agent.policy, ppo.critic))


def test_a_progress_beyond_the_run_is_refused() -> None:
    with pytest.raises(OptionError, match="`progress`"):
        ppo_for().update(1.5)


def test_epochs_stop_at_the_target_divergence() -> None:
    fast = AgentOptions(learning_rate=0.05, batch_size=16, gap_every=0)

    def told(target: float | None) -> Any:  # noqa: ANN401
        options = PPOOptions(num_steps=16, num_epochs=5, target_kl=target)
        return ppo_for(agent_options=fast, options=options).update()

    free, stopped, wide = told(None), told(1e-4), told(1e4)
    assert (free["train/epochs"], free["train/stopped_early"]) == (5.0, 0.0)
    assert (wide["train/epochs"], wide["train/stopped_early"]) == (5.0, 0.0)
    assert stopped["train/epochs"] < 5.0 and stopped["train/stopped_early"] == 1.0
    assert stopped["train/approx_kl"] > 1.5e-4


def test_a_resetting_environments_dummy_rows_are_never_learnt_from() -> None:
    ppo = ppo_for(num_envs=4, vectorization_mode="native", options=PPOOptions(num_steps=40, num_epochs=2))
    seen, scored = rollouts_of(ppo), []
    score = Stored.score

    def noted(self: Stored, policy: LatentPolicy, index: Tensor) -> Any:  # noqa: ANN401
        scored.append(index)
        return score(self, policy, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stored, "score", noted)
        ppo.update()
    (rollout,) = seen
    assert 0 < int((~rollout.mask).sum()) and ppo.num_timesteps == int(rollout.mask.sum()) < 160
    used = torch.cat(scored)
    assert rollout.mask[used].all()
    counts = torch.bincount(used, minlength=160)
    assert (counts[rollout.mask] == 3).all()  # two epochs, and one of the guide's


def test_the_advantage_before_a_dummy_row_is_that_of_an_episodes_end() -> None:
    ppo = ppo_for(num_envs=4, vectorization_mode="native", options=PPOOptions(num_steps=40, gae_lambda=0.9))
    seen = rollouts_of(ppo)
    ppo.update()
    (rollout,) = seen
    data = ppo._evaluate(rollout)
    last = rollout.transitions.terminated & rollout.mask
    assert last.any()
    torch.testing.assert_close(data.advantage[last], rollout.transitions.reward[last] - data.value[last])


def test_rewards_are_scaled_before_credit_is_given() -> None:
    """The episodes' returns are told raw; the targets are in units of the discounted return's deviation."""
    options = PPOOptions(num_steps=16, num_epochs=1, normalize_reward=True)
    scaled, raw = ppo_for(options=options), ppo_for(options=replace(options, normalize_reward=False))
    seen, plain = rollouts_of(scaled), rollouts_of(raw)
    told, other = scaled.update(), raw.update()
    assert told.get("rollout/ep_rew_mean") == other.get("rollout/ep_rew_mean")
    assert torch.equal(seen[0].transitions.reward, plain[0].transitions.reward)
    assert scaled.scaler is not None and raw.scaler is None
    returns, carried = [], torch.zeros(2)
    shape = seen[0].time_major
    for reward, done in zip(shape(seen[0].transitions.reward), shape(seen[0].transitions.done), strict=True):
        carried = 0.99 * carried + reward
        returns.append(carried.clone())
        carried = carried.masked_fill(done, 0.0)
    deviation = torch.stack(returns).double().std(correction=0)
    torch.testing.assert_close(
        scaled.scaler.scale(torch.ones(1)), (1.0 / deviation).float().reshape(1), rtol=1e-5, atol=0
    )


def test_a_constant_target_leaves_its_explained_variance_out() -> None:
    """Episodes of one step and reward one: nothing varies that could be explained."""
    envs = scripted(2, length=1)
    ppo = PPO(
        envs,
        Agent(policy_for(envs), estimator=ConditionalIS(2), options=SMALL),
        critic_for(envs),
        options=PPOOptions(num_steps=4, num_epochs=1, gae_lambda=1.0),
        seed=0,
    )
    metrics = dict(ppo.update())
    assert metrics["rollout/ep_rew_mean"] == 1.0
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_minibatch_of_one_row_is_learnt_from_as_it_is() -> None:
    one = replace(SMALL, batch_size=1)
    metrics = ppo_for(agent_options=one, options=PPOOptions(num_steps=2, num_epochs=1)).update()
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["train/grad_norm"] > 0.0


@pytest.mark.parametrize("kind", ["mixture", "plain"])
def test_metrics_have_the_fields_names(kind: str) -> None:
    ppo = ppo_for(
        kind,
        agent_options=AgentOptions(batch_size=16, entropy_coefficient=0.01),
        options=PPOOptions(num_steps=40, num_epochs=1),
    )
    metrics = ppo.update()
    expected = {
        *(f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean", "episodes")),
        *(
            f"train/{name}"
            for name in ("policy_gradient_loss", "entropy", "grad_norm", "value_grad_norm", "value_loss")
        ),
        *(f"train/{name}" for name in ("clip_fraction", "approx_kl", "ratio_mean", "epochs", "stopped_early")),
        *(f"train/{name}" for name in ("explained_variance", "surrogate_gap", "ratio_mean_fresh")),
    }
    if kind == "mixture":
        expected |= {"train/ess", "train/guide_grad_norm", "train/guide_loss"}
        assert 0.25 <= metrics["train/ess"] <= 1.0
    assert set(metrics) == expected


def test_a_clipped_value_moves_less() -> None:
    moved = []
    for clip in (None, 1e-4):
        ppo = ppo_for(options=PPOOptions(num_steps=16, num_epochs=4, clip_range_vf=clip, value_learning_rate=1e-2))
        before = parameters_of(ppo.critic)
        ppo.update()
        moved.append(sum(float((a - b).abs().sum()) for a, b in zip(before, parameters_of(ppo.critic), strict=True)))
    assert 0.0 < moved[1] < 0.6 * moved[0]


# --- shared encoders --------------------------------------------------------------------------------------------------


def test_a_shared_encoder_belongs_to_the_policy() -> None:
    envs = make_envs("CartPole-v1", 2)
    encoder = nn.Linear(4, 6)
    policy = policy_for(envs, encoder=encoder)
    agent = Agent(policy, estimator=ConditionalIS(3), options=SMALL)
    critic = nn.Sequential(encoder, NetworkCritic(6, hidden=(4,)))
    ppo = PPO(envs, agent, critic, options=PPOOptions(num_steps=16, num_epochs=1), seed=0)
    assert ppo.value.names == [name for name, _ in critic.named_parameters() if name.startswith("1.")]
    start = encoder.weight.detach().clone()
    ppo.value.step(critic(torch.randn(5, 4)).sum())
    assert torch.equal(encoder.weight, start)
    ppo.update()
    assert not torch.equal(encoder.weight, start)


def test_a_shared_normaliser_moves_once_and_after_the_update() -> None:
    ppo = ppo_for(normalized=True)
    assert ppo.normalizer is not None and int(ppo.normalizer.count) == 0
    ppo.update()
    assert int(ppo.normalizer.count) == 32
    state = ppo.state()
    for place in ("agent.policy.trunk.encoder.mean", "critic.0.mean"):
        assert torch.equal(state[place], ppo.normalizer.mean)
    other = ppo_for(normalized=True)
    other.restore(state)
    assert other.normalizer is not None and torch.equal(other.normalizer.mean, ppo.normalizer.mean)
    assert other.agent.policy.trunk.encoder is other.normalizer is other.critic[0]  # type: ignore[union-attr, index]


# --- going on ---------------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "agent_options": AgentOptions(batch_size=16, entropy_coefficient=0.01, anneal=True, gap_every=2),
    "options": PPOOptions(num_steps=16, num_epochs=2, normalize_reward=True, anneal_clip=True),
    "normalized": True,
}


@pytest.mark.parametrize("use", ["stored", "fresh"])
@pytest.mark.parametrize("kind", ["mixture", "plain"])
def test_an_interrupted_run_is_the_run(kind: str, use: Any) -> None:  # noqa: ANN401
    options = {**EVERYTHING, "agent_options": replace(EVERYTHING["agent_options"], particles=use)}
    whole = ppo_for(kind, **options)
    assert isinstance(whole, Learner)
    told = [dict(whole.update(n / 6)) for n in range(6)]
    first, second = ppo_for(kind, **options), ppo_for(kind, **options)
    for n in range(3):
        first.update(n / 6)
    state = first.state()
    assert all(isinstance(value, Tensor) for value in state.values())
    kept = {name: value.clone() for name, value in state.items()}
    for _ in range(2):
        first.update(0.9)  # a state is a copy: what goes on elsewhere does not reach it
    assert same_state(state, kept)
    second.restore(state)
    again = [dict(second.update(n / 6)) for n in range(3, 6)]
    assert again == told[3:]
    assert same_state(whole.state(), second.state())
    assert (second.num_updates, second.num_timesteps) == (6, 6 * 32)


def test_updates_do_not_hang_on_the_ambient_stream() -> None:
    ends = []
    for seed in (0, 1):
        ppo = ppo_for()
        with seeded(seed):
            state = torch.get_rng_state()
            ppo.update()
            assert torch.equal(torch.get_rng_state(), state)
        ends.append(ppo.state())
    assert same_state(*ends)


CONTINUE = """
import sys
import torch
from safetensors.torch import load_file, save_file
from tests.learners.small import ppo_for
from tests.learners.test_ppo import EVERYTHING
torch.set_num_threads(1)
ppo = ppo_for(**EVERYTHING)
ppo.restore(load_file(sys.argv[1]))
for n in range(3, 6):
    ppo.update(n / 6)
save_file({name: value.contiguous() for name, value in ppo.state().items()}, sys.argv[2])
"""


@pytest.mark.slow
def test_an_interrupted_run_is_the_run_in_another_process(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = ppo_for(**EVERYTHING)
    for n in range(6):
        if n == 3:
            state = {name: value.contiguous() for name, value in whole.state().items()}
            save_file(state, tmp_path / "half.safetensors")
        whole.update(n / 6)
    files = [str(tmp_path / name) for name in ("half.safetensors", "end.safetensors")]
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", CONTINUE, *files], check=True, cwd=root, timeout=300)
    assert same_state(load_file(files[1]), whole.state())


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["stored", "fresh"])
def test_either_use_of_particles_teaches_every_part(use: Any) -> None:  # noqa: ANN401
    ppo = ppo_for(agent_options=replace(SMALL, particles=use), objective=Recorded())
    before = copy.deepcopy(ppo.agent.policy), copy.deepcopy(ppo.critic)
    ppo.update()
    policy = ppo.agent.policy
    assert isinstance(policy, MixturePolicy) and isinstance(before[0], MixturePolicy)
    for part in ("prior_parameters", "decoder_parameters", "guide_parameters"):
        pairs = zip(getattr(before[0], part)(), getattr(policy, part)(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part
    assert not same(parameters_of(before[1]), parameters_of(ppo.critic))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "plain"])
def test_cartpole_is_learnt(kind: str) -> None:
    envs = make_envs("CartPole-v1", 8)
    policy = policy_for(envs, kind, hidden=(64, 64))
    estimator = ClosedForm() if kind == "plain" else ConditionalIS(8)
    options = AgentOptions(learning_rate=1e-3, batch_size=256, anneal=True, gap_every=0)
    with seeded(0):
        critic = NetworkCritic(4, init="orthogonal")
    ppo = PPO(
        envs,
        Agent(policy, estimator=estimator, options=options),
        critic,
        options=PPOOptions(
            num_steps=32, num_epochs=20, gamma=0.98, gae_lambda=0.8, anneal_clip=True, value_learning_rate=1e-3
        ),
        seed=0,
    )
    returns: list[float] = []
    while ppo.num_timesteps < 60_000:
        metrics = ppo.update(ppo.num_timesteps / 60_000)
        returns += [metrics["rollout/ep_rew_mean"]] if "rollout/ep_rew_mean" in metrics else []
    assert sum(returns[-20:]) / 20 > 400


def test_the_record_is_of_the_acting_policy() -> None:
    """What PPO hands its guard is log p(z, a | s) of the parameters that acted."""
    ppo = ppo_for()
    seen, before = rollouts_of(ppo), copy.deepcopy(ppo.agent.policy)
    ppo.update()
    steps = seen[0].transitions
    latents = {name: value.unsqueeze(0) for name, value in steps.latents.items()}
    torch.testing.assert_close(log_joint(before, steps.obs, steps.action, latents)[0].detach(), steps.log_joint)
