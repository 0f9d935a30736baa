"""Studies on the pretended card of :mod:`tests.learners.pretended_card`, beside the same on the processor.

``python -m tests.studies.pretended_card`` measures every cell of every shipped study, shrunk, and of studies of the
targets and sources that no shipped one has; or those cases that are named.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from latentpg.studies import Line, Source, Study, Target, make_study, run
from latentpg.studies.recorded import RecordedRows
from latentpg.studies.targets import GRPO, EntropyGradient, Gradient, Value
from latentpg.studies.toys import RandomToys
from latentpg.studies.transitions import PolicyTransitions
from tests.learners.pretended_card import CARD, told_of

SHRUNK: Mapping[str, tuple[dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "gmm": (
        {"num_rows": 8, "num_components": 3, "batch_size": 8, "num_steps": 2},
        {"step": (1, 2), "num_particles": (2,)},
    ),
    "guide-quality": (
        {"num_rows": 4, "guide_steps": 2},
        {"num_particles": (2,), "guide": ("prior", "random", "trained", "exact")},
    ),
    "overfit": (
        {"num_rows": 16, "num_envs": 4, "guide_steps": 2},
        {"step": (1, 2), "num_particles": (2,)},
    ),
    "quickstart": ({"num_rows": 16, "num_envs": 4, "guide_steps": 2}, {"num_particles": (2,)}),
    "ratio": ({"num_rows": 4, "guide_steps": 2}, {"drift": (0.3,), "num_particles": (2,)}),
    "reward-offset": ({"num_rows": 4}, {"reward_offset": (1.0,), "num_particles": (2,)}),
    "score-climbing": ({"num_rows": 4}, {"step": (1, 2)}),
    "snr": ({"num_data": 16, "dimension": 3}, {"num_particles": (4,)}),
    "span": ({"num_rows": 4}, {"span": (2,), "num_latents": (2,), "num_particles": (2,)}),
}
"""Every shipped study, with what of its source and which of its axes is smaller."""

UNSTEADY = ("seconds", "coordinate_snr")
"""Measures that are not compared: a time, and a quotient by variances that may be nothing but rounding."""

POLICY = """
import torch
from latentpg.oracles import TabularLatentPolicy

def make():
    return TabularLatentPolicy(torch.randn(4, 3), torch.randn(4, 3, 2)).to("cpu")
"""
"""A policy of the user's own, who puts it on the processor."""


def cases() -> dict[str, Callable[[], str | None]]:
    """Return every case: it says what is off, or None."""
    found: dict[str, Callable[[], str | None]] = {name: partial(_off, partial(shrunk, name)) for name in SHRUNK}
    for policy in ("gaussian", "two-level"):
        found[f"transitions, {policy}"] = partial(_off, partial(_transitions, policy))
    found |= {"targets": partial(_off, _targets), "recorded": _recorded}
    return found


def shrunk(name: str) -> Study:
    """Return a shipped study with few rows, few values on its axes and few replicates."""
    study, (smaller, fewer) = make_study(name), SHRUNK[name]
    source: Any = study.source
    return replace(
        study,
        source=replace(source, **smaller),
        axes={**study.axes, **fewer},
        num_replicates=6,
        num_timings=4,
    )


def _study(source: Source, *lines: Line, **targets: Target) -> Study:
    """Return a study of few replicates, of the gradient unless another target is given."""
    few: dict[str, Any] = {"axes": {"num_particles": (2,)}, "num_replicates": 6, "num_timings": 4}
    return Study("few", "Few", source, lines, targets=targets or {"gradient": Gradient()}, **few)


def _transitions(policy: str) -> Study:
    env = "Pendulum-v1" if policy == "gaussian" else "CartPole-v1"
    source = PolicyTransitions(env, policy, num_rows=8, num_envs=4, hidden=4, guide_objective="elbo", guide_steps=2)
    return _study(source, Line("conditional-is", "guide"), Line("posterior-is", "prior"))


def _targets() -> Study:
    lines = Line("exact"), Line("conditional-is", "prior")
    return _study(RandomToys(num_rows=8), *lines, value=Value(), grpo=GRPO(), entropy=EntropyGradient())


def _recorded() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        rows, file = Path(folder, "rows.npz"), Path(folder, "mine.py")
        file.write_text(POLICY, encoding="utf-8")
        index = np.arange(6)
        np.savez(rows, obs=index % 4, action=index % 2, z=index % 3)
        lines = Line("exact"), Line("joint-score"), Line("conditional-is", "guide")
        return _off(lambda: _study(RecordedRows(str(rows), f"{file}:make"), *lines))


def _off(make: Callable[[], Study]) -> str | None:
    """Measure every cell on both, and compare every number."""
    study, wrong = make(), []
    for key in study.jobs():
        here, there = (_numbers(study, key, device) for device in ("cpu", CARD))
        wrong += [
            f"{key}: {name} is {there.get(name)}, and {value} on the processor"
            for name, value in here.items()
            if not _near(there.get(name), value)
        ]
    return "; ".join(wrong) or None


def _numbers(study: Study, key: str, device: str) -> dict[str, Any]:
    rows = run.measure_key(study, key, device=device)
    assert all(row["measure"] != run.SKIPPED for row in rows) or study.skip_invalid
    return {
        f"{row['measure']} {name} {row.get('step', '')}": row[name]
        for row in rows
        if row["measure"] not in UNSTEADY
        for name in ("value", "low", "high", "reason")
        if name in row
    }


def _near(mine: object, theirs: object) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return mine == theirs or math.isclose(mine, theirs, rel_tol=1e-3, abs_tol=1e-6)
    return mine == theirs


if __name__ == "__main__":
    with patch("latentpg.studies.run.checked_device", torch.device):  # no command would take this one
        status = told_of(cases())
    sys.exit(status)
