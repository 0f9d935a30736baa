"""Claim: checkpoints take less than 2 % of a default CartPole PPO run.

The run is `latentpg train --env CartPole-v1` with the options that ship, whole: its evaluations, log and figures among
it. What is timed within it is every save: tensors and facts encoded, written, flushed to the disk, read back, renamed,
older ones removed, and the slot of the best one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from latentpg.training import begin_run, loop, prepared, resolve, train
from latentpg.training.config import tuned_options

SHARE = 0.02


def test_checkpointing(tmp_path: Path, benchmark: Any, record: Callable[[Row], None], monkeypatch: Any) -> None:  # noqa: ANN401 (fixtures)
    start = {"env": "CartPole-v1", "algo": "ppo"}
    config, saves, save = resolve({**tuned_options(**start), **start}), [], loop.save

    def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401 (handed on)
        began = time.perf_counter()
        path = save(*given, **named)
        saves.append(time.perf_counter() - began)
        return path

    monkeypatch.setattr(loop, "save", timed)

    def whole_run() -> float:
        began = time.perf_counter()
        with prepared(config) as built:
            train(config, built, begin_run(config, out=tmp_path / "run"))
        return time.perf_counter() - began

    seconds = benchmark.pedantic(whole_run, rounds=1)
    share = sum(saves) / seconds
    details = {
        "seconds of the run": seconds,
        "saves": len(saves),
        "median seconds of one": sorted(saves)[len(saves) // 2],
    }
    record(Row("checkpoints' share of a default CartPole PPO run", f"< {SHARE}", share, "", share < SHARE, details))
