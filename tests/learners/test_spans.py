"""Rows that span several steps: collected, credited, and with the exact policy gradient in expectation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from latentpg.envs.avoiding import make_env
from latentpg.errors import OptionError
from latentpg.estimators import ConditionalIS, Estimator, JointScore, PosteriorIS
from latentpg.learners import GRPO, PPO, Agent, AgentOptions, GRPOOptions, PPOOptions
from latentpg.learners.episodic import episode_batch
from latentpg.learners.group_credit import group_advantages
from latentpg.learners.grpo_rows import grpo_rows
from latentpg.learners.spans import span_credit, span_gae
from latentpg.numerics.rng import seeded
from latentpg.numerics.surrogates import ppo_clip
from latentpg.numerics.targets import gae
from latentpg.policies import ChunkPolicy, CodeLatent, EpisodePolicy, GaussianLatent
from latentpg.programs import Span, log_joint, model_parameters
from latentpg.rollout import (
    Decisions,
    EnvironmentFault,
    Episodes,
    SpanRows,
    Transitions,
    collect_chunks,
    collect_episodes,
    collect_groups,
    make_envs,
)
from latentpg.values import NetworkCritic
from tests.learners.test_exact_gradient import expected_gradient

EXACT = 1e-10
AVOIDING = "latentpg/Avoiding-v0"


# ----------------------------------------------------------------------------------------------------- exact gradients

HORIZON, STEPS = 2, 3
STAYS = torch.tensor([[0.7, 0.4], [0.5, 0.9]], dtype=torch.float64)
"""Chance [s, a] that the episode goes on, in the other of two states."""

PAYS = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
"""Reward [s, a]."""


@dataclass(frozen=True)
class Path:
    """An episode as it can happen: states, actions, the code of each of its chunks, and the chance of its course."""

    states: tuple[int, ...] = ()
    actions: tuple[int, ...] = ()
    codes: tuple[int, ...] = ()
    chance: float = 1.0


def every_path() -> list[Path]:
    """Three steps at most, a decision at the first and one at the third; it starts in state 0."""
    found: list[Path] = []

    def go_on(path: Path) -> None:
        step = len(path.states)
        for code in range(2) if step % HORIZON == 0 else [None]:
            for action in range(2):
                state = step % 2
                codes = path.codes if code is None else (*path.codes, code)
                longer = (*path.states, state), (*path.actions, action), codes
                stays = float(STAYS[state, action])
                if step + 1 == STEPS:
                    found.append(Path(*longer, path.chance))
                else:
                    found.append(Path(*longer, path.chance * (1 - stays)))
                    go_on(Path(*longer, path.chance * stays))

    go_on(Path())
    return found


@dataclass(frozen=True, eq=False)
class World:
    """A small policy over chunks of two actions in float64, and all its episodes."""

    policy: ChunkPolicy
    paths: list[Path] = field(default_factory=every_path)

    def episodes(self, index: list[int], group_size: int = 1) -> Episodes:
        """Make some of the episodes what a collector would have recorded."""
        obs, action, reward, ends, episode, begins = [], [], [], [], [], []
        spans: list[tuple[list[int], list[int], int]] = []
        for e, path in enumerate(self.paths[i] for i in index):
            last = len(path.states) - 1
            for t, (state, taken) in enumerate(zip(path.states, path.actions, strict=True)):
                obs.append(state)
                action.append(taken)
                reward.append(float(PAYS[state, taken]))
                ends.append(t == last)
                episode.append(e)
                begins.append(t % HORIZON == 0)
                if begins[-1]:
                    spans.append(([], [], path.codes[t // HORIZON]))
                spans[-1][0].append(state)
                spans[-1][1].append(taken)
        padded = [HORIZON - len(states) for states, _, _ in spans]
        seen = torch.tensor([s + [0] * p for (s, _, _), p in zip(spans, padded, strict=True)])
        mask = torch.tensor([[True] * len(s) + [False] * p for (s, _, _), p in zip(spans, padded, strict=True)])
        rows = Span(torch.eye(2, dtype=torch.float64)[seen] * mask.unsqueeze(-1), mask)
        done = torch.tensor([a + [0] * p for (_, a, _), p in zip(spans, padded, strict=True)])
        codes = torch.tensor([z for _, _, z in spans])
        with torch.no_grad():
            joint = log_joint(self.policy, rows, done, {"z": codes[None]})[0]
        over, zero = torch.tensor(ends), torch.zeros(len(obs), dtype=torch.float64)
        steps = Transitions(
            torch.eye(2, dtype=torch.float64)[torch.tensor(obs)],
            torch.tensor(action),
            {},
            zero,
            torch.tensor(reward, dtype=torch.float64),
            over,
            torch.zeros_like(over),
            torch.eye(2, dtype=torch.float64)[1 - torch.tensor(obs)],  # the states take turns
        )
        made = Decisions(SpanRows(rows, done, {"z": codes}, joint), torch.tensor(begins))
        return Episodes(steps, torch.tensor(episode), group_size, decisions=made)

    def log_prob(self) -> Tensor:
        """Log-probability of each episode with its codes, differentiable."""
        episodes = self.episodes(list(range(len(self.paths))))
        rows = episodes.spans()
        joint = log_joint(self.policy, rows.obs, rows.action, {"z": rows.latents["z"][None]})[0]
        total = joint.new_zeros(len(self.paths)).index_add(0, episodes.episode[episodes.begins], joint)
        return total + torch.tensor([path.chance for path in self.paths], dtype=torch.float64).log()

    def gradient(self, value: Tensor) -> Tensor:
        """Differentiate in theta and phi."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, model_parameters(self.policy))])

    def exact(self, gamma: float) -> Tensor:
        """Differentiate the sum over everything that can happen."""
        returns = [
            sum(gamma**t * float(PAYS[s, a]) for t, (s, a) in enumerate(zip(path.states, path.actions, strict=True)))
            for path in self.paths
        ]
        return self.gradient((self.log_prob().exp() * torch.tensor(returns, dtype=torch.float64)).sum())


