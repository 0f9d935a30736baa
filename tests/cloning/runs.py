"""Runs of cloning that take a second: few demonstrations of three routes, small networks, few roll-outs."""

from pathlib import Path
from typing import Any

import numpy as np

from latentpg.cloning import CloningConfig, begin_run, clone, prepared, resolve
from latentpg.cloning.loop import Cloned
from latentpg.runs import Checkpoint
from latentpg.training.progress import Show, unseen
from latentpg.training.signals import Stop, never

SMALL: dict[str, Any] = {
    "data": "scripted:latentpg/Routes-v0",
    "num_demonstrations": 24,
    "split": [0.5, 0.25, 0.25],
    "hidden": [8],
    "num_epochs": 4,
    "batch_size": 64,
    "checkpoint_every": 2,
    "rollouts": 8,
    "num_envs": 4,
    "likelihood_particles": [1, 4],
    "annealing_temperatures": 0,
    "valid_particles": 4,
}
"""Options of a run of four epochs."""

EPISODE: dict[str, Any] = {
    "policy": "episode",
    "latent_size": 2,
    "prior": "mixture",
    "match_prior_every": 2,
    "observation_noise": 0.01,
    "batch_size": 6,
}
"""Options of one whose latent is an episode's, its prior matched to posteriors."""

OF_OBJECTIVE: dict[str, dict[str, Any]] = {
    "exact": {"policy": "mixture"},
    "elbo": {**EPISODE, "anneal": "linear", "free_nats": 0.1},
    "iwae": {"policy": "gaussian", "num_particles": 4},
    "reweighted-wake-sleep": {"policy": "two-level", "num_particles": 4, "proposal": "mixture"},
    "wake-sleep": {"policy": "gaussian"},
    "score-climbing": {"policy": "chunk", "latent_kind": "codes", "num_codes": 3, "num_particles": 4},
    "em": {"policy": "mixture", "num_components": 2, "num_gradient_steps": 2},
}
"""Options of a run by each objective, with whatever it remembers from one epoch to the next."""


def small(**changes: object) -> CloningConfig:
    return resolve({**SMALL, **changes})


def words(**changes: object) -> list[str]:
    """Spell those options as a command line does."""
    spelled = ["--no-tuned"]
    for name, value in {**SMALL, **changes}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            spelled.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            spelled += [flag, *map(str, value if isinstance(value, list) else [value])]
    return spelled


def run(
    config: CloningConfig,
    folder: Path,
    *,
    saved: Checkpoint | None = None,
    stop: Stop = never,
    show: Show = unseen,
) -> Cloned:
    with prepared(config) as built:
        place = folder if saved else begin_run(config, out=folder, built=built)
        return clone(built, place, saved=saved, stop=stop, show=show)


def file_of_steps(path: Path, *, episodes: int = 12, steps: int = 5, **changes: np.ndarray) -> Path:
    """Write demonstrations of a point that goes left or right, with arrays changed or added."""
    noise = np.random.default_rng(0)
    episode = np.repeat(np.arange(episodes), steps)
    side = np.where(episode % 2 == 0, 1.0, -1.0)
    arrays: dict[str, Any] = {
        "obs": noise.normal(size=(len(episode), 2)).astype(np.float32),
        "action": (side[:, None] * np.array([0.5, 0.1]) + 0.05 * noise.normal(size=(len(episode), 2))).astype("f4"),
        "episode": episode,
    }
    np.savez(path, **{**arrays, **changes})
    return path
