r"""Modes against the entropy coefficient: three tasks whose return is as good at one goal as at several.

In ``latentpg/ArmsBandit-v0`` three arms of six pay 1, in ``latentpg/PeaksBandit-v0`` three actions on a line, and in
``latentpg/MultiGoal-v0`` a point reaches any of four goals. The return alone rewards no diversity. A cell trains one
policy on one task at each entropy coefficient, 0 included, one run after the other from the same seed, and plays 100
episodes of each at the end. What is counted are the modes of the episodes that succeeded,

.. math:: M_{\text{eff}} = \exp\Bigl(-\sum_m \hat p_m\log\hat p_m + \frac{\hat M-1}{2n}\Bigr),

the exponential of the entropy as G. A. Miller corrects it for n successes, and never more than there are modes. Success
is an arm that pays 1, an action that pays half or more, a goal reached.

**What is run** is GRPO with leave-one-out advantages and no division by a spread, so that what is climbed is the return
plus the coefficient times the entropy of an episode's actions: the coefficient is a price in return per nat. An episode
is one row; a latent is held for it, and of one step in the bandits. A policy without a latent has the sum of its steps'
entropies in closed form instead, in which the states are taken as given: on MultiGoal the entropy of a latent policy's
episode also grows with its length, and a large coefficient (0.1, and at some options 0.01) teaches it never to arrive.

**What was tried**, on seed 100 (101 once), for a mixture and the policy without a latent, and for some a Gaussian
latent. PPO with a latent a step: from torch's initialisation, learning rates of 3e-3 and 1e-2, coefficients from 0 to
0.3, one mode or a poor return everywhere but on the arms; from the spread start of
:mod:`benchmarks.learning._shared_modes`, all three peaks at 0.1 and 0.3, but on MultiGoal one goal at 0 and 0.1, and
1.5 of them at a return of 0.4 at 0.3. GRPO from the spread start: on the peaks 3e-3 was too slow for the budget and
1e-2 was not. On MultiGoal a rate of 1e-2 left a mixture one goal at coefficient 0 and, at 0.01, 2.4 goals at 0.63 (with
two hidden layers no goal at all); 3e-3 and 5e-3 about two goals at 0.003 and 0.01, at returns of 0.65 to 0.72. Mixtures
of 16 and 32 with a gain of 4 came to 2.1 and 1.6 goals at 0.74 and 0.73; minibatches of 128 episodes were worse. A
Gaussian latent with a prior fixed at N(0, 1) had one mode on the peaks at 0 and 0.01, as one with a learned prior had,
and 1.9 and 2.0 goals on MultiGoal at returns of 0.72 and 0.73, at 0 and 0.003; with a learned prior it reached 0.80 at
1e-2 and coefficient 0, at one goal. The rate of 3e-3 on MultiGoal is thus the mixture's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from benchmarks.learning._shared_modes import POLICIES, Trained, train
from benchmarks.learning.exploration import COLOURS, over_seeds, save, spelled, styled
from benchmarks.learning.store import Results
from latentpg.envs import arms_bandit, multi_goal, peaks_bandit
from latentpg.evaluation import miller_madow_entropy
from latentpg.numerics.statistics import Interval

SEEDS = (0, 1, 2, 3, 4)

NEARLY = 0.95
"""Share of the optimal return that counts as optimal in the short table."""


def arm_mode(trained: Trained) -> Int[NDArray[np.int64], " E"]:
    """Return which of the good arms each episode pulled, or -1."""
    return paid_arm(trained.action)


def paid_arm(arm: Int[NDArray[np.integer[Any]], " E"]) -> Int[NDArray[np.int64], " E"]:
    """Return the place of each arm among those that pay 1, or -1.

    >>> paid_arm(np.array([0, 1, 2, 3, 4, 5])).tolist()
    [0, -1, 1, -1, 2, -1]
    """
    best = np.flatnonzero(np.array(arms_bandit.PAYS) == 1.0)
    return (np.searchsorted(best, arm) + 1) * np.isin(arm, best) - 1


def peak_mode(trained: Trained) -> Int[NDArray[np.int64], " E"]:
    """Return the peak of each episode's action, or -1."""
    return paid_peak(trained.action[:, 0])


def paid_peak(action: NDArray[np.floating[Any]]) -> Int[NDArray[np.int64], " E"]:
    """Return the nearest peak of actions that pay half or more, and -1 for the others.

    >>> paid_peak(np.array([-0.6, 0.1, 0.2, 0.55])).tolist()
    [0, 1, -1, 2]
    """
    nearest = np.abs(action[:, None] - np.array(peaks_bandit.PEAKS)).argmin(1)
    return np.where(peaks_bandit.mean_reward(action) >= 0.5, nearest, -1)


