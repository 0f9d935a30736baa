"""Claim: ``latentpg/Avoiding-v0`` does at least 100,000 steps a second, stepped natively, resets included.

Actions are drawn beforehand; members whose episode is over are reset by mask with seeds of their own, as the collectors
do. For comparison, the same environment one by one under Gymnasium's ``SyncVectorEnv``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from benchmarks.measure import SEED, Row, compare
from latentpg.envs.avoiding_demonstrator import demonstrate
from latentpg.rollout import make_envs

ROUNDS = 20
STEPS = 250
ENVS = 256
FEW = 16


def play(envs: VectorEnv[Any, Any, Any], actions: NDArray[np.float32]) -> int:
    """Step through the actions ``[T, N, 2]``, resetting what is over; return how many episodes ended."""
    size = envs.num_envs
    envs.reset(seed=list(range(size)))  # type: ignore[arg-type]
    ended = 0
    for step, action in enumerate(actions):
        _, _, terminated, truncated, _ = envs.step(action)
        over = terminated | truncated
        if over.any():
            ended += int(over.sum())
            seeds = list(range(step * size, (step + 1) * size))
            envs.reset(seed=seeds, options={"reset_mask": over})  # type: ignore[arg-type]
    return ended


def shown_actions(size: int) -> NDArray[np.float32]:
    """Take each member's actions from demonstrations, so that episodes end as they do in use."""
    shown = demonstrate(per_mode=2, seed=SEED)
    start = np.random.default_rng(SEED).integers(len(shown.action), size=size)
    return shown.action[(start + np.arange(STEPS)[:, None]) % len(shown.action)]


def test_steps_a_second(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    env_id = "latentpg/Avoiding-v0"
    native = {size: make_envs(env_id, size, vectorization_mode="native") for size in (FEW, ENVS)}
    single = make_envs(env_id, FEW)
    actions = {size: shown_actions(size) for size in (FEW, ENVS)}
    assert play(native[FEW], actions[FEW]) == play(single, actions[FEW]) >= FEW
    functions = {
        "native": lambda: play(native[ENVS], actions[ENVS]),
        "native, few": lambda: play(native[FEW], actions[FEW]),
        "one by one": lambda: play(single, actions[FEW]),
    }
    result = compare(functions, baseline="one by one", rounds=ROUNDS)
    rate = {
        name: STEPS * (ENVS if name == "native" else FEW) / seconds / 1000 for name, seconds in result.seconds.items()
    }
    details = {"comparison": result, "episodes ended": play(native[ENVS], actions[ENVS]), "steps of a round": STEPS}
    claim = f"Avoiding-v0, {ENVS} members natively"
    record(Row(claim, ">= 100", rate["native"], "thousand steps/s", rate["native"] >= 100, details))
    record(Row(f"Avoiding-v0, {FEW} members natively", "-", rate["native, few"], "thousand steps/s", None, {}))
    record(Row(f"Avoiding-v0, {FEW} members one by one", "-", rate["one by one"], "thousand steps/s", None, {}))
    benchmark.extra_info["thousand steps/s"] = rate["native"]
    benchmark.pedantic(functions["native"], rounds=5, warmup_rounds=1)
