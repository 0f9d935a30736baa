"""Acting by chunks: what is executed, what is scored, what is recorded; and averages of predictions."""

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from latentpg import seeded
from latentpg.envs.avoiding import EPISODE_STEPS, episode_modes
from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import ConditionalIS
from latentpg.policies import ChunkPolicy, CodeLatent, GaussianLatent, GaussianPolicy, decode_actions
from latentpg.policies.priors import Latent
from latentpg.programs import Categorical, DiagNormal, Span, act, log_joint
from latentpg.rollout import Chunks, EnvironmentFault, check_record, collect_chunks, make_envs, play_ensembled
from tests.rollout.scripted import Scripted, scripted

MOVES = spaces.Box(-1.0, 1.0, (1,))
HORIZON = 4
LEARNED = GaussianLatent(2, "learned")


def chunk_policy(*, latent: Latent = LEARNED, space: spaces.Space[Any] = MOVES) -> ChunkPolicy:
    seen = spaces.Box(-np.inf, np.inf, (3,))
    with seeded(0):
        return ChunkPolicy(seen, space, horizon=HORIZON, latent=latent, hidden=(6,))


def play(number: int = 7, *, members: int = 3, execute: int | None = 2) -> Chunks:
    envs = scripted(members, action_space=MOVES)
    with seeded(1):
        return collect_chunks(envs, chunk_policy(), num_episodes=number, seed=0, execute=execute)


# ----------------------------------------------------------------------------------------------------------- open loop


@pytest.mark.parametrize("execute", [1, 2, 3, None])
@pytest.mark.parametrize("members", [1, 3, 9])
def test_chunks_cover_each_episode_once_and_in_order(members: int, execute: int | None) -> None:
    """The scripted episode shows its step's number, and pays it: every step of every episode is there once."""
    chunks, at_most = play(members=members, execute=execute), execute or HORIZON
    seen, paid = chunks.steps(chunks.rows.obs.obs), chunks.steps(chunks.reward)
    lengths = chunks.lengths
    assert chunks.num_episodes == 7 and len(seen) == int(lengths.sum())
    assert seen[:, 1].tolist() == [float(t) for length in lengths.tolist() for t in range(length)]
    assert torch.equal(paid, seen[:, 1] + 1)
    assert chunks.returns.tolist() == [length * (length + 1) / 2 for length in lengths.tolist()]
    for episode, length in enumerate(lengths.tolist()):
        mine = chunks.episode == episode
        wanted = [min(at_most, length - start) for start in range(0, length, at_most)]
        assert chunks.executed[mine].tolist() == wanted
        assert chunks.terminated[mine].tolist() == [False] * (len(wanted) - 1) + [True]
        assert len(chunks.rows.obs.obs[mine][..., 0][chunks.rows.obs.mask[mine]].unique()) == 1  # one start
    assert not chunks.truncated.any()
    assert torch.equal(chunks.next_obs[:, 1], chunks.rows.obs.first[:, 1] + chunks.executed)


def test_members_do_not_change_which_episodes_are_played() -> None:
    starts = [play(members=members).rows.obs.first for members in (1, 4)]
    for_one = [sorted(first[:, 0].unique().tolist()) for first in starts]
    assert for_one[0] == for_one[1] and len(for_one[0]) == 7


def test_one_member_acts_as_a_plain_loop_does() -> None:
    """Decide, execute two, decide again, written out; the same draws give the same numbers, bit for bit."""
    chunks, policy, env = play(4, members=1), chunk_policy(), Scripted(action_space=MOVES)
    start_of = {int(first[0]): e for first, e in zip(chunks.rows.obs.first, chunks.episode.tolist(), strict=True)}
    starts = {e: start for start, e in start_of.items()}
    rows: list[tuple[Tensor, Tensor]] = []
    with seeded(1):
        for episode in range(4):
            env.reset(seed=find_seed(starts[episode]))
            step, over = 0, False
            while not over:
                obs = torch.tensor([[env.start, env.steps, env.noise]], dtype=torch.float32)
                acted = act(policy, obs)
                rows.append((acted.action[0], acted.latents["z"][0]))
                for _ in range(2):
                    _, _, over, _, _ = env.step(0)
                    step += 1
                    if over:
                        break
    assert len(rows) == chunks.num_chunks
    for (action, z), mine, mask, latent in zip(
        rows, chunks.rows.action, chunks.rows.obs.mask, chunks.rows.latents["z"], strict=True
    ):
        assert torch.equal(mine[mask], action[mask]) and torch.equal(latent, z)