def goal_mode(trained: Trained) -> Int[NDArray[np.int64], " E"]:
    """Return the goal that each episode ended at, or -1."""
    steps = trained.episodes
    last = (steps.lengths.cumsum(0) - 1).numpy()
    return multi_goal.MultiGoal().reached(steps.transitions.next_obs.numpy()[last].astype(np.float64))


@dataclass(frozen=True)
class Task:
    """A task: its title, its number of modes, its optimal return, the mode of each episode, and what is run on it."""

    title: str
    num_modes: int
    optimum: float
    mode_of: Callable[[Trained], Int[NDArray[np.int64], " E"]]
    policies: tuple[str, ...]
    coefficients: tuple[float, ...]
    options: Mapping[str, Any]


_ONE_STEP = {"num_groups": 1, "group_size": 128, "total_timesteps": 15_360, "learning_rate": 1e-2}
_WALK = {"num_groups": 4, "group_size": 32, "total_timesteps": 120_000, "learning_rate": 3e-3}

TASKS: Mapping[str, Task] = {
    "arms": Task(
        "ArmsBandit",
        3,
        arms_bandit.OPTIMAL_RETURN,
        arm_mode,
        ("mixture", "plain"),
        (0.0, 0.01, 0.03, 0.1),
        {"env": "latentpg/ArmsBandit-v0", **_ONE_STEP},
    ),
    "peaks": Task(
        "PeaksBandit",
        len(peaks_bandit.PEAKS),
        peaks_bandit.OPTIMAL_RETURN,
        peak_mode,
        ("mixture", "gaussian", "plain"),
        (0.0, 0.01, 0.03, 0.1),
        {"env": "latentpg/PeaksBandit-v0", **_ONE_STEP},
    ),
    "goals": Task(
        "MultiGoal",
        4,
        multi_goal.OPTIMAL_RETURN,
        goal_mode,
        ("mixture", "gaussian", "plain"),
        (0.0, 0.003, 0.01),
        {"env": "latentpg/MultiGoal-v0", **_WALK},
    ),
}
"""Every task; on the arms a Gaussian latent is left out, a categorical being any law over six arms already."""

GRPO: Mapping[str, Any] = {
    "algo": "grpo",
    "latent": "episode",
    "advantage": "rloo",
    "aggregation": "constant",
    "batch_size": 64,
    "hidden": (32,),
}
"""What every run has beside its task's and policy's options."""


def sweep(task: str, policy: str, seed: int) -> dict[str, Any]:
    """Train a policy on a task at each of its coefficients."""
    given = TASKS[task]
    runs = []
    for coefficient in given.coefficients:
        options = {**GRPO, **given.options, **POLICIES[policy], "entropy_coefficient": coefficient}
        trained = train(options, seed)
        runs.append({"coefficient": coefficient, **trained.told(), **measure(given.mode_of(trained), given.num_modes)})
    return {"task": task, "policy": policy, "steps": sum(run["steps"] for run in runs), "runs": runs}


def measure(mode: Int[NDArray[np.int64], " E"], num_modes: int) -> dict[str, Any]:
    """Count the modes of episodes that succeeded; those that failed have -1. Without a success there are no modes.

    >>> measure(np.array([0, 0, 1, 1, -1]), 3)["counts"]
    [2, 2, 0]
    """
    counts = np.bincount(mode[mode >= 0], minlength=num_modes)
    found = int(counts.sum())
    nats = float(miller_madow_entropy(torch.from_numpy(counts).double())) if found else math.nan
    return {
        "counts": counts.tolist(),
        "success": found / len(mode),
        "effective_modes": min(math.exp(nats), float(num_modes)) if found else None,
    }


CELLS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    f"{name}-{policy}": partial(sweep, name, policy) for name, task in TASKS.items() for policy in task.policies
}


def name_of(task: str, policy: str) -> str:
    """Return what tables and figures call a policy."""
    if policy == "plain":
        return "categorical, no latent" if task == "arms" else "Gaussian, no latent"
    return {"mixture": "mixture of 8", "gaussian": "Gaussian latent"}[policy]


@dataclass(frozen=True)
class Point:
    """What the seeds of a policy came to at one coefficient; modes are of the seeds that had a success."""

    coefficient: float
    modes: Interval | None
    returns: Interval
    success: float


