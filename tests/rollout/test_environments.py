"""Making environments in three ways, and the traps of worker processes."""

import os
import signal
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from latentpg.errors import OptionError
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.rollout import (
    EnvironmentFault,
    StepCollector,
    close_envs,
    collect_groups,
    make_envs,
    resets_are_ours,
    resume_collector,
)
from latentpg.rollout.edge import Edge


def test_the_three_ways() -> None:
    kinds = {}
    for mode in ("sync", "async", "native"):
        envs = make_envs("CartPole-v1", 2, vectorization_mode=mode)
        kinds[mode] = (type(envs.unwrapped).__name__, resets_are_ours(envs))
        close_envs(envs)
    assert kinds == {
        "sync": ("SyncVectorEnv", True),
        "async": ("SupervisedVectorEnv", True),
        "native": ("CartPoleVectorEnv", False),
    }


def test_our_environments_are_known_without_a_word() -> None:
    for mode in ("sync", "native"):
        assert resets_are_ours(make_envs("latentpg/Corridor-v0", 2, vectorization_mode=mode))


@pytest.mark.parametrize(
    ("mode", "told"), [("asink", "did you mean async"), ("vector_entry_point", '"sync" or "async" or "native"')]
)
def test_unknown_ways_are_refused(mode: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        make_envs("CartPole-v1", 2, vectorization_mode=mode)


def test_an_environment_without_a_class_of_its_own_is_refused() -> None:
    with pytest.raises(OptionError, match="Pendulum-v1 brings no vectorised class"):
        make_envs("Pendulum-v1", 2, vectorization_mode="native")
    with pytest.raises(OptionError, match="did you mean CartPole-v1"):
        make_envs("CartPol-v1", 2, vectorization_mode="native")


def test_a_native_class_that_loses_the_last_observation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def same_step(*args: object, **options: object) -> object:
        return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")], autoreset_mode=AutoresetMode.SAME_STEP)

    monkeypatch.setattr(gymnasium, "make_vec", same_step)
    with pytest.raises(OptionError, match="loses an episode's last observation"):
        make_envs("CartPole-v1", 1, vectorization_mode="native")


def record(envs: VectorEnv, what: str) -> torch.Tensor:
    with seeded(0):
        policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, hidden=(8,))
        if what == "steps":
            rollout = StepCollector(envs, seed=3).collect(policy, num_steps=60)
            assert len(rollout.episode_lengths) >= 3
            return rollout.transitions.next_obs
        if what == "resumed":
            collector = StepCollector(envs, seed=3)
            collector.collect(policy, num_steps=30)
            return resume_collector(envs, collector.state()).collect(policy, num_steps=30).transitions.next_obs
        noise = what.removeprefix("groups, ")
        rows = collect_groups(envs, policy, num_groups=2, group_size=3, seed=3, noise=noise).transitions
        return rows.next_obs


@pytest.mark.parametrize("what", ["steps", "resumed", "groups, shared", "groups, independent"])
def test_processes_give_what_one_process_gives(what: str) -> None:
    """Resets by mask, seeds, and the ends of episodes included: workers would go on with a finished member."""
    alone, processes = (make_envs("CartPole-v1", 2, vectorization_mode=mode) for mode in ("sync", "async"))
    try:
        assert torch.equal(record(alone, what), record(processes, what))
    finally:
        close_envs(processes)


def test_seeds_are_handed_on_as_pythons_own() -> None:
    """NumPy's integers end the workers."""
    envs = make_envs("CartPole-v1", 2, vectorization_mode="async")
    try:
        edge = Edge(envs, "here()")
        obs = edge.reset(np.array([5, 6]), np.ones(2, dtype=np.bool_))
        assert torch.equal(obs, edge.reset([5, 6], np.ones(2, dtype=np.bool_)))
    finally:
        close_envs(envs)


def test_a_worker_that_dies_is_named_and_all_are_ended() -> None:
    envs = make_envs("CartPole-v1", 3, vectorization_mode="async")
    bare = envs.unwrapped
    assert isinstance(bare, AsyncVectorEnv)
    collector = StepCollector(envs, seed=0)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, hidden=(8,))
    victim = bare.processes[1].pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="worker process of member 1 is gone"):
        collector.collect(policy, num_steps=3)
    assert bare.closed and not any(worker.is_alive() for worker in bare.processes)


def test_workers_that_do_not_answer_are_ended() -> None:
    envs = make_envs("CartPole-v1", 2, vectorization_mode="async")
    bare = envs.unwrapped
    assert isinstance(bare, AsyncVectorEnv)
    envs.reset(seed=0)
    stopped = bare.processes[0].pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    bare.step_async(np.zeros(2, dtype=np.int64))
    assert bare._state is AsyncState.WAITING_STEP
    start = time.monotonic()
    close_envs(envs)
    assert time.monotonic() - start < 5
    assert not any(worker.is_alive() for worker in bare.processes)
