"""Workers that learn together, in threads of this process or as processes, and rows shared out among them.

Every worker acts out the whole of what one process would have, from the same streams, and takes its own share: so all
of them together have the very rows of the one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from latentpg.estimators import ClosedForm, Exact
from latentpg.estimators.guides import Recorded
from latentpg.learners import (
    A2C,
    GRPO,
    PPO,
    A2COptions,
    Agent,
    AgentOptions,
    GRPOOptions,
    Learner,
    OnlineActorCritic,
    OnlineOptions,
    PPOOptions,
    Reinforce,
    ReinforceOptions,
    actor_critic,
    episodic,
    grpo,
    online,
    ppo,
    reinforce,
)
from latentpg.learners.batches import num_parts
from latentpg.learners.parallel import ALONE, Group
from latentpg.numerics.rng import seeded
from latentpg.rollout import (
    Episodes,
    ObservationNormalizer,
    Rollout,
    StepCollector,
    collect_episodes,
    collect_groups,
    make_envs,
)
from tests.learners.small import critic_for, policy_for

Result = TypeVar("Result")
MEMBERS = 4
"""Environments of all workers together."""
PATIENCE = 60.0


@dataclass
class Mate:
    """One of several threads that learn together."""

    rank: int
    size: int
    barrier: threading.Barrier
    table: list[Tensor]
    asked: list[str] = field(default_factory=list)

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange("sum", values)).sum(0)

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange("gather", values))

    def _exchange(self, what: str, values: Tensor) -> list[Tensor]:
        self.asked.append(what)
        self.table[self.rank] = values.detach().clone()
        self.barrier.wait(PATIENCE)
        found = list(self.table)
        self.barrier.wait(PATIENCE)
        return found


def in_threads(work: Callable[[Group], Result], size: int = 2) -> list[Result]:
    """Run the same work in so many threads that ask each other, and return what each came to."""
    barrier, table = threading.Barrier(size), [torch.empty(0)] * size
    found: dict[int, Result] = {}
    raised: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Mate(rank, size, barrier, table))
        except BaseException as error:
            raised.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise next((error for error in raised if not isinstance(error, threading.BrokenBarrierError)), raised[0])
    return [found[rank] for rank in range(size)]


# Rows shared out.


def shard_of(rollout: Rollout, rank: int, size: int) -> Rollout:
    """Take the rows of a worker's members; the first worker is told of all episodes, the others of none."""
    each = rollout.num_envs // size
    rows = torch.arange(rollout.transitions.num_rows).unflatten(0, (-1, rollout.num_envs))
    index = rows[:, rank * each : (rank + 1) * each].flatten()
    ended = slice(None) if rank == 0 else slice(0)
    return Rollout(
        rollout.transitions.rows(index),
        each,
        rollout.mask[index],
        rollout.episode_returns[ended],
        rollout.episode_lengths[ended],
    )


def share_out(episodes: Episodes, share: range) -> Episodes:
    """Take the rows of some groups."""
    group = episodes.group
    mine = (group >= share.start) & (group < share.stop)
    first = share.start * episodes.group_size
    rows = mine.nonzero().squeeze(1)
    return replace(episodes, transitions=episodes.transitions.rows(rows), episode=episodes.episode[mine] - first)


@contextmanager
def rows_of_all(size: int) -> Iterator[None]:
    """Let one process make the minibatches that so many workers make together, without shuffling."""
    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "randperm", lambda number, **kwargs: torch.arange(number))
    try:
        yield
    finally:
        patch.undo()


def unions(sizes: list[int], starts: Callable[[int, Tensor], Tensor], batch_size: int) -> Iterator[Tensor]:
    """Yield what workers of so many rows each have in their minibatches; ``starts`` numbers a worker's rows."""
    crew = [Told(rank, len(sizes), sizes) for rank in range(len(sizes))]
    parts = num_parts(sizes[0], batch_size, group=crew[0], at_most=sizes[0])
    each = [starts(rank, torch.arange(size)).tensor_split(parts) for rank, size in enumerate(sizes)]
    yield from (torch.cat(together) for together in zip(*each, strict=True))