def find_seed(start: int) -> int:
    """Look up the seed of an episode by its start, among those that the queue takes."""
    from latentpg.rollout.edge import start_seeds
    from latentpg.rollout.environments import LARGEST_SEED

    for seed in start_seeds(0, 0, 4, LARGEST_SEED):
        env = Scripted()
        env.reset(seed=int(seed))
        if int(env.start) == start:
            return int(seed)
    raise AssertionError("no such episode")


def test_only_executed_actions_are_kept_and_scored() -> None:
    chunks, policy = play(execute=3), chunk_policy()
    rows = chunks.rows
    behind = ~rows.obs.mask
    assert bool((rows.action[behind] == 0).all()) and bool((rows.obs.obs[behind] == 0).all())
    assert bool((rows.action[rows.obs.mask] != 0).all())
    z = {"z": rows.latents["z"].unsqueeze(0)}
    with torch.no_grad():
        again = log_joint(policy, rows.obs, rows.action, z)[0]
        every = log_joint(policy, Span(rows.obs.obs, torch.ones_like(rows.obs.mask)), rows.action, z)[0]
    assert torch.equal(again, rows.log_joint)
    assert bool((every != rows.log_joint).all())  # three of four at most were executed
    assert check_record(policy, rows.obs, rows.action, rows.latents, rows.log_joint) == 0.0


def test_an_estimator_that_keeps_the_recorded_latent_takes_the_rows() -> None:
    chunks, policy, estimator = play(), chunk_policy(), ConditionalIS(num_particles=5)
    rows = chunks.rows
    particles = estimator.propose(policy, rows.obs, rows.action, rows.latents)
    assert torch.equal(particles.latents["z"][0], rows.latents["z"])
    estimate = estimator.estimate(policy, rows.obs, rows.action, particles)
    assert estimate.log_prob.shape == (chunks.num_chunks,)
    estimate.log_prob.sum().backward()  # nothing of an inference tensor is left
    assert all(p.grad is not None for p in policy.decoder_parameters())


def test_codes_and_discrete_actions() -> None:
    policy, envs = chunk_policy(latent=CodeLatent(3), space=spaces.Discrete(2)), scripted(2)
    chunks = collect_chunks(envs, policy, num_episodes=3, seed=0)
    assert chunks.rows.action.dtype == torch.int64 and chunks.rows.action.shape[1:] == (HORIZON,)
    assert chunks.rows.latents["z"].shape == (chunks.num_chunks,)


def test_avoiding_by_chunks_replays_to_the_same_observations() -> None:
    envs = make_envs("latentpg/Avoiding-v0", 5, vectorization_mode="native")
    seen, space = envs.single_observation_space, envs.single_action_space
    with seeded(0):
        policy = ChunkPolicy(
            seen, space, horizon=8, latent=CodeLatent(4), decoder="transformer", hidden=(8,), num_heads=2
        )
        chunks = collect_chunks(envs, policy, num_episodes=6, seed=0, execute=5)
    obs, action = chunks.steps(chunks.rows.obs.obs), chunks.steps(chunks.rows.action)
    assert int(chunks.lengths.max()) <= EPISODE_STEPS
    first = 0
    for length in chunks.lengths.tolist():
        one = make_envs("latentpg/Avoiding-v0", 1, vectorization_mode="native")
        here, _ = one.reset(seed=0)
        for step in range(first, first + length):
            assert torch.equal(torch.from_numpy(here[0]), obs[step])
            here, *_ = one.step(decode_actions(space, action[step : step + 1]))
        first += length
    assert episode_modes(obs.numpy(), chunks.lengths.numpy()).shape == (6,)


