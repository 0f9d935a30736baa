r"""Ratios of estimated log pi: how well each trains, and how much its surrogate's gradient and the ratio itself vary.

The task is ``latentpg/MixingGoals-v0``, whose return asks for a mixture, learnt by GRPO with a mixture policy of eight
components, for which the exact ratio is known by enumeration. At K = 4 particles from the guide, the ratios are

``joint``           the recorded latent taken as part of the action (one particle, whatever K);
``fresh``           each side estimated on K particles of its own, drawn when that side is scored;
``shared``          both sides on the same K fresh particles, without the recorded latent;
``elbo``            both sides' evidence lower bounds on the same K particles;
``conditional-is``  both sides on the recorded latent and K - 1 fresh particles;
``exact``           both sides by enumeration.

Guides learn by what suits the estimator: on recorded latents (``fresh``, ``shared``, ``exact``), by the bound
(``elbo``), and by weighted retained particles (``conditional-is``).

**Cells.** ``gain-1-NAME`` trains with one ratio from a last layer of gain 1, ``gain-0.01-NAME`` from this package's
default gain, where all components begin alike. ``same-policies`` trains by the exact ratio, and at five points of that
training measures every ratio on the same rollouts, with one guide: along its own training each ratio would be measured
on other policies than the others.

**A measurement** holds the old policy, as it acted, and the policy that one whole update made of it, whose rollout is
not among those that are measured: so new parameters do not hang on the particles. Each of the replicates is a whole
rollout of the old policy (512 rows), scored with each ratio, on which the PPO-clip surrogate is differentiated in theta
and phi at the old policy ("first", the first step of an update) and at the new one ("moved").

**What was tried**, on seeds 100 and 101: with the exact and the joint ratio, discounts of 0.9, 0.8 and 0.5, learning
rates of 1e-3, 3e-3 and 1e-2, advantages with and without the group's standard deviation, and torch's own
initialisation; with these two and the conditional ratio, gains of 0.01, 1 and 4. No option was chosen for one ratio.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from torch import Tensor

from benchmarks.learning.exploration import COLOURS, curve_of, over_seeds, save, styled, with_gain
from benchmarks.learning.store import Results
from latentpg.estimators import (
    ELBO,
    ConditionalIS,
    Estimate,
    Estimator,
    Exact,
    Guide,
    JointScore,
    Particles,
    PosteriorIS,
)
from latentpg.learners import Agent, GRPOOptions, Scored
from latentpg.learners.episodic import EpisodeBatch, episode_batch
from latentpg.learners.group_credit import group_advantages
from latentpg.learners.grpo_rows import grpo_rows
from latentpg.learners.scoring import store
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.statistics import Interval
from latentpg.programs import LatentPolicy, Latents, Observations, model_parameters
from latentpg.rollout import collect_groups, make_envs
from latentpg.training import TrainingConfig, evaluate, prepared, resolve
from latentpg.training.config import known_values

SEEDS = (0, 1, 2, 3, 4)

ENV = "latentpg/MixingGoals-v0"
STEPS = 80_000
NUM_ENVS = 16
NUM_PARTICLES = 4
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the training after which ratios are measured."""

NUM_REPLICATES = 24
GAIN, ALIKE = 1.0, 0.01
"""Gains of the decoder's last layer: one that tells components apart from the start, and the default."""

OPTIMUM = 14.546875
"""The best expected return of a policy without memory; see :mod:`latentpg.envs.mixing_goals`."""


