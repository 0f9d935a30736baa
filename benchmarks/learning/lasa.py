r"""Thirty handwriting motions by one policy: which objective finds the likeliest one, and which draws them again.

The LASA motions (S. M. Khansari-Zadeh and A. Billard, 2011) are 30 shapes, drawn by hand seven times each; here each is
50 displacements of the pen, seen from where the motion begins (:mod:`benchmarks.learning._drawing`). One
:class:`~latentpg.policies.EpisodePolicy` learns all of them, without labels: one latent an episode is all that can tell
the shapes apart. Of each shape five motions are learnt from, one chooses the epoch, and one is held out; every seed has
a split of its own.

Every contender has two hidden layers of 64 and SiLU, standard deviations that begin at exp(-1) mm and have no floor,
and Adam with a rate that rises to 3e-3 over a tenth of the fit and falls along a cosine. Minibatches see observations
with noise of 1 (mm, and per cent of the motion); EM, whose likelihood never falls only on rows that stay the same,
sees them as they are.

* ``exact``, ``em``: one of 60 codes, the likelihood by enumeration, by gradient and by expectation and maximisation.
* ``elbo``, ``iwae``, ``reweighted-wake-sleep``, ``wake-sleep``, ``score-climbing``: z of 6 numbers, whose prior is a
  mixture of 150 Gaussians learnt with the rest. Afterwards, and beside it, the prior is set to the guide's aggregate
  posterior of the 150 training episodes; decoder and guide are the same ones.
  Reweighted wake-sleep teaches its guide by wake and sleep in equal parts: by wake alone, at the same rates, the
  log-weights of seed 0 were NaN within 500 epochs.
* ``plain``: a Gaussian, no latent; ``told``: the same network with the shape as 30 further inputs, the ceiling.

The likelihood is of the displacements in millimetres: enumerated for codes, annealed importance sampling (a lower
bound) for z of 6 numbers. A sample is a motion of z from the prior, 150 of them a contender (five a shape); it *counts*
as a shape by dynamic time warping to its nearest demonstration (:class:`~benchmarks.learning._drawing.Judged`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from benchmarks.learning._drawing import ACTIONS, OBSERVATIONS, THINNED, Seen, as_text, draw_motions, judge, motions
from benchmarks.learning._lasa_page import SHOWN, draw, table
from latentpg import seeded
from latentpg.data import Demonstrations, Normalization, Split, episode_rows, split_episodes
from latentpg.evaluation import HMC, Annealing, Independence
from latentpg.imitation import (
    ClassicWakeSleep,
    ExpectationMaximization,
    FitOptions,
    FitRows,
    ImportanceBound,
    MaximumLikelihood,
    Objective,
    ReweightedWakeSleep,
    ScoreClimbing,
    VariationalBound,
    fit,
    held_out,
    span_rows,
)
from latentpg.numerics.rng import stream_seed
from latentpg.policies import CodeLatent, EpisodePolicy, GaussianLatent, PlainPolicy
from latentpg.policies.heads import BoxHead
from latentpg.policies.priors import MixturePrior
from latentpg.programs import LatentPolicy

__all__ = ["CELLS", "SEEDS", "draw", "table"]

SEEDS = (0, 1, 2)

WIDTHS = (64, 64)
NUM_CODES = 60
LATENT_SIZE = 6
SAMPLES = 150
LABEL = 100.0
ANNEALING = Annealing(num_temperatures=20, num_chains=8, pilot_chains=4, kernels=(Independence(), HMC()))
LADDER = (1, 16, 256)
CODES, GAUSSIAN, PLAIN, TOLD = "codes", "gaussian", "plain", "told"


@dataclass(frozen=True)
class Contender:
    """A kind of latent, an objective, and how long the fit goes."""

    kind: str
    objective: Objective
    num_epochs: int
    batch_size: int = 30
    noise: float = 1.0

    @property
    def options(self) -> FitOptions:
        return FitOptions(
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            learning_rate=3e-3,
            warmup=0.1,
            max_grad_norm=5.0,
            evaluate_every=max(1, self.num_epochs // 10),
            observation_noise=self.noise,
        )


CONTENDERS: Mapping[str, Contender] = {
    "elbo": Contender(GAUSSIAN, VariationalBound(), 1000),
    "exact": Contender(CODES, MaximumLikelihood(), 120, batch_size=6),
    "told": Contender(TOLD, MaximumLikelihood(), 500),
    "plain": Contender(PLAIN, MaximumLikelihood(), 500),
    "iwae": Contender(GAUSSIAN, ImportanceBound(num_particles=8), 500),
    "wake-sleep": Contender(GAUSSIAN, ClassicWakeSleep(), 1000),
    "reweighted-wake-sleep": Contender(GAUSSIAN, ReweightedWakeSleep(num_particles=8, guide="both"), 500),
    "score-climbing": Contender(GAUSSIAN, ScoreClimbing(num_particles=8), 500),
    "em": Contender(CODES, ExpectationMaximization(num_gradient_steps=10), 12, noise=0.0),
}
"""Every contender; the numbers of epochs take each of them about as many seconds, EM some more."""


def learn(name: str, seed: int) -> dict[str, Any]:
    """Fit a contender, measure it on what was held out, and let it draw."""
    chosen, every = CONTENDERS[name], motions()
    split = split_episodes(every, fractions=(5 / 7, 1 / 7, 1 / 7), seed=seed)
    if chosen.kind == TOLD:
        split = replace(
            split, train=labelled(split.train), validation=labelled(split.validation), test=labelled(split.test)
        )
    with seeded(stream_seed(seed, "initial parameters")):
        policy = make_policy(chosen.kind, split.train)
    rows = rows_of(split.train)
    fitted = fit(
        policy,
        rows,
        objective=chosen.objective,
        options=chosen.options,
        seed=seed,
        validation=rows_of(split.validation),
    )
    priors = {"own": policy}
    if chosen.kind == GAUSSIAN:
        priors["matched"] = matched(policy, rows)
    return {
        "objective": repr(chosen.objective),
        "options": asdict(chosen.options),
        "steps": chosen.num_epochs * -(-rows.size // chosen.batch_size),
        "best_epoch": fitted.best_epoch,
        "parameters": size_of(policy),
        "sigma": sigma_of(policy),
        "priors": {
            prior: measure(each, chosen.kind, every, split, seed, is_shown=(name, prior) in SHOWN and seed == SEEDS[0])
            for prior, each in priors.items()
        },
    }


def size_of(policy: LatentPolicy) -> int:
    """Count the numbers that are learnt."""
    assert isinstance(policy, nn.Module)
    return sum(each.numel() for each in policy.parameters())


def make_policy(kind: str, train: Demonstrations) -> LatentPolicy:
    """Build a policy from the ambient stream."""
    common: dict[str, Any] = {
        "hidden": WIDTHS,
        "activation": nn.SiLU,
        "encoder": Seen(Normalization.of(train).encoder()),
    }
    if kind in (PLAIN, TOLD):
        seen = spaces.Box(-np.inf, np.inf, (train.obs.shape[1],), np.float32)
        policy = PlainPolicy(seen, ACTIONS, **common)
        assert isinstance(policy.head, BoxHead)
        nn.init.constant_(policy.head.log_std, -1.0)
        return policy
    latent = CodeLatent(NUM_CODES) if kind == CODES else gaussian(train.num_episodes)
    return EpisodePolicy(OBSERVATIONS, ACTIONS, latent=latent, initial_log_std=-1.0, **common)


def gaussian(components: int) -> GaussianLatent:
    """Return the continuous latent with a prior of so many components."""
    return GaussianLatent(LATENT_SIZE, "mixture", num_components=components)


def matched(policy: LatentPolicy, rows: FitRows) -> LatentPolicy:
    """Return a copy whose prior is the aggregate posterior of the rows."""
    other = copy.deepcopy(policy)
    assert isinstance(other, EpisodePolicy) and isinstance(other.prior, MixturePrior)
    other.match_prior(rows.obs, rows.action)
    return other


def rows_of(demonstrations: Demonstrations) -> FitRows:
    """Make each motion one row."""
    return span_rows(episode_rows(demonstrations))


def labelled(demonstrations: Demonstrations) -> Demonstrations:
    """Let every step see its motion's shape, in hundreds: the observations' noise of 1 then leaves it clear."""
    told = LABEL * one_hot(demonstrations)[demonstrations.episode]
    return replace(demonstrations, obs=torch.cat([demonstrations.obs, told], 1))


def one_hot(demonstrations: Demonstrations) -> Tensor:
    """Return the shape of each motion as a vector ``[E, C]``."""
    assert demonstrations.mode is not None
    return nn.functional.one_hot(demonstrations.mode, len(demonstrations.mode_names)).float()


def sigma_of(policy: LatentPolicy) -> list[float]:
    """Return the standard deviations of a displacement, in millimetres."""
    assert isinstance(policy, nn.Module)
    head = next(part for part in policy.modules() if isinstance(part, BoxHead))
    return head.log_std.detach().exp().tolist()


def measure(
    policy: LatentPolicy, kind: str, every: Demonstrations, split: Split, seed: int, *, is_shown: bool
) -> dict[str, Any]:
    """Measure the likelihood of the test part, and what is drawn, steadily and as the policy acts.

    Paths are kept where a figure shows them.
    """
    assert split.test.mode is not None
    with seeded(stream_seed(seed, "likelihood")):
        found = held_out(policy, rows_of(split.test), num_particles=LADDER, annealing=ANNEALING)
    curve = None
    if found.curve is not None:
        curve = {str(each.num_particles): each.bound.value for each in found.curve.points}  # nats a motion
    told = None
    if kind == TOLD:
        told = LABEL * torch.eye(len(every.mode_names)).repeat(SAMPLES // len(every.mode_names), 1)
    drawn = {}
    for name, steady in (("steady", True), ("drawn", False)):
        with seeded(stream_seed(seed, f"samples, {name}")):
            paths = draw_motions(policy, SAMPLES, steady=steady, told=told)[:, ::THINNED]
        drawn[name] = judgement(paths, every, split)
        if steady and is_shown:
            drawn[name]["paths"] = as_text(paths)
    return {
        "likelihood": found.likelihood.per_dimension.value,
        "kind": found.likelihood.kind,
        "method": found.likelihood.method,
        "curve": curve,
        "log_prob": [round(value, 3) for value in found.likelihood.log_prob.tolist()],
        "dimensions": found.likelihood.dimensions.tolist(),
        "shapes": split.test.mode.tolist(),
        "samples": drawn,
    }


def judgement(paths: np.ndarray, every: Demonstrations, split: Split) -> dict[str, Any]:
    """Say how many samples count as a shape, of how many shapes, and how far apart samples and demonstrations are."""
    judged = judge(paths, every)
    return {
        "counting": float(judged.counts.mean()),
        "shapes": judged.shapes,
        "of_shape": np.bincount(judged.shape[judged.counts], minlength=len(every.mode_names)).tolist(),
        "precision_mm": float(judged.nearest.mean()),
        "coverage_mm": float(judged.apart[:, split.episodes[2].numpy()].min(0).mean()),
    }


CELLS: Mapping[str, Callable[[int], dict[str, Any]]] = {name: partial(learn, name) for name in CONTENDERS}
