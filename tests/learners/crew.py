"""Workers that learn together, as threads of this process or as processes, and rows shared out among them.

Every worker acts out the whole of what one process would have, from the same streams, and takes its own share: so all
of them together have the very rows of the one, which :func:`learn_alone` puts into the minibatches that they make
together. Nothing is shuffled, estimators and objectives draw nothing, and so equal rows must give equal updates.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from gymnasium.vector import VectorEnv
from safetensors.torch import save_file
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
    agent,
    grpo,
    online,
    ppo,
    reinforce,
)
from latentpg.learners.batches import num_parts
from latentpg.learners.parallel import ALONE, Group, share_of
from latentpg.learners.workers import joined
from latentpg.numerics.rng import seeded
from latentpg.programs import LatentPolicy
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
Envs = VectorEnv[Any, Any, Any]

MEMBERS = 4
"""Environments of all workers together."""

PATIENCE = 60.0
"""Seconds that a thread waits for the others."""

OPTIONS = AgentOptions(batch_size=24, gap_every=2, max_grad_norm=0.4, anneal=True, guide_epochs=2)
EPISODIC: Mapping[str, Any] = {"max_steps": 30, "on_max_steps": "truncate"}


@dataclass
class Mate:
    """One of several threads that learn together, in turns: Pyro's handlers and torch's stream are all threads'."""

    rank: int
    size: int
    turn: threading.Lock
    barrier: threading.Barrier
    table: list[Tensor]

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange(values)).sum(0)

    def gather(self, values: Tensor) -> Tensor:
        return torch.stack(self._exchange(values))

    def _exchange(self, values: Tensor) -> list[Tensor]:
        self.table[self.rank] = values.detach().clone()
        self._wait()
        found = list(self.table)
        self._wait()
        return found

    def _wait(self) -> None:
        mine = torch.get_rng_state()  # of whatever this worker has opened a scope of
        self.turn.release()
        try:
            self.barrier.wait(PATIENCE)
        finally:
            self.turn.acquire()
            torch.set_rng_state(mine)


def in_threads(work: Callable[[Group], Result], size: int = 2) -> list[Result]:
    """Run the same work in so many threads that ask each other, and return what each came to."""
    turn, barrier, table = threading.Lock(), threading.Barrier(size), [torch.empty(0)] * size
    found: dict[int, Result] = {}
    raised: list[BaseException] = []

    def run(rank: int) -> None:
        with turn, torch.random.fork_rng(devices=[]):
            try:
                found[rank] = work(Mate(rank, size, turn, barrier, table))
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