@dataclass(frozen=True)
class Told:
    """A worker that knows how many rows the others have."""

    rank: int
    size: int
    rows: list[int]

    def sum(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def gather(self, values: Tensor) -> Tensor:
        return torch.tensor([[rows, rows] for rows in self.rows])


# Learners by name; ``group`` is whom they learn with, and each has its share of the members.

OPTIONS = AgentOptions(batch_size=24, gap_every=2, max_grad_norm=0.4, anneal=True, guide_epochs=2)
EPISODIC: Mapping[str, Any] = {"max_steps": 30, "on_max_steps": "truncate"}
Case = Callable[[Group], Learner]


def ppo_case(options: PPOOptions, agent_options: AgentOptions = OPTIONS, kind: str = "mixture") -> Case:
    return lambda group: _stepping(PPO, ppo, options, agent_options, group, kind)


def a2c_case(options: A2COptions) -> Case:
    return lambda group: _stepping(A2C, actor_critic, options, OPTIONS, group, "mixture")


def online_case(options: OnlineOptions) -> Case:
    return lambda group: _stepping(OnlineActorCritic, online, options, OPTIONS, group, "mixture")


def reinforce_case(options: ReinforceOptions) -> Case:
    return lambda group: _playing(group, options)


def grpo_case(options: GRPOOptions) -> Case:
    return lambda group: _playing(group, options)


def agent_of(envs: Any, group: Group, options: AgentOptions, kind: str, normalizer: nn.Module) -> Agent:  # noqa: ANN401
    policy = policy_for(envs, kind, encoder=normalizer)
    if kind == "plain":
        return Agent(policy, estimator=ClosedForm(), options=options, group=group)
    return Agent(policy, estimator=Exact(), objective=Recorded(), options=options, group=group)


def _stepping(learner: Any, module: Any, options: Any, agent_options: AgentOptions, group: Group, kind: str) -> Learner:  # noqa: ANN401
    envs, whole = make_envs("CartPole-v1", MEMBERS // group.size), make_envs("CartPole-v1", MEMBERS)
    normalizer = ObservationNormalizer(4)
    agent = agent_of(envs, group, agent_options, kind, normalizer)
    critic = nn.Sequential(normalizer, critic_for(envs))
    made = learner(envs, agent, critic, options=options, seed=3, normalizer=normalizer)
    collector, count = StepCollector(whole, seed=8), iter(range(10_000))

    def collect(policy: Any, *, num_steps: int) -> Rollout:  # noqa: ANN401
        with LOCK, seeded(100 + next(count)):
            return shard_of(collector.collect(policy, num_steps=num_steps), group.rank, group.size)

    made.collector.collect = collect
    return made


def _playing(group: Group, options: GRPOOptions | ReinforceOptions) -> Learner:
    envs, whole = make_envs("CartPole-v1", MEMBERS // group.size), make_envs("CartPole-v1", MEMBERS)
    normalizer = ObservationNormalizer(4)
    agent = agent_of(envs, group, OPTIONS, "mixture", normalizer)
    WHOLE[id(envs)] = whole
    if isinstance(options, GRPOOptions):
        return GRPO(envs, agent, options=options, seed=3, normalizer=normalizer)
    critic = nn.Sequential(normalizer, critic_for(envs)) if options.baseline == "state-value" else None
    return Reinforce(envs, agent, critic, options=options, seed=3, normalizer=normalizer)


WHOLE: dict[int, Any] = {}
LOCK = threading.Lock()


def _collect_whole(collect: Callable[..., Episodes]) -> Callable[..., Episodes]:
    def play(envs: Any, policy: Any, *, share: range, seed: int, **rest: Any) -> Episodes:  # noqa: ANN401
        with LOCK, seeded(seed % 1000):
            return share_out(collect(WHOLE[id(envs)], policy, seed=seed, **rest), share)

    return play


CASES: Mapping[str, Case] = {
    "ppo": ppo_case(PPOOptions(num_steps=16, num_epochs=2, normalize_reward=True)),
    "a2c": a2c_case(A2COptions(num_steps=8, normalize_advantage=True, normalize_reward=True)),
    "reinforce": reinforce_case(ReinforceOptions(num_episodes=5, baseline="leave-one-out", **EPISODIC)),
    "grpo": grpo_case(
        GRPOOptions(
            num_groups=3, group_size=2, num_epochs=2, advantage="batst" and "batch-std", kl_coefficient=0.1, **EPISODIC
        )
    ),
}
"""A learner of each kind."""


@dataclass(frozen=True)
class Learnt:
    """What became of a learner's parameters, normaliser and optimisers, and what it said."""

    state: Mapping[str, Tensor]
    metrics: Mapping[str, float]


OWN = ("collector.", "scaler.carried", "factor", "actor_trace.", "critic_trace.")
"""Stems of a state that are each worker's own."""


def learn(case: Case, group: Group, updates: int = 2) -> Learnt:
    """Update a learner, as one of a group."""
    learner, metrics = case(group), {}
    for number in range(updates):
        metrics = dict(learner.update(number / updates))
    state = {name: value for name, value in learner.state().items() if not name.startswith(OWN)}
    return Learnt(state, metrics)


@contextmanager
def unshuffled() -> Iterator[None]:
    """Let all learners act out the whole and leave rows in their order."""
    patch = pytest.MonkeyPatch()
    patch.setattr(torch, "randperm", lambda number, **kwargs: torch.arange(number))
    patch.setattr(reinforce, "collect_episodes", _collect_whole(collect_episodes))
    patch.setattr(grpo, "collect_groups", _collect_whole(collect_groups))
    try:
        yield
    finally:
        patch.undo()


def learn_alone(case: Case, size: int = 2, updates: int = 2) -> Learnt:
    """Update one learner on all rows, in the minibatches that so many workers make together."""
    patch = pytest.MonkeyPatch()
    noted: list[list[Tensor]] = []
    return learn(case, ALONE, updates)