@cache
def world() -> World:
    with seeded(4):
        policy = ChunkPolicy(
            spaces.Box(-1, 1, (2,)), spaces.Discrete(2), horizon=HORIZON, latent=CodeLatent(2), hidden=(3,)
        ).double()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return World(policy)


def grpo_gradient(estimator: Estimator, *, credit: Literal["episode", "reward-to-go"], gamma: float) -> Tensor:
    """Differentiate GRPO's objective on average, one group of two episodes an update."""
    here = world()
    every = torch.combinations(torch.arange(len(here.paths)), 2, with_replacement=True)
    chance = here.log_prob().detach().exp()[every].prod(-1) * (1 + (every[:, 0] != every[:, 1]).double())
    assert abs(float(chance.sum()) - 1) < EXACT
    options = GRPOOptions(
        group_size=2, advantage="rloo", aggregation="constant", gamma=gamma, credit=credit, latent="chunk"
    )
    episodes = here.episodes(every.flatten().tolist(), 2)
    advantage = group_advantages(episodes, episodes.transitions.reward, options=options)
    batch = episode_batch(episodes, advantage, aggregation="constant", horizon=1)
    weight = batch.weight * len(chance) * chance.repeat_interleave(2)
    return expected_gradient(
        here,  # type: ignore[arg-type]
        replace(batch, weight=weight),
        estimator,
        lambda log_prob, log_ratio, data, part: grpo_rows(log_prob, log_ratio, data, part, options=options).value,
    )


