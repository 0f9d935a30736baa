"""Workers that are killed, hang, raise or cannot be started: named in time, with seed and action, and none is left."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from latentpg.errors import OptionError
from latentpg.rollout import EnvironmentFault, StepCollector, close_envs, make_envs
from latentpg.rollout.supervised import SupervisedVectorEnv

PARENT = os.getpid()
TIMEOUT = 3.0


class Faulty(gymnasium.Env[Any, Any]):
    """Does something wrong in its third step, or when it is started in a process of its own."""

    def __init__(self, fault: str | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(7)
        self.fault, self.steps = fault, 0
        if os.getpid() != PARENT and fault is not None and fault.startswith("start"):
            misbehave(fault.removeprefix("start: "))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault is not None and self.fault.startswith("reset"):
            misbehave(self.fault.removeprefix("reset: "))
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401 (any action)
        self.steps += 1
        if self.steps == 3 and self.fault is not None:
            misbehave(self.fault)
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


def misbehave(how: str) -> None:
    if how == "hang":
        time.sleep(600)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "raise":
        raise ValueError("the arm is bent")


def members(fault: str, *, timeout: float = TIMEOUT) -> SupervisedVectorEnv:
    return SupervisedVectorEnv([Faulty, partial(Faulty, fault), Faulty], timeout=timeout)


def until_it_fails(envs: SupervisedVectorEnv) -> str:
    """Reset with seeds 10, 11, 12, step with actions 4, 5, 6, and return the message of the fault."""
    start = time.monotonic()
    with pytest.raises(EnvironmentFault) as caught:
        envs.reset(seed=[10, 11, 12])
        for _ in range(3):
            envs.step(np.array([4, 5, 6]))
    assert time.monotonic() - start < TIMEOUT + 10
    assert envs.closed and not any(worker.is_alive() for worker in envs.processes)
    envs.close()
    return str(caught.value)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("hang", "member 1 gave no answer within 3 seconds"),
        ("die", "member 1 is gone"),
        ("raise", "member 1 raised"),
    ],
)
def test_a_worker_that_fails_is_named_with_its_seed_and_its_last_action(fault: str, told: str) -> None:
    message = until_it_fails(members(fault))
    assert told in message and "seed 11" in message and "last action was 5" in message
    assert fault != "raise" or "ValueError: the arm is bent" in message


@pytest.mark.parametrize("fault", ["hang", "die", "raise"])
def test_so_is_one_that_fails_in_a_reset(fault: str) -> None:
    message = until_it_fails(members(f"reset: {fault}"))
    assert "member 1" in message and "seed 11" in message and "last action was None" in message


@pytest.mark.parametrize("fault", ["hang", "die", "raise"])
def test_one_that_cannot_be_started_is_named_in_time(fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match="member 1"):
        members(f"start: {fault}")
    assert time.monotonic() - start < TIMEOUT + 10
    capfd.readouterr()  # a worker that raises before it can tell prints its traceback


def test_an_environment_that_cannot_be_made_at_all_is_told_of() -> None:
    with pytest.raises(EnvironmentFault, match="cannot be started"):
        SupervisedVectorEnv([partial(misbehave, "raise")], timeout=TIMEOUT)  # type: ignore[list-item]


def test_closing_twice_does_no_harm_and_leaves_no_process() -> None:
    envs = members("none")
    for _ in range(2):
        envs.close()
    assert not any(worker.is_alive() for worker in envs.processes)


def test_closing_does_not_wait_for_a_worker_that_hangs() -> None:
    envs = members("none")
    envs.reset(seed=[1, 2, 3])
    stopped = envs.processes[0].pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    start = time.monotonic()
    close_envs(envs)
    assert time.monotonic() - start < TIMEOUT + 5
    assert not any(worker.is_alive() for worker in envs.processes)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_a_time_limit_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(OptionError, match="timeout"):
        members("none", timeout=timeout)


def test_seeds_are_those_of_the_last_reset_of_each_member() -> None:
    envs = members("die")
    envs.reset(seed=[1, 2, 3])
    envs.step(np.zeros(3, dtype=np.int64))
    envs.reset(seed=[4, 5, 6], options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(EnvironmentFault, match=r"seed 2, .*last action was 1"):
        for _ in range(2):
            envs.step(np.ones(3, dtype=np.int64))


def test_the_environments_of_a_rollout_are_watched() -> None:
    build: Callable[..., Any] = partial(make_envs, "CartPole-v1", 2, vectorization_mode="async")
    envs = build(timeout=7)
    try:
        assert isinstance(envs, SupervisedVectorEnv) and envs.timeout == 7
        StepCollector(envs, seed=0)
    finally:
        close_envs(envs)