@dataclass(frozen=True)
class Lengths:
    """A worker that only knows how many rows each of them has."""

    rank: int
    rows: list[int]

    @property
    def size(self) -> int:
        return len(self.rows)

    def sum(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def gather(self, values: Tensor) -> Tensor:
        return torch.tensor([[rows, rows] for rows in self.rows])


# Rows shared out.


def members_of(index: Tensor, size: int) -> list[Tensor]:
    """Split time-major rows by whose members they are."""
    return [part.flatten() for part in index.unflatten(0, (-1, MEMBERS)).tensor_split(size, 1)]


def shard_of(rollout: Rollout, rank: int, size: int) -> Rollout:
    """Take the rows of a worker's members; the first worker is told of all episodes that ended, the others of none."""
    index = members_of(torch.arange(rollout.transitions.num_rows), size)[rank]
    ended = slice(None) if rank == 0 else slice(0)
    steps, mask = rollout.transitions.rows(index), rollout.mask[index]
    return Rollout(steps, MEMBERS // size, mask, rollout.episode_returns[ended], rollout.episode_lengths[ended])


def share_out(episodes: Episodes, share: range) -> Episodes:
    """Take the rows of some groups."""
    mine = (episodes.group >= share.start) & (episodes.group < share.stop)
    first = share.start * episodes.group_size
    rows = episodes.transitions.rows(mine.nonzero().squeeze(1))
    idle = episodes.num_idle_steps if share.start == 0 else 0
    return replace(episodes, transitions=rows, episode=episodes.episode[mine] - first, num_idle_steps=idle)


# Learners, each with its share of the members; ``group`` is whom they learn with.

Case = Callable[[Group], Learner]
_whole: dict[int, Envs] = {}  # the environments of all workers, by those of one


def stepping(learner: Callable[..., Any], options: object, agent_options: AgentOptions, kind: str) -> Case:
    def make(group: Group) -> Learner:
        envs, normalizer = make_envs("CartPole-v1", MEMBERS // group.size), ObservationNormalizer(4)
        critic = nn.Sequential(normalizer, critic_for(envs))
        mine = agent_of(envs, group, normalizer, agent_options, kind)
        made = learner(envs, mine, critic, options=options, seed=3, normalizer=normalizer)
        whole, count = StepCollector(make_envs("CartPole-v1", MEMBERS), seed=8), iter(range(10_000))

        def collect(policy: LatentPolicy, *, num_steps: int) -> Rollout:
            with seeded(100 + next(count)):
                return shard_of(whole.collect(policy, num_steps=num_steps), group.rank, group.size)

        made.collector.collect = collect
        return made

    return make


def playing(options: GRPOOptions | ReinforceOptions | PPOOptions, agent_options: AgentOptions = OPTIONS) -> Case:
    def make(group: Group) -> Learner:
        envs, normalizer = make_envs("CartPole-v1", MEMBERS // group.size), ObservationNormalizer(4)
        mine = agent_of(envs, group, normalizer, agent_options, "mixture")
        _whole[id(envs)] = make_envs("CartPole-v1", MEMBERS)
        if isinstance(options, GRPOOptions):
            return GRPO(envs, mine, options=options, seed=3, normalizer=normalizer)
        critic = nn.Sequential(normalizer, critic_for(envs))
        if isinstance(options, PPOOptions):
            return PPO(envs, mine, critic, options=options, seed=3, normalizer=normalizer)
        valued = critic if options.baseline == "state-value" else None
        return Reinforce(envs, mine, valued, options=options, seed=3, normalizer=normalizer)

    return make


def agent_of(envs: Envs, group: Group, normalizer: nn.Module, options: AgentOptions, kind: str) -> Agent:
    policy = policy_for(envs, kind, encoder=normalizer)
    if kind == "plain":
        return Agent(policy, estimator=ClosedForm(), options=options, group=group)
    return Agent(policy, estimator=Exact(), objective=Recorded(), options=options, group=group)


def ppo_case(agent_options: AgentOptions = OPTIONS, kind: str = "mixture", **options: Any) -> Case:  # noqa: ANN401
    return stepping(PPO, PPOOptions(**{"num_steps": 16, "num_epochs": 2, **options}), agent_options, kind)


def ppo_of_episodes_case(**options: Any) -> Case:  # noqa: ANN401
    return playing(PPOOptions(num_episodes=5, num_epochs=2, **options))


def a2c_case(**options: Any) -> Case:  # noqa: ANN401
    return stepping(A2C, A2COptions(num_steps=8, **options), OPTIONS, "mixture")


def online_case(**options: Any) -> Case:  # noqa: ANN401
    return stepping(OnlineActorCritic, OnlineOptions(num_steps=4, **options), OPTIONS, "mixture")


def reinforce_case(**options: Any) -> Case:  # noqa: ANN401
    return playing(ReinforceOptions(num_episodes=5, **EPISODIC, **options))


def grpo_case(**options: Any) -> Case:  # noqa: ANN401
    return playing(GRPOOptions(num_groups=3, group_size=2, num_epochs=2, **EPISODIC, **options))


CASES: Mapping[str, Case] = {
    "ppo": ppo_case(normalize_reward=True),
    "a2c": a2c_case(normalize_advantage=True, normalize_reward=True),
    "reinforce": reinforce_case(baseline="leave-one-out"),
    "grpo": grpo_case(advantage="batch-std", kl_coefficient=0.1),
}
"""A learner of each kind."""


# Learning.

OWN = ("collector.", "scaler.carried", "factor", "actor_trace.", "critic_trace.")
"""Stems of what in a state is each worker's own."""


@dataclass(frozen=True)
class Learnt:
    """What became of parameters, statistics and optimisers, and what the last update said."""

    state: Mapping[str, Tensor]
    metrics: Mapping[str, float]


def learn(case: Case, group: Group, updates: int = 2) -> Learnt:
    """Update a learner, as one of a group."""
    learner, metrics = case(group), {}
    for number in range(updates):
        metrics = dict(learner.update(number / updates))
    state = {name: value for name, value in learner.state().items() if not name.startswith(OWN)}
    return Learnt(state, metrics)


def learn_alone(case: Case, size: int = 2) -> Learnt:
    """Update one learner with all rows, in the minibatches that so many workers make together."""
    with acted_out(), pytest.MonkeyPatch.context() as patch:
        for module in (agent, ppo, grpo, reinforce):
            patch.setattr(module, "minibatches", _unions_of_rows(size))
        for module in (grpo, reinforce):
            patch.setattr(module, "whole_episodes", _unions_of_episodes(size))
        return learn(case, ALONE)


def learn_in_threads(case: Case, size: int = 2) -> list[Learnt]:
    """Update learners that have a share of the rows each."""
    with acted_out():
        return in_threads(lambda group: learn(case, group), size)


@contextmanager
def acted_out() -> Iterator[None]:
    """Let all learners act out the whole, leave rows in their order, and draw nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda number, **kwargs: torch.arange(number))
        for module in (ppo, reinforce):
            patch.setattr(module, "collect_episodes", _whole_of(collect_episodes))
        patch.setattr(grpo, "collect_groups", _whole_of(collect_groups))
        for module in (ppo, actor_critic, online, reinforce, grpo):
            patch.setattr(module, "seeded", nullcontext)
        yield


_played: list[Episodes] = []  # what one process played last


def _whole_of(collect: Callable[..., Episodes]) -> Callable[..., Episodes]:
    def play(envs: Envs, policy: LatentPolicy, *, share: range, seed: int, **rest: Any) -> Episodes:  # noqa: ANN401
        with seeded(seed % 1000):
            whole = collect(_whole[id(envs)], policy, seed=seed, **rest)
        _played[:] = [whole]
        return share_out(whole, share)

    return play


def _unions_of_rows(size: int) -> Callable[..., Iterator[Tensor]]:
    def unions(index: Tensor, batch_size: int, *, group: Group) -> Iterator[Tensor]:
        if _played:
            whole = _played[0]
            shares = [share_of(Lengths(rank, [0] * size), whole.num_groups, what="groups") for rank in range(size)]
            parts = [share_out(whole, share) for share in shares]
            rows = [part.num_episodes if len(index) == whole.num_episodes else len(part.episode) for part in parts]
            each = list(index.split(rows))
        else:
            each = members_of(index, size)
        lengths = [len(part) for part in each]
        number = num_parts(lengths[0], batch_size, group=Lengths(0, lengths), at_most=lengths[0])
        yield from map(torch.cat, zip(*(part.tensor_split(number) for part in each), strict=True))

    return unions


def _unions_of_episodes(size: int) -> Callable[..., Iterator[Tensor]]:
    def unions(episode: Tensor, length: Tensor, batch_size: int, *, group: Group) -> Iterator[Tensor]:
        groups, members = _played[0].num_groups, _played[0].group_size
        shares = [share_of(Lengths(rank, [0] * size), groups, what="groups") for rank in range(size)]
        mine = [torch.arange(share.start * members, share.stop * members) for share in shares]
        whole, left = divmod(int(length.sum()), batch_size)
        number = max(1, min(whole + (2 * left >= batch_size), *map(len, mine)))
        for chosen in map(torch.cat, zip(*(part.tensor_split(number) for part in mine), strict=True)):
            yield torch.isin(episode, chosen).nonzero().squeeze(1)

    return unions


def main() -> int:
    """Learn every case as one of the processes that were launched, and write what became of it."""
    torch.set_num_threads(1)
    with joined(timeout=60) as group, acted_out():
        for name, case in CASES.items():
            save_file(dict(learn(case, group).state), Path(sys.argv[1]) / f"{name}-{group.rank}.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
