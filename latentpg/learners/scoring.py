r"""log pi of an update's rows under the policy that acted and the one that moves, on the same particles.

``stored`` particles are proposed once for all rows and kept for all epochs, so that the ratio of conditional importance
sampling is exact for parameters that do not hang on them; over several epochs a policy can fit its particles, and the
gap to fresh ones tells how far it did. ``fresh`` particles are proposed anew for every minibatch by the policy that
acted, of which a copy is kept: twice the work, and nothing to fit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import Estimate, Estimator, Particles
from latentpg.programs import LatentPolicy, Latents, Observations, num_rows, take_rows

BLOCK = 2**14
"""Rows times particles that are proposed at once."""

ParticleUse = Literal["stored", "fresh"]
"""Whether particles are kept for all epochs or proposed anew for every minibatch."""


@dataclass(frozen=True, eq=False)
class Rows:
    """B rows that a policy acted out: what an estimator needs to know of them."""

    obs: Observations
    action: Tensor
    latents: Latents

    @property
    def size(self) -> int:
        """B."""
        return num_rows(self.obs)

    def take(self, index: slice | Tensor) -> Rows:
        """Take some rows."""
        return Rows(take_rows(self.obs, index), self.action[index], take_rows(dict(self.latents), index))


@dataclass(frozen=True, eq=False)
class Scored:
    """Rows, their new log pi ``[B]``, differentiable, the old one without a gradient, diagnostics, the particles."""

    rows: Rows
    log_prob: Float[Tensor, " B"]
    old_log_prob: Float[Tensor, " B"]
    estimate: Estimate
    particles: Particles

    @property
    def log_ratio(self) -> Float[Tensor, " B"]:
        """Log pi_new - log pi_old on the same particles."""
        return self.log_prob - self.old_log_prob


@runtime_checkable
class Scorer(Protocol):
    """Scores rows by their numbers, under a policy that has moved since they were acted out."""

    def score(self, policy: LatentPolicy, index: Int[Tensor, " B"]) -> Scored:
        """Score some of the rows."""
        ...


@dataclass(frozen=True, eq=False)
class Stored:
    """Particles proposed once, with log pi of the policy that acted on them."""

    estimator: Estimator
    rows: Rows
    particles: Particles
    old_log_prob: Float[Tensor, " B"]

    def score(self, policy: LatentPolicy, index: Int[Tensor, " B"]) -> Scored:
        """Score some of the rows on the particles they have."""
        mine = self.rows.take(index)
        particles = self.particles.rows(index)
        estimate = self.estimator.estimate(policy, mine.obs, mine.action, particles)
        return Scored(mine, estimate.log_prob, self.old_log_prob[index], estimate, particles)


@dataclass(frozen=True, eq=False)
class Fresh:
    """Particles proposed by the policy that acted whenever rows are scored."""

    estimator: Estimator
    rows: Rows
    behaviour: LatentPolicy

    def score(self, policy: LatentPolicy, index: Int[Tensor, " B"]) -> Scored:
        """Propose for some of the rows, and score them."""
        mine = self.rows.take(index)
        particles = self.estimator.propose(self.behaviour, mine.obs, mine.action, mine.latents)
        with torch.no_grad():
            old = self.estimator.estimate(self.behaviour, mine.obs, mine.action, particles).log_prob
        estimate = self.estimator.estimate(policy, mine.obs, mine.action, particles)
        return Scored(mine, estimate.log_prob, old, estimate, particles)


def make_scorer(policy: LatentPolicy, estimator: Estimator, rows: Rows, *, use: ParticleUse) -> Scorer:
    """Propose for all rows, or keep a copy of the policy to propose later; ``policy`` is the one that acted."""
    if use == "fresh":
        return Fresh(estimator, rows, copy.deepcopy(policy))
    if use != "stored":
        raise OptionError("learner", "`particles`", expected="stored or fresh", got=repr(use))
    return store(policy, estimator, rows)


def store(policy: LatentPolicy, estimator: Estimator, rows: Rows) -> Stored:
    """Propose for all rows in blocks, and score them under the policy that acted, without a gradient."""
    size = max(1, BLOCK // int(getattr(estimator, "num_particles", 8)))
    parts, old = [], []
    with torch.no_grad():
        for start in range(0, rows.size, size):
            mine = rows.take(slice(start, start + size))
            particles = estimator.propose(policy, mine.obs, mine.action, mine.latents)
            parts.append(particles)
            old.append(estimator.estimate(policy, mine.obs, mine.action, particles).log_prob)
    return Stored(estimator, rows, _joined(parts), torch.cat(old))


def _joined(parts: list[Particles]) -> Particles:
    if len(parts) == 1:
        return parts[0]
    latents = {name: torch.cat([part.latents[name] for part in parts], 1) for name in parts[0].latents}
    return Particles(latents, torch.cat([part.log_proposal for part in parts], 1), parts[0].retained)
