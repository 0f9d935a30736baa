"""What studies of ``latentpg/Avoiding-v0`` share: its demonstrations, and what is measured of a policy.

The demonstrations of a seed are four of each of the 24 modes, and two more of each that no fit sees, drawn by another
seed, on which likelihoods are measured. Which mode a demonstration is of, no policy is told unless its name says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from latentpg.data import Demonstrations, Normalization, chunk_rows, encode_for_spaces, episode_rows
from latentpg.envs.avoiding import NUM_MODES, Avoiding, episode_modes
from latentpg.envs.avoiding_demonstrator import demonstrate
from latentpg.evaluation import Likelihood, action_scale_of, exact_likelihood, iwae_curve, measure_behaviour
from latentpg.imitation import FitRows, executed_rows, span_rows, support_size
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.statistics import Interval
from latentpg.programs import LatentPolicy
from latentpg.rollout import collect_chunks, collect_episodes, make_envs

ENV = "latentpg/Avoiding-v0"
PER_MODE = 4
"""Demonstrations of each mode that are learnt from."""

HELD_OUT_PER_MODE = 2
"""Demonstrations of each mode that likelihoods are measured on."""

HELD_OUT_SEED = 1000
"""What is added to a seed for the demonstrations that are held out."""

ROLLOUTS = 480
"""Episodes played to measure success and modes."""

HORIZON = 8
"""Actions of a chunk; all are carried out."""

LADDER = (1, 16, 256)
"""Numbers of particles of the bounds on a likelihood that cannot be enumerated."""

SHOWN = 72
"""Roll-outs whose paths are kept for figures."""


@dataclass(frozen=True, eq=False)
class Shown:
    """The demonstrations of a seed, in policy coordinates, and those held out."""

    train: Demonstrations
    test: Demonstrations
    spaces: tuple[Any, Any]

    @property
    def episodes(self) -> FitRows:
        """What is learnt from, an episode a row."""
        return span_rows(episode_rows(self.train))

    @property
    def chunks(self) -> FitRows:
        """What is learnt from, a chunk a row, one beginning at every step."""
        return span_rows(chunk_rows(self.train, horizon=HORIZON, stride=1))

    def held_out(self, span: str) -> FitRows:
        """Return what is measured on, as rows of the span of a latent: ``"episode"``, ``"chunk"`` or ``"step"``."""
        if span == "chunk":
            return executed_rows(chunk_rows(self.test, horizon=HORIZON))
        return executed_rows(episode_rows(self.test))

    @property
    def normalization(self) -> Normalization:
        """Statistics of what is learnt from."""
        return Normalization.of(self.train)


def demonstrations(seed: int) -> Shown:
    """Demonstrate."""
    task = Avoiding()
    both = []
    for per_mode, drawn_by in ((PER_MODE, seed), (HELD_OUT_PER_MODE, HELD_OUT_SEED + seed)):
        shown = demonstrate(per_mode=per_mode, seed=drawn_by)
        obs, action, episode, mode = map(torch.from_numpy, (shown.obs, shown.action, shown.episode, shown.mode))
        read = Demonstrations(obs, action, episode, mode=mode)
        both.append(encode_for_spaces(read, task.observation_space, task.action_space))
    return Shown(both[0], both[1], (task.observation_space, task.action_space))


@dataclass
class Clock:
    """Seconds of this process's CPU."""

    seconds: float = field(default=0.0)


@contextmanager
def timed() -> Iterator[Clock]:
    """Count the CPU seconds inside the scope."""
    clock, began = Clock(), time.process_time()
    yield clock
    clock.seconds = round(time.process_time() - began, 1)


def behave(policy: LatentPolicy, seed: int, *, span: str) -> dict[str, Any]:
    """Play :data:`ROLLOUTS` episodes with the latent drawn once a step, a chunk or an episode; measure them."""
    envs = make_envs(ENV, ROLLOUTS, vectorization_mode="native")
    with seeded(stream_seed(seed, "roll-outs")):
        if span == "chunk":
            chunks = collect_chunks(envs, policy, num_episodes=ROLLOUTS, seed=seed)
            obs, lengths, returns = chunks.steps(chunks.rows.obs.obs), chunks.lengths, chunks.returns
        else:
            played = collect_episodes(envs, policy, num_episodes=ROLLOUTS, seed=seed, latent=span)
            obs, lengths, returns = played.transitions.obs, played.lengths, played.returns
        mode = torch.from_numpy(episode_modes(obs.numpy(), lengths.numpy()))
        found = measure_behaviour(mode, returns > 0, torch.full((NUM_MODES,), float(PER_MODE)))
    return {
        "success": spread(found.success),
        "entropy": spread(found.entropy),
        "coverage": found.coverage,
        "counts": [int(count) for count in found.counts],
        "paths": paths(obs, lengths),
        "arrived": (returns[:SHOWN] > 0).tolist(),
    }


def paths(obs: Float[Tensor, "M 4"], lengths: Tensor, *, every: int = 3) -> list[list[list[float]]]:
    """Keep where the rod was in the first episodes, every few steps and at the end, in millimetres."""
    kept = []
    for path in obs[:, 2:].split(lengths.tolist())[:SHOWN]:
        index = [*range(0, len(path) - 1, every), len(path) - 1]
        kept.append([[round(1000 * float(x), 1) for x in point] for point in path[index]])
    return kept


def told_likelihood(policy: LatentPolicy, shown: Shown, seed: int, *, span: str) -> dict[str, Any]:
    """Measure what is held out: exactly where latents can be enumerated, by a lower bound elsewhere."""
    found = likelihood(policy, shown.held_out(span), shown.spaces[1], seed)
    return {
        "kind": found.kind,
        "method": found.method,
        "per_dimension": spread(found.per_dimension),
        "dimensions": int(found.dimensions.sum()),
    }


def likelihood(policy: LatentPolicy, rows: FitRows, action_space: Any, seed: int) -> Likelihood:  # noqa: ANN401 (any space)
    """Enumerate, or bound by importance sampling; in the units of the environment's actions."""
    scale = action_scale_of(action_space)
    obs, action, episode = rows.obs, rows.action, rows.episode
    if support_size(policy, rows.take(slice(0, 1)).obs):
        return exact_likelihood(policy, obs, action, episode, action_scale=scale)
    with seeded(stream_seed(seed, "held out")):
        curve = iwae_curve(policy, obs, action, episode, num_particles=LADDER, num_replicates=2, action_scale=scale)
    return curve.likelihood


def spread(interval: Interval) -> list[float | None]:
    """Return value, low and high, None for what is not a number."""
    return [None if np.isnan(x) else round(float(x), 4) for x in (interval.value, interval.low, interval.high)]


def neighbours(points: NDArray[np.floating[Any]], mode: Sequence[int]) -> float:
    """Return the share of points whose nearest other point has the same mode.

    >>> neighbours(np.array([[0.0], [0.1], [5.0], [5.2]]), [0, 0, 1, 0])
    0.5
    """
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    labels = np.asarray(mode)
    return float((labels[distance.argmin(1)] == labels).mean())


def purity(code: Sequence[int], mode: Sequence[int]) -> float:
    """Return the share of episodes whose mode is the commonest one of their code.

    >>> purity([0, 0, 0, 1], [5, 5, 6, 6])
    0.75
    """
    codes, labels = np.asarray(code), np.asarray(mode)
    return float(sum(np.bincount(labels[codes == each]).max() for each in np.unique(codes)) / len(codes))


def size_of(policy: nn.Module) -> int:
    """Count parameters."""
    return sum(each.numel() for each in policy.parameters())