def points(runs: Mapping[int, Mapping[str, Any]]) -> list[Point]:
    """Join the seeds of a cell, coefficient by coefficient."""
    joined = []
    for same in zip(*(runs[seed]["runs"] for seed in sorted(runs)), strict=True):
        modes = [run["effective_modes"] for run in same if run["effective_modes"] is not None]
        joined.append(
            Point(
                same[0]["coefficient"],
                over_seeds(modes) if modes else None,
                over_seeds([run["mean_return"] for run in same]),
                sum(run["success"] for run in same) / len(same),
            )
        )
    return joined


def best(found: Sequence[Point], optimum: float) -> Point | None:
    """Return the point with the most modes among those whose return is nearly optimal; None where none is."""
    good = [point for point in found if point.modes is not None and point.returns.value >= NEARLY * optimum]
    return max(good, key=lambda point: point.modes.value if point.modes else 0.0, default=None)


def table(results: Results) -> list[str]:
    """Return a row a policy, the most modes that it kept at nearly the optimal return, then a row a coefficient."""
    cells = [(task, policy) for task in TASKS for policy in TASKS[task].policies if f"{task}-{policy}" in results]
    lines = [
        f"| task | policy | modes at coefficient 0 | most modes at {100 * NEARLY:.0f} % of the optimum | coefficient |",
        "|---|---|---|---|---|",
    ]
    for task, policy in cells:
        found = points(results[f"{task}-{policy}"])
        top, label = best(found, TASKS[task].optimum), f"{TASKS[task].title} | {name_of(task, policy)}"
        most = "none is so good | " if top is None or top.modes is None else f"{_said(top.modes)} | {top.coefficient:g}"
        lines.append(f"| {label} | {_said(found[0].modes)} | {most} |")
    lines += [
        "",
        "| task | policy | entropy coefficient | effective modes, IQM (95 %) | return, IQM (95 %) | success |",
        "|---|---|---|---|---|---|",
    ]
    for task, policy in cells:
        for point in points(results[f"{task}-{policy}"]):
            lines.append(
                f"| {TASKS[task].title} | {name_of(task, policy)} | {point.coefficient:g} | {_said(point.modes)} | "
                f"{spelled(point.returns, digits=3)} | {100 * point.success:.0f} % |"
            )
    return lines


def _said(modes: Interval | None) -> str:
    return "no success" if modes is None else spelled(modes, digits=2)


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw modes and return against the coefficient, a column a task; coefficients stand at even distances."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(6.9, 3.6), layout="constrained")
        panels = figure.subplots(2, len(TASKS), sharex="col")
        for (name, task), (upper, lower) in zip(TASKS.items(), panels.T, strict=True):
            for place, (policy, colour) in enumerate(zip(POLICIES, COLOURS, strict=False)):
                if f"{name}-{policy}" in results:
                    shift = 0.08 * (place - 1)
                    found = points(results[f"{name}-{policy}"])
                    _bars(upper, [(at + shift, p.modes) for at, p in enumerate(found) if p.modes], colour)
                    _bars(lower, [(at + shift, p.returns) for at, p in enumerate(found)], colour)
            upper.set(title=task.title, ylim=(0.8, task.num_modes + 0.5), yticks=range(1, task.num_modes + 1))
            lower.set(xlabel="entropy coefficient (return per nat)", ylim=(0, 1.2 * task.optimum))
            lower.set(xlim=(-0.3, len(task.coefficients) - 0.7), xticks=range(len(task.coefficients)))
            lower.set_xticklabels([f"{coefficient:g}" for coefficient in task.coefficients])
            _mark(upper, task.num_modes, "all modes")
            _mark(lower, task.optimum, "optimum")
            for axes in (upper, lower):
                axes.spines[["top", "right"]].set_visible(False)
        panels[0, 0].set_ylabel("effective modes")
        panels[1, 0].set_ylabel("return of an episode")
        names = ("mixture of 8", "Gaussian latent", "no latent")
        handles = [panels[0, 0].plot([], [], "o-", color=c, markersize=3)[0] for c in COLOURS[: len(names)]]
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        return save(figure, folder / "learning-modes")


def _mark(axes: Any, value: float, label: str) -> None:  # noqa: ANN401 (matplotlib is imported late)
    axes.axhline(value, color="0.6", linestyle=":", linewidth=0.8)
    where: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    axes.annotate(label, (1.0, value), (-2, 3), color="0.4", fontsize=6, **where)


def _bars(axes: Any, found: Sequence[tuple[float, Interval]], colour: str) -> None:  # noqa: ANN401 (matplotlib is imported late)
    x, value = [at for at, _ in found], [point.value for _, point in found]
    low, high = ([abs(getattr(point, end) - point.value) for _, point in found] for end in ("low", "high"))
    axes.errorbar(x, value, yerr=[low, high], color=colour, marker="o", markersize=3, elinewidth=0.8, capsize=1.5)