def test_an_endless_episode_is_an_error_or_cut_off() -> None:
    envs, policy = scripted(2, length=0, action_space=MOVES), chunk_policy()
    with pytest.raises(EnvironmentFault, match="an end within max_steps=5"):
        collect_chunks(envs, policy, num_episodes=2, seed=0, max_steps=5)
    cut = collect_chunks(envs, policy, num_episodes=2, seed=0, execute=2, max_steps=5, on_max_steps="truncate")
    assert cut.lengths.tolist() == [5, 5] and cut.executed.tolist() == [2, 2, 1] * 2
    assert cut.truncated.tolist() == [False, False, True] * 2 and not cut.terminated.any()


@pytest.mark.production
def test_what_cannot_be_carried_out_is_refused() -> None:
    envs, policy = scripted(2, action_space=MOVES), chunk_policy()
    with pytest.raises(ShapeError, match=r"\[N, H, 1\] with H >= execute=5"):
        collect_chunks(envs, policy, num_episodes=1, seed=0, execute=5)
    with pytest.raises(OptionError, match="`execute`"):
        collect_chunks(envs, policy, num_episodes=1, seed=0, execute=0)
    for options in ({"num_episodes": 0}, {"max_steps": 0}, {"on_max_steps": "stop"}):
        with pytest.raises(OptionError, match="`num_episodes`, `max_steps` or `on_max_steps`"):
            collect_chunks(envs, policy, **{"num_episodes": 1, "seed": 0, **options})  # type: ignore[arg-type]
    step_policy = GaussianPolicy(spaces.Box(-np.inf, np.inf, (3,)), MOVES)
    with pytest.raises(ShapeError, match=r"\[N, H, 1\] with H >= execute=1[\s\S]*ChunkPolicy"):
        collect_chunks(envs, step_policy, num_episodes=1, seed=0)
    with pytest.raises(ShapeError, match=r"\[C, H, \.\.\.\]"):
        play().steps(torch.zeros(2, 3))


# ----------------------------------------------------------------------------------------------------------- averaging