@dataclass(frozen=True)
class OwnParticles:
    """Estimate log pi on particles that are drawn anew whenever it is asked for, so that the sides share none."""

    num_particles: int = NUM_PARTICLES

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Draw K particles from the guide, of which nothing is used."""
        return PosteriorIS(self.num_particles, Guide()).propose(policy, obs, action)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        """Estimate on K other ones."""
        own = PosteriorIS(self.num_particles, Guide())
        return own.estimate(policy, obs, action, own.propose(policy, obs, action))


ESTIMATORS: Mapping[str, Estimator] = {
    "joint": JointScore(),
    "fresh": OwnParticles(),
    "shared": PosteriorIS(NUM_PARTICLES, Guide()),
    "elbo": ELBO(NUM_PARTICLES),
    "conditional-is": ConditionalIS(NUM_PARTICLES, Guide()),
    "exact": Exact(),
}

PARTS: Mapping[str, Mapping[str, Any]] = {
    "joint": {"estimator": "joint-score"},
    "fresh": {"estimator": "posterior-is", "num_particles": NUM_PARTICLES, "proposal": "guide"},
    "shared": {"estimator": "posterior-is", "num_particles": NUM_PARTICLES, "proposal": "guide"},
    "elbo": {"estimator": "elbo", "num_particles": NUM_PARTICLES},
    "conditional-is": {"estimator": "conditional-is", "num_particles": NUM_PARTICLES, "proposal": "guide"},
    "exact": {"estimator": "exact", "guide_objective": "recorded"},
}
"""Options of each; for ``fresh`` the estimator is replaced once the run is built."""

NAMES: Mapping[str, str] = {
    "joint": "joint",
    "fresh": "fresh, own particles",
    "shared": "fresh, shared particles",
    "elbo": "ELBO",
    "conditional-is": "conditional IS",
    "exact": "exact",
}
"""What tables and figures call them."""


def options(name: str, seed: int) -> TrainingConfig:
    """Return the configuration of a run, all but the gain."""
    common = {
        "env": ENV,
        "algo": "grpo",
        "policy": "mixture",
        "num_components": 8,
        "hidden": (32, 32),
        "seed": seed,
        "total_timesteps": STEPS,
        "num_envs": NUM_ENVS,
        "vectorization_mode": "native",
        "num_groups": 1,
        "group_size": NUM_ENVS,
        "num_epochs": 4,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "credit": "pooled-to-go",
        "gamma": 0.5,
        "gap_every": 0,
    }
    return resolve({**common, **PARTS[name]})


def train(name: str, gain: float, measured: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Train one seed with one ratio, measure some at the saved points, and play 100 episodes at the end."""
    config = options(name, seed)
    curve: list[tuple[int, float]] = []
    points: list[dict[str, Any]] = []
    envs = make_envs(ENV, NUM_ENVS, vectorization_mode="native")
    with prepared(config) as built:
        learner, policy, grpo = built.learner, built.policy, config.algorithm
        with_gain(policy, gain)  # type: ignore[arg-type]
        agent: Agent = learner.agent  # type: ignore[attr-defined]
        agent.estimator = ESTIMATORS[name]
        updates = -(-STEPS // (NUM_ENVS * 32))
        due = {round(share * (updates - 1)): share for share in POINTS} if measured else {}
        for update in range(updates):
            old = copy.deepcopy(policy) if update in due else None
            told = learner.update(update / updates)
            curve.append((learner.num_timesteps, told["rollout/ep_rew_mean"]))
            if old is not None:
                moved = with_guide_of(old, policy)
                stream = stream_seed(seed, f"measurement after {update}")
                points.append({"share": due[update], **measure(envs, old, moved, measured, grpo, seed=stream)})
        last = evaluate(envs, policy, num_episodes=100, seed=stream_seed(seed, "last evaluation"))
        steps = learner.num_timesteps
    envs.close()
    returns = last.returns.tolist()
    return {
        "options": {**known_values(config), "gain": gain, "ratio": repr(ESTIMATORS[name])},
        "steps": steps,
        "returns": returns,
        "mean_return": sum(returns) / len(returns),
        "curve": curve,
        "points": points,
    }


def with_guide_of(old: LatentPolicy, new: LatentPolicy) -> LatentPolicy:
    """Copy the new policy with the old one's guide, which an update moves last and its ratios never see."""
    moved = copy.deepcopy(new)
    with torch.no_grad():
        for mine, theirs in zip(moved.guide_parameters(), old.guide_parameters(), strict=True):
            mine.copy_(theirs)
    return moved


def measure(
    envs: VectorEnv[Any, Any, Any],
    old: LatentPolicy,
    new: LatentPolicy,
    names: tuple[str, ...],
    grpo: GRPOOptions,
    *,
    seed: int,
    num_replicates: int = NUM_REPLICATES,
) -> dict[str, Any]:
    """Measure ratios between two policies on fresh rollouts of the old one, each beside the exact one."""
    every = tuple(dict.fromkeys((*names, "exact")))
    gradients: dict[tuple[str, str], list[Tensor]] = {(n, at): [] for n in every for at in ("first", "moved")}
    ratios: dict[tuple[str, str], list[Tensor]] = {key: [] for key in gradients}
    for number in range(num_replicates):
        with seeded(stream_seed(seed, f"replicate {number}")):
            batch = rollout(envs, old, grpo, seed=stream_seed(seed, f"environments {number}"))
            index = torch.arange(batch.rows.size)
            for name in every:
                scorer = store(old, ESTIMATORS[name], batch.rows)
                for at, policy in (("first", old), ("moved", new)):
                    scored = scorer.score(policy, index)
                    gradients[name, at].append(surrogate_gradient(policy, scored, batch, grpo))
                    ratios[name, at].append(scored.log_ratio.detach().exp())
    stacked = {key: torch.stack(each).double() for key, each in gradients.items()}
    joined = {key: torch.cat(each).double() for key, each in ratios.items()}
    return {
        name: {
            at: {
                **gradient_measures(stacked[name, at], stacked["exact", at]),
                **ratio_measures(joined[name, at], joined["exact", at], clip=float(grpo.clip_range)),
            }
            for at in ("first", "moved")
        }
        for name in every
    }


def rollout(envs: VectorEnv[Any, Any, Any], policy: LatentPolicy, grpo: GRPOOptions, *, seed: int) -> EpisodeBatch:
    """Act out an update's rows, and give them their advantages."""
    episodes = collect_groups(envs, policy, num_groups=grpo.num_groups, group_size=grpo.group_size, seed=seed)
    advantage = group_advantages(episodes, episodes.transitions.reward.double(), options=grpo)
    return episode_batch(episodes, advantage, aggregation=grpo.aggregation, horizon=grpo.horizon)


def surrogate_gradient(
    policy: LatentPolicy, scored: Scored, batch: EpisodeBatch, grpo: GRPOOptions
) -> Float[Tensor, " P"]:
    """Differentiate the surrogate of all rows in theta and phi."""
    rows = grpo_rows(scored.log_prob, scored.log_ratio, batch, torch.arange(batch.rows.size), options=grpo)
    found = torch.autograd.grad(rows.value.sum(), model_parameters(policy), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


def gradient_measures(gradient: Float[Tensor, "R P"], exact: Float[Tensor, "R P"]) -> dict[str, float]:
    r"""Return what R gradients are, beside those of the exact ratio on the same R rollouts.

    ``variance`` is the trace of the covariance over rollouts and particles, ``exact_variance`` that of the exact ratio,
    and ``added`` the mean square of the difference, which is what the estimate alone adds. ``bias_squared`` and
    ``signal_squared`` are squared lengths of the mean difference and of the exact mean, less what their noise gives in
    expectation; both may come out negative.
    """
    size, difference = len(gradient), gradient - exact

    def squared_mean(sample: Float[Tensor, "R P"]) -> float:
        return float(sample.mean(0).square().sum() - sample.var(0).sum() / size)

    return {
        "variance": float(gradient.var(0).sum()),
        "exact_variance": float(exact.var(0).sum()),
        "added": float(difference.square().sum(1).mean()),
        "bias_squared": squared_mean(difference),
        "signal_squared": squared_mean(exact),
    }


def ratio_measures(ratio: Float[Tensor, " M"], exact: Float[Tensor, " M"], *, clip: float) -> dict[str, float]:
    """Return mean and variance of a ratio over all rows, its mean squared error, and the share outside of the clip."""
    return {
        "ratio_mean": float(ratio.mean()),
        "ratio_variance": float(ratio.var()),
        "exact_ratio_variance": float(exact.var()),
        "ratio_error": float((ratio - exact).square().mean()),
        "clipped": float(((ratio - 1).abs() > clip).double().mean()),
    }


COMMON = "same-policies"
CELLS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    COMMON: partial(train, "exact", GAIN, tuple(ESTIMATORS)),
    **{f"gain-{GAIN:g}-{name}": partial(train, name, GAIN, ()) for name in ESTIMATORS if name != "exact"},
    **{f"gain-{ALIKE:g}-{name}": partial(train, name, ALIKE, ()) for name in ESTIMATORS},
}


def runs_of(results: Results, name: str, gain: float) -> Mapping[int, dict[str, Any]]:
    """Return the trainings with a ratio; the exact one's are those in which every ratio was measured."""
    cell = COMMON if (name, gain) == ("exact", GAIN) else f"gain-{gain:g}-{name}"
    return results.get(cell, {})


def over_points(
    runs: Mapping[int, Mapping[str, Any]], name: str, at: str, measure: Callable[[Mapping[str, float]], float]
) -> list[float]:
    """Average a number over the points of each training, a value a seed."""
    return [float(np.mean([measure(point[name][at]) for point in runs[seed]["points"]])) for seed in sorted(runs)]


def times_exact(runs: Mapping[int, Mapping[str, Any]], name: str, at: str) -> Interval:
    """Divide a gradient's variance by the exact ratio's, as a geometric mean over points, and average over seeds."""
    logs = over_points(runs, name, at, lambda each: math.log(each["variance"] / each["exact_variance"]))
    return over_seeds(np.exp(logs).tolist())


def table(results: Results) -> list[str]:
    """Return a row a ratio; measures are those on the same policies, averaged over the five points.

    Variances and squared biases of gradients are in units of the exact ratio's gradient variance at the same point.
    """
    common = results.get(COMMON, {})
    lines = [
        "| ratio | final return, gain 1 | final return, gain 0.01 | gradient variance, first step | after one update "
        "| squared bias, first step | mean ratio | variance of the ratio | squared error of the ratio "
        "| clipped at the first step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        cells = [title]
        for gain in (GAIN, ALIKE):
            cells.append(_last(runs_of(results, name, gain)))
        if common:
            cells += [
                spelled(times_exact(common, name, "first")),
                spelled(times_exact(common, name, "moved")),
                spelled(over_seeds(over_points(common, name, "first", _relative_bias))),
                *(
                    spelled(over_seeds(over_points(common, name, "moved", itemgetter(measure))))
                    for measure in ("ratio_mean", "ratio_variance", "ratio_error")
                ),
                f"{over_seeds(over_points(common, name, 'first', itemgetter('clipped'))).value:.0%}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _last(runs: Mapping[int, Mapping[str, Any]]) -> str:
    """Write the returns at the end, and of how many seeds where some are missing."""
    if not runs:
        return "not run"
    missing = "" if len(runs) == len(SEEDS) else f", {len(runs)} of {len(SEEDS)} seeds"
    return spelled(over_seeds([runs[seed]["mean_return"] for seed in sorted(runs)])) + missing


def _relative_bias(measured: Mapping[str, float]) -> float:
    return measured["bias_squared"] / measured["exact_variance"]


def spelled(interval: Interval) -> str:
    """Write an interval to three digits.

    >>> spelled(Interval(1234.5, 0.001234, 2.0e9))
    '1.23e+03 (0.00123 to 2e+09)'
    """
    return f"{interval.value:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw returns against steps, and the variances of gradient and ratio at the saved points."""
    from matplotlib.figure import Figure

    common = results.get(COMMON, {})
    style = {name: (colour, "--" if name == "exact" else "-") for name, colour in zip(NAMES, COLOURS, strict=False)}
    style["exact"] = ("0.25", "--")
    with styled():
        figure = Figure(figsize=(6.9, 2.8), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for name, (colour, dashes) in style.items():
            runs = runs_of(results, name, GAIN)
            if runs:
                curve = curve_of(runs)
                steps, values = np.array(curve.steps) / 1000, smooth([point.value for point in curve.points])
                left.plot(steps, values, dashes, color=colour, label=NAMES[name])
            if common:
                _draw_points(middle, common, name, "variance", "exact_variance", "first", colour, dashes)
                if name != "exact":  # which has no error
                    _draw_points(right, common, name, "ratio_error", None, "moved", colour, dashes)
        left.axhline(OPTIMUM, color="0.6", linestyle=":", linewidth=0.8)
        left.annotate("optimum", (0, OPTIMUM), (2, 2), textcoords="offset points", color="0.4", fontsize=6)
        left.set(xlabel="environment steps (thousands)", ylabel="return of an episode", ylim=(0, 16))
        middle.set(yscale="log", xlabel="share of the training", ylabel="gradient variance ÷ the exact ratio's")
        right.set(yscale="log", xlabel="share of the training", ylabel="squared error of the ratio after one update")
        middle.set(ylim=(0.9, HIGHEST["variance"]), yticks=(1, 2, 4, 8), yticklabels=("1", "2", "4", "8"))
        right.set(ylim=(1e-4, HIGHEST["ratio_error"]))
        middle.minorticks_off()
        for axes, title in zip((left, middle, right), ("(a) training", "(b) gradient", "(c) ratio"), strict=True):
            axes.set_title(title, fontsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=6, frameon=False)
        return save(figure, folder / "learning-ratios")


HIGHEST: Mapping[str, float] = {"variance": 8.0, "ratio_error": 1.0}
"""Upper ends of axes; points beyond are written out."""


def smooth(values: list[float], width: int = 7) -> list[float]:
    """Average each value with its neighbours, fewer of them at the ends.

    >>> smooth([0.0, 3.0, 6.0], width=3)
    [1.5, 3.0, 4.5]
    """
    reach = width // 2
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


def _draw_points(
    axes: Any,  # noqa: ANN401 (matplotlib is imported late)
    runs: Mapping[int, Mapping[str, Any]],
    name: str,
    over: str,
    under: str | None,
    at: str,
    colour: str,
    dashes: str,
) -> None:
    """Draw a measure at each point of the training, with its interval over seeds."""
    shares, intervals = [], []
    for place, point in enumerate(next(iter(runs.values()))["points"]):
        measured = [run["points"][place][name][at] for run in runs.values()]
        shares.append(point["share"])
        intervals.append(over_seeds([each[over] / (each[under] if under else 1.0) for each in measured]))
    low, value, high = ([getattr(interval, end) for interval in intervals] for end in ("low", "value", "high"))
    axes.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(shares, value, dashes, color=colour, marker="o", markersize=2.5)
    highest, share = max(zip(value, shares, strict=True))
    if highest > HIGHEST[over]:
        offset: Any = {"xytext": (0, -1), "textcoords": "offset points", "ha": "center", "va": "top", "fontsize": 6}
        axes.annotate(f"up to {highest:.0e}", (share, HIGHEST[over]), color=colour, **offset)
