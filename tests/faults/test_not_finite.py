"""NaN and infinity that come from worker processes, or arise in a loss: refused before the optimiser, by the command.

What comes from environments of this process, ratios and gradients are held in ``tests/training/test_mistakes.py``.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from latentpg.runs import load_checkpoint, newest_checkpoint
from tests.faults.commands import ended, quick
from tests.training.runs import register_faulty, shortly, spelled

pytestmark = pytest.mark.production


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_reward_from_a_worker(bad: float, tmp_path: Path) -> None:
    def before() -> None:
        quick()
        register_faulty(bad=bad, start=30)

    folder = tmp_path / "run"
    options = spelled(shortly("ppo", env="Faulty-v0", vectorization_mode="async", eval_episodes=4))
    status, text = ended("train", *options, "--out", str(folder), told=tmp_path / "told", before=before)
    assert status == 2 and "gave a reward that is not finite" in text
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("algo", ["reinforce", "a2c", "ppo", "grpo"])
def test_a_loss(algo: str, tmp_path: Path) -> None:
    """After two that were finite; its gradient would be finite too."""

    def before() -> None:
        quick()
        descent: Any = sys.modules["latentpg.learners.descent"]
        check, asked = descent._check_loss, 0

        def spoiled(loss: Tensor) -> None:
            nonlocal asked
            asked += 1
            check(loss + math.nan if asked > 2 else loss)

        descent._check_loss = spoiled

    folder = tmp_path / "run"
    words = spelled(shortly(algo, num_epochs=1) if algo in ("ppo", "grpo") else shortly(algo))
    status, text = ended("train", *words, "--out", str(folder), told=tmp_path / "told", before=before)
    assert status == 2 and "the loss is not finite" in text, text
    told = json.loads((folder / "fault.json").read_text(encoding="utf-8"))
    assert "the loss is not finite" in told["error"] and {"timesteps", "update", "seed", "last_metrics"} <= told.keys()
    dumped = load_checkpoint(next((folder / "fault").glob("step-*"))).state
    assert all(bool(value.isfinite().all()) for name, value in dumped.items() if name.startswith("agent."))
    newest_checkpoint(folder / "checkpoints", say=pytest.fail)