class Foretelling(nn.Module):
    """Predict 10 times the step's number plus the place in the chunk; and, of code 1, the same below zero.

    The scripted environment shows (start, step, noise).
    """

    def __init__(self, *, num_codes: int = 1) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.unused = nn.Parameter(torch.zeros(()))

    def model(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        z = pyro.sample("z", Categorical(torch.zeros(len(obs), self.num_codes)))
        mean = 1 + 10 * obs[..., 1:2] + torch.arange(float(HORIZON))
        loc = (mean * (1 - 2 * z).unsqueeze(-1)).unsqueeze(-1)
        return pyro.sample("action", DiagNormal(loc, torch.zeros(1)).to_event(1), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        raise AssertionError("an ensemble asks no guide")

    def prior_parameters(self) -> list[nn.Parameter]:
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        return [self.unused]

    def guide_parameters(self) -> list[nn.Parameter]:
        return []


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_average_of_predictions_is_the_one_written_out(decay: float) -> None:
    episodes = play_ensembled(scripted(3, action_space=MOVES), Foretelling(), num_episodes=7, seed=0, decay=decay)
    assert int(episodes.lengths.max()) > HORIZON
    for action, step in zip(episodes.transitions.action[:, 0].tolist(), episodes.step.tolist(), strict=True):
        ages = range(min(step, HORIZON - 1) + 1)  # nothing of the episode before
        weight = [math.exp(decay * i) for i in ages]
        value = [1 + 10 * (step - i) + i for i in ages]
        wanted = sum(w * v for w, v in zip(weight, value, strict=True)) / sum(weight)
        assert action == pytest.approx(wanted, rel=1e-6)


def test_predictions_under_different_latents_are_never_averaged() -> None:
    """Drawn anew at every step, a code's predictions meet those of the same code alone."""
    envs = scripted(4, length=40, action_space=MOVES)
    with seeded(0):
        mixed = play_ensembled(envs, Foretelling(num_codes=2), num_episodes=8, seed=0, hold=1, decay=0.0)
    action, step = mixed.transitions.action[:, 0], mixed.step
    between = torch.zeros(len(step), dtype=torch.bool)
    possible = set()
    for ages in range(1, 2**HORIZON, 2):  # any set of ages with the present one in it
        chosen = [i for i in range(HORIZON) if ages >> i & 1]
        possible.add(tuple(chosen))
    for n, (value, t) in enumerate(zip(action.tolist(), step.tolist(), strict=True)):
        means = [sum(1 + 10 * (t - i) + i for i in ages) / len(ages) for ages in possible if max(ages) <= t]
        between[n] = all(abs(abs(value) - mean) > 1e-3 for mean in means)
    assert not between.any()
    assert (action > 0).any() and (action < 0).any()


def test_a_latent_is_held_as_long_as_told() -> None:
    envs = scripted(4, length=12, action_space=MOVES)
    with seeded(0):
        policy = Foretelling(num_codes=2)
        held = play_ensembled(envs, policy, num_episodes=16, seed=0).transitions.action[:, 0].sign().reshape(16, 12)
        by_three = play_ensembled(envs, policy, num_episodes=16, seed=0, hold=3).transitions.action[:, 0].sign()
    assert bool((held == held[:, :1]).all()) and len(held[:, 0].unique()) == 2
    thirds = by_three.reshape(16, 4, 3)
    assert bool((thirds == thirds[..., :1]).all()) and not bool((thirds == thirds[:, :1]).all())


def test_nothing_can_be_learnt_from_an_average() -> None:
    episodes = play_ensembled(scripted(2, action_space=MOVES), Foretelling(), num_episodes=2, seed=0)
    assert bool(episodes.transitions.log_joint.isnan().all()) and not episodes.transitions.latents
    with pytest.raises(OptionError, match="each step drew a latent of its own"):
        episodes.spans()


def test_a_chunk_policy_is_averaged_on_the_avoiding_task() -> None:
    envs = make_envs("latentpg/Avoiding-v0", 3, vectorization_mode="native")
    policy = ChunkPolicy(envs.single_observation_space, envs.single_action_space, horizon=4, hidden=(8,))
    episodes = play_ensembled(envs, policy, num_episodes=4, seed=0, hold=4)
    assert episodes.num_episodes == 4 and bool(episodes.transitions.action.isfinite().all())


@pytest.mark.production
def test_what_cannot_be_averaged_is_refused() -> None:
    envs = scripted(2)
    with pytest.raises(OptionError, match="nothing to average"):
        play_ensembled(envs, chunk_policy(space=spaces.Discrete(2)), num_episodes=1, seed=0)
    boxes = scripted(2, action_space=MOVES)
    with pytest.raises(OptionError, match=r"nothing to average[\s\S]*collect_chunks"):
        play_ensembled(boxes, GaussianPolicy(spaces.Box(-np.inf, np.inf, (3,)), MOVES), num_episodes=1, seed=0)
    with pytest.raises(OptionError, match="`hold`"):
        play_ensembled(boxes, chunk_policy(), num_episodes=1, seed=0, hold=0)
    with pytest.raises(OptionError, match="`decay`"):
        play_ensembled(boxes, chunk_policy(), num_episodes=1, seed=0, decay=math.inf)


def test_every_member_needs_resets_of_ours() -> None:
    with pytest.raises(OptionError):
        collect_chunks(make_envs("CartPole-v1", 2, vectorization_mode="native"), chunk_policy(), num_episodes=1, seed=0)