def ppo_gradient(estimator: Estimator, critic: nn.Module, *, trace_decay: float) -> Tensor:
    """Differentiate PPO's objective on average, one episode an update; undiscounted, as its gradient is then J's."""
    here = world()
    episodes = here.episodes(list(range(len(here.paths))))
    found = span_credit(episodes, critic, discount=1.0, trace_decay=trace_decay)
    batch = episode_batch(episodes, found.advantage, aggregation="constant", horizon=1)
    weight = here.log_prob().detach().exp()
    return expected_gradient(
        here,  # type: ignore[arg-type]
        replace(batch, weight=weight),
        estimator,
        lambda log_prob, log_ratio, data, part: (
            data.weight[data.episode[part]] * ppo_clip(log_ratio.exp(), data.advantage[part], epsilon=0.2)
        ),
    )


class Guess(nn.Module):
    """A critic that is wrong, and another in each state."""

    def forward(self, obs: Tensor) -> Tensor:
        return obs @ torch.tensor([0.7, -1.3], dtype=obs.dtype)


def off_by(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max())


ESTIMATORS = [JointScore(), ConditionalIS(1), ConditionalIS(2), ConditionalIS(3)]


@pytest.mark.parametrize("credit", ["episode", "reward-to-go"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_grpo_on_chunks_is_the_gradient(estimator: Estimator, credit: Literal["episode", "reward-to-go"]) -> None:
    exact = world().exact(0.8)
    assert exact.norm() > 0.05
    assert off_by(grpo_gradient(estimator, credit=credit, gamma=0.8), exact) < EXACT


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_ppo_on_chunks_is_the_gradient_with_any_critic(estimator: Estimator) -> None:
    exact = world().exact(1.0)
    assert off_by(ppo_gradient(estimator, Guess(), trace_decay=1.0), exact) < EXACT


def test_a_wrong_critic_and_a_short_trace_turn_it() -> None:
    """So that the tests above could have failed."""
    assert off_by(ppo_gradient(ConditionalIS(2), Guess(), trace_decay=0.0), world().exact(1.0)) > 1e-3


def test_fresh_particles_alone_are_biased() -> None:
    assert off_by(grpo_gradient(PosteriorIS(1), credit="episode", gamma=0.8), world().exact(0.8)) > 1e-2


# -------------------------------------------------------------------------------------------------------------- credit


def test_the_advantage_of_decisions_by_hand() -> None:
    r"""Two episodes, γ = λ = .5: a span of 2 and one of 1 that terminates; a span of 3 that is cut."""
    found = span_gae(
        torch.tensor([1.0, 2.0, 4.0]),
        torch.tensor([0.5, 0.25, 1.0]),
        torch.tensor([8.0, 100.0, 16.0]),
        torch.tensor([False, True, False]),
        torch.tensor([False, False, True]),
        torch.tensor([2, 1, 3]),
        discount=0.5,
        trace_decay=0.5,
    )
    second = 2.0 - 0.25
    assert found.tolist() == [1.0 + 0.25 * 8.0 - 0.5 + 0.25 * 0.5 * second, second, 4.0 + 0.125 * 16.0 - 1.0]


def test_spans_of_one_step_have_the_advantage_of_steps() -> None:
    with seeded(0):
        reward, value, following = torch.randn(3, 6).unbind()
    terminated = torch.tensor([False, False, True, False, False, False])
    truncated = torch.tensor([False, False, False, False, False, True])
    ends = terminated, truncated
    column = [each.unsqueeze(1) for each in (reward, value, following, *ends)]
    steps = gae(*column, discount=0.9, trace_decay=0.8).squeeze(1)
    one = torch.ones(6, dtype=torch.int64)
    found = span_gae(reward, value, following, *ends, one, discount=0.9, trace_decay=0.8)
    torch.testing.assert_close(found, steps, atol=1e-6, rtol=0)


def test_rewards_are_discounted_within_a_span() -> None:
    here = world()
    longest = max(range(len(here.paths)), key=lambda i: len(here.paths[i].states))
    path = here.paths[longest]
    first, second, third = (float(PAYS[s, a]) for s, a in zip(path.states, path.actions, strict=True))
    found = span_credit(here.episodes([longest]), Guess(), discount=0.5, trace_decay=1.0)
    assert found.value.tolist() == pytest.approx([0.7, 0.7])
    expected = [first + 0.5 * second + 0.25 * third - 0.7, third - 0.7]
    assert found.advantage.tolist() == pytest.approx(expected, abs=1e-12)


# --------------------------------------------------------------------------------------------------------- collecting


def chunk_policy() -> tuple[Any, ChunkPolicy]:
    envs = make_envs(AVOIDING, 3, vectorization_mode="native")
    with seeded(0):
        made = ChunkPolicy(envs.single_observation_space, envs.single_action_space, horizon=40, hidden=(8,))
    return envs, made


def test_episodes_by_chunks_are_the_chunks_that_are_collected_alone() -> None:
    envs, policy = chunk_policy()
    with seeded(1):
        chunks = collect_chunks(envs, policy, num_episodes=4, seed=0, execute=30)
    with seeded(1):
        episodes = collect_episodes(envs, policy, num_episodes=4, seed=0, latent="chunk", execute=30)
    rows = episodes.spans()
    assert torch.equal(rows.action, chunks.rows.action) and torch.equal(rows.obs.mask, chunks.rows.obs.mask)
    assert torch.equal(rows.log_joint, chunks.rows.log_joint) and torch.equal(episodes.returns, chunks.returns)
    assert torch.equal(episodes.episode[episodes.begins], chunks.episode)
    assert torch.equal(rows.obs.first, episodes.transitions.obs[episodes.begins])
    assert int(episodes.begins.sum()) > 4  # an episode of 250 steps has nine chunks


def test_groups_play_chunks_too() -> None:
    envs, policy = chunk_policy()
    with seeded(1):
        found = collect_groups(envs, policy, num_groups=2, group_size=2, seed=0, latent="chunk", execute=40)
    assert found.group_returns.shape == (2, 2) and found.spans().action.shape[1:] == (40, 2)


@pytest.mark.parametrize(("latent", "execute"), [("step", 2), ("episode", 2), ("chunk", 0)])
def test_what_is_carried_out_must_be_of_a_chunk(latent: str, execute: int) -> None:
    envs, policy = chunk_policy()
    with pytest.raises(OptionError, match=r"`execute`[\s\S]*latent=\"chunk\""):
        collect_episodes(envs, policy, num_episodes=2, seed=0, latent=latent, execute=execute)


# ----------------------------------------------------------------------------------------------------------- learning


def learner(
    kind: str,
    span: str,
    *,
    members: int = 2,
    hold_prior: bool = False,
    **options: Any,  # noqa: ANN401 (options)
) -> PPO | GRPO:
    envs = make_envs(AVOIDING, members, vectorization_mode="native")
    boxes = envs.single_observation_space, envs.single_action_space
    with seeded(0):
        latent = GaussianLatent(2, "learned")
        policy = (
            ChunkPolicy(*boxes, horizon=50, latent=latent, hidden=(6,))
            if span == "chunk"
            else EpisodePolicy(*boxes, latent=latent, hidden=(6,))
        )
        agent = Agent(
            policy, estimator=ConditionalIS(3), options=AgentOptions(gap_every=0, guide_epochs=0, hold_prior=hold_prior)
        )
        if kind == "grpo":
            made: Any = GRPOOptions(num_groups=1, group_size=2, num_epochs=1, latent=span, **options)  # type: ignore[arg-type]
            return GRPO(envs, agent, options=made, seed=0, execute=50 if span == "chunk" else None)
        made = PPOOptions(num_episodes=2, num_epochs=1, latent=span, **options)  # type: ignore[arg-type]
        return PPO(
            envs, agent, NetworkCritic(4, hidden=(6,)), options=made, seed=0, execute=50 if span == "chunk" else None
        )


def weights(module: Any) -> list[Tensor]:  # noqa: ANN401 (a policy or a critic)
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("span", ["chunk", "episode"])
def test_the_first_ratio_is_one_and_everything_moves(span: str) -> None:
    ppo = learner("ppo", span, normalize_reward=True, normalize_advantage=False)
    assert isinstance(ppo, PPO)
    policy, critic = weights(ppo.agent.policy), weights(ppo.critic)
    told = ppo.update()
    assert told["train/ratio_mean"] == pytest.approx(1.0, abs=1e-3)  # 250 steps in float32
    assert told["rollout/episodes"] == 2 and ppo.num_timesteps >= 2 * told["rollout/ep_len_mean"]
    assert moved(policy, weights(ppo.agent.policy)) and moved(critic, weights(ppo.critic))


def test_the_critic_alone_moves_while_it_warms_up() -> None:
    ppo = learner("ppo", "episode", value_warmup_updates=1)
    assert isinstance(ppo, PPO)
    policy, critic = weights(ppo.agent.policy), weights(ppo.critic)
    ppo.update()
    assert not moved(policy, weights(ppo.agent.policy)) and moved(critic, weights(ppo.critic))
    ppo.update()
    assert moved(policy, weights(ppo.agent.policy))


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize("span", ["chunk", "episode"])
def test_the_reference_is_the_policy_at_the_start_and_is_kept(kind: str, span: str) -> None:
    one, two = learner(kind, span, kl_coefficient=0.5), learner(kind, span, kl_coefficient=0.5)
    start = weights(one.reference)
    assert "train/kl_reference" in one.update()
    one.update()
    assert not moved(start, weights(one.reference))
    state = one.state()
    assert any(name.startswith("reference.") for name in state) and not any("collector" in name for name in state)
    two.restore(state)
    after = two.update(), one.update()
    assert after[0] == after[1]
    assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_prior_that_is_held_stays_and_the_decoder_moves(kind: str) -> None:
    held = learner(kind, "episode", hold_prior=True, kl_coefficient=0.5)
    policy = held.agent.policy
    prior, decoder = (
        [p.detach().clone() for p in each()] for each in (policy.prior_parameters, policy.decoder_parameters)
    )
    for _ in range(2):
        held.update()
    assert len(prior) > 0 and not moved(prior, policy.prior_parameters())
    assert moved(decoder, policy.decoder_parameters())


def test_the_penalty_is_zero_at_the_reference_and_then_pulls_back() -> None:
    r"""k3 of log pi_ref - log pi, by hand: its value grows from 0 once the policy has moved."""
    ppo = learner("ppo", "episode", kl_coefficient=0.5, normalize_advantage=False)
    assert ppo.update()["train/kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert ppo.update()["train/kl_reference"] > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": "chunk"}, r"num_episodes"),
        ({"latent": "episode"}, r"num_episodes=16"),
        ({"latent": "run"}, r"`latent`"),
        ({"num_episodes": 0}, r"`num_episodes`"),
        ({"kl_coefficient": -1.0}, r"`kl_coefficient`"),
        ({"kl_coefficient": math.inf}, r"`kl_coefficient`"),
        ({"value_warmup_updates": -1}, r"`value_warmup_updates`"),
    ],
    ids=str,
)
@pytest.mark.production
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PPOOptions(**options)


def test_environments_that_reset_themselves_are_refused() -> None:
    envs = SyncVectorEnv([make_env], autoreset_mode=AutoresetMode.NEXT_STEP)
    made = learner("ppo", "episode")
    assert isinstance(made, PPO)
    with pytest.raises((OptionError, EnvironmentFault), match="reset"):
        PPO(envs, made.agent, made.critic, options=made.options, seed=0)
    envs.close()


def test_steps_may_come_by_whole_episodes_as_well() -> None:
    ppo = learner("ppo", "episode")
    assert isinstance(ppo, PPO)
    options = PPOOptions(num_episodes=3, num_epochs=1, latent="step")
    whole = PPO(ppo.envs, ppo.agent, ppo.critic, options=options, seed=0)
    assert whole.update()["rollout/episodes"] == 3
