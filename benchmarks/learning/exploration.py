"""Exploration with a latent that is held for an episode: the corridor that is paid at its ends alone, under GRPO.

Compared at the same budget are ``episode`` (a Gaussian latent, drawn once an episode), ``step`` (the same policy with
the same initial weights, its latent drawn anew at every step) and ``plain`` (a categorical without a latent); and
``mixture-episode`` and ``mixture-step``, the same with a latent of eight values, at one gain.

**What decides.** Until an episode has been paid all returns are equal, every advantage is zero, and the policy stays as
it was initialised. Whether a run finds the reward therefore hangs on its initial network, which the *gain* of the last
layer decides: at this package's default, 0.01, all latents act alike and nothing explores. So the gain is a factor of
the comparison, the same values for all, and for each network the chance that an episode is paid is computed from its
own probabilities by the walk's recursion. 40 further initialisations a seed say how far five runs can be trusted.

**What was tried**, on seeds 100 to 102: learning rates of 3e-4, 1e-3 and 3e-3 for all three kinds (they change how fast
a reward that was found is learnt, and nothing before); and, without training, on the initial networks of 30 seeds,
gains from 0.01 to 64, torch's own initialisation, widths 16 and 64, and mixtures of 4 and 8. All three kinds found as
good as most at gains from 4 on; figures show 4. The budget, 24,000 steps or some 800 episodes, was set beforehand, at
less than a third of the 79,000 that a fair coin needs on average.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.learning.store import Results
from latentpg.envs.corridor import EPISODE_STEPS, HALF_LENGTH
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.statistics import Interval
from latentpg.policies import GaussianPolicy, MixturePolicy, PlainPolicy
from latentpg.rollout import make_envs
from latentpg.runs import publish
from latentpg.training import (
    Curve,
    TrainingConfig,
    bootstrap_interval,
    evaluate,
    interquartile_mean,
    learning_curve,
    prepared,
    resolve,
)
from latentpg.training.build import make_policy
from latentpg.training.config import known_values
from latentpg.training.policies import SMALL_GAIN

SEEDS = (0, 1, 2, 3, 4)

ENV = "latentpg/Corridor-v0"
STEPS = 24_000
GAINS = (0.01, 1.0, 4.0, 16.0)
SHOWN_GAIN = 4.0
"""The gain at which runs are drawn."""

LATENTS = 128
"""Draws of a continuous latent over which a chance is averaged."""

INITIALISATIONS = 40
"""Further initial networks a seed whose chances are computed."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "0.45")
"""Okabe and Ito's, told apart by the colour-blind too."""

_GAUSSIAN = {"policy": "gaussian", "latent_size": 2, "prior": "standard", "num_particles": 8}
_MIXTURE = {"policy": "mixture", "num_components": 8, "num_particles": 8}

KINDS: Mapping[str, Mapping[str, Any]] = {
    "episode": {**_GAUSSIAN, "latent": "episode", "batch_size": 4},
    "step": {**_GAUSSIAN, "latent": "step", "batch_size": 128},
    "plain": {"policy": "plain", "batch_size": 128},
    "mixture-episode": {**_MIXTURE, "latent": "episode", "batch_size": 4},
    "mixture-step": {**_MIXTURE, "latent": "step", "batch_size": 128},
}
"""What each kind has beside the options of all; four whole episodes or 128 steps a minibatch, about the same."""

NAMES: Mapping[str, str] = {
    "episode": "Gaussian latent, once an episode",
    "step": "Gaussian latent, every step",
    "plain": "categorical, no latent",
    "mixture-episode": "mixture of 8, once an episode",
    "mixture-step": "mixture of 8, every step",
}
"""What tables and figures call them."""


def options(kind: str, seed: int) -> TrainingConfig:
    """Return the configuration of a kind, all but the gain."""
    common = {
        "env": ENV,
        "algo": "grpo",
        "seed": seed,
        "total_timesteps": STEPS,
        "num_envs": 16,
        "vectorization_mode": "native",
        "num_groups": 1,
        "group_size": 16,
        "num_epochs": 4,
        "learning_rate": 1e-3,
        "gap_every": 0,
    }
    return resolve({**common, **KINDS[kind]})


def with_gain(policy: nn.Module, gain: float) -> None:
    """Make the last layer of what acts what it would be at another gain of its orthogonal initialisation."""
    assert isinstance(policy, PlainPolicy | GaussianPolicy | MixturePolicy)
    network = policy.network if isinstance(policy, PlainPolicy) else policy.decoder.network.rest
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(gain / SMALL_GAIN)


def chance_of_payment(
    right: Float[NDArray[np.float64], "*L X"], *, num_steps: int = EPISODE_STEPS
) -> Float[NDArray[np.float64], "*L"]:
    """Compute the chance that an episode reaches an end, given the chance of going right at each position.

    Positions run from one end of the corridor to the other; the walk begins in the middle.

    >>> float(chance_of_payment(np.array([0.5, 1.0, 0.5]), num_steps=1))
    1.0
    """
    chance = np.zeros_like(right)  # of being at each position, unpaid so far
    chance[..., right.shape[-1] // 2] = 1.0
    paid = np.zeros(right.shape[:-1])
    for _ in range(num_steps):
        moved = np.zeros_like(chance)
        moved[..., 1:] += (right * chance)[..., :-1]
        moved[..., :-1] += ((1 - right) * chance)[..., 1:]
        paid += moved[..., 0] + moved[..., -1]
        moved[..., [0, -1]] = 0.0
        chance = moved
    return paid


def initial_chance(policy: nn.Module, *, held: bool) -> float:
    """Compute the chance that an episode of the policy as it is gets paid; a held latent has a walk of its own."""
    obs = torch.linspace(-1.0, 1.0, 2 * HALF_LENGTH + 1).unsqueeze(1)
    with torch.no_grad():
        if isinstance(policy, PlainPolicy):
            return float(chance_of_payment(_right(policy.distribution(obs))))
        assert isinstance(policy, GaussianPolicy | MixturePolicy)
        latents, weight = _latents(policy, obs)
        right = _right(policy.decoder.head(policy.decoder.network(obs, [latents])))  # [L, X]
    if held:
        return float(weight[HALF_LENGTH] @ chance_of_payment(right))
    return float(chance_of_payment((weight.T * right).sum(0)))


def _right(distribution: Any) -> NDArray[np.float64]:  # noqa: ANN401 (any categorical)
    return np.asarray(distribution.probs[..., 1].double().numpy())


def _latents(policy: GaussianPolicy | MixturePolicy, obs: Float[Tensor, "X 1"]) -> tuple[Tensor, NDArray[np.float64]]:
    """Return L latents, each at every position, and their weights ``[X, L]``."""
    size = len(obs)
    if isinstance(policy, MixturePolicy):
        weight = policy.prior(obs).softmax(-1).double().numpy()
        return torch.arange(weight.shape[1]).unsqueeze(1).expand(-1, size), weight
    latents = torch.randn(LATENTS, 1, policy.latent_size).expand(-1, size, -1)
    return latents, np.full((size, LATENTS), 1 / LATENTS)


def chance_of_finding(chance: float, steps: float) -> float:
    """Compute how likely an episode is paid within a number of steps; those before it are unpaid and have 30 each.

    >>> chance_of_finding(0.5, 2 * EPISODE_STEPS)
    0.75
    """
    return -math.expm1(steps / EPISODE_STEPS * math.log1p(-chance)) if chance < 1 else 1.0


def explore(kind: str, gain: float, seed: int) -> dict[str, Any]:
    """Train one seed; every environment step is counted, and a reward is found by the end of its update."""
    config = options(kind, seed)
    held, found_at, curve = KINDS[kind].get("latent") == "episode", None, []
    with prepared(config) as built:
        learner, policy = built.learner, built.policy
        assert isinstance(policy, nn.Module)
        with_gain(policy, gain)
        with seeded(stream_seed(seed, "latents of the chance")):
            chance = initial_chance(policy, held=held)
        while learner.num_timesteps < STEPS:
            told = learner.update(learner.num_timesteps / STEPS)
            curve.append((learner.num_timesteps, told["rollout/ep_rew_mean"]))
            if found_at is None and told["rollout/ep_rew_mean"] > 0:
                found_at = learner.num_timesteps
        last = evaluate(
            built.evaluation_envs,
            policy,
            num_episodes=100,
            seed=stream_seed(seed, "last evaluation"),
            latent="episode" if held else "step",
        )
        steps = learner.num_timesteps
    returns = last.returns.tolist()
    return {
        "options": {**known_values(config), "gain": gain},
        "steps": steps,
        "returns": returns,
        "mean_return": sum(returns) / len(returns),
        "found_at": found_at,
        "initial_chance": chance,
        "other_chances": other_chances(config, gain, held=held),
        "curve": curve,
    }


def other_chances(config: TrainingConfig, gain: float, *, held: bool) -> list[float]:
    """Compute the chance of a paid episode for further initial networks."""
    envs = make_envs(ENV, 1, vectorization_mode="native")
    chances = []
    for number in range(INITIALISATIONS):
        with seeded(stream_seed(config.run.seed, f"further network {number}")):
            policy = make_policy(config, envs, None)
            assert isinstance(policy, nn.Module)
            with_gain(policy, gain)
            chances.append(initial_chance(policy, held=held))
    envs.close()
    return chances


CELLS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    **{
        f"{kind}-gain-{gain:g}": partial(explore, kind, gain) for gain in GAINS for kind in ("episode", "step", "plain")
    },
    **{
        f"{kind}-gain-{SHOWN_GAIN:g}": partial(explore, kind, SHOWN_GAIN)
        for kind in ("mixture-episode", "mixture-step")
    },
}


def kind_of(cell: str) -> tuple[str, float]:
    """Read a cell's name.

    >>> kind_of("mixture-step-gain-0.01")
    ('mixture-step', 0.01)
    """
    kind, _, gain = cell.rpartition("-gain-")
    return kind, float(gain)


def expected_share(runs: Mapping[int, Mapping[str, Any]], steps: float = STEPS) -> float:
    """Average over all further networks how likely each would have found the reward within some steps."""
    chances = [chance for run in runs.values() for chance in run["other_chances"]]
    return sum(chance_of_finding(chance, steps) for chance in chances) / len(chances)


def table(results: Results) -> list[str]:
    """Return a row a cell: how many seeds found the reward, when, what was expected, and the return at the end."""
    lines = [
        "| policy | gain | seeds that found it | after steps, each seed | expected share | final return, IQM (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for cell, runs in results.items():
        kind, gain = kind_of(cell)
        found = [runs[seed]["found_at"] for seed in sorted(runs)]
        when = ", ".join("never" if at is None else f"{at:,}" for at in found)
        share = f"{len([at for at in found if at is not None])} of {len(found)}"
        last = spelled(over_seeds([runs[seed]["mean_return"] for seed in sorted(runs)]), digits=2)
        lines.append(f"| {NAMES[kind]} | {gain:g} | {share} | {when} | {expected_share(runs):.2f} | {last} |")
    return lines


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw each run's returns, and how likely the reward is found by the steps taken and by the gain."""
    from matplotlib.figure import Figure

    shown = [kind for kind in ("episode", "step", "plain") if f"{kind}-gain-{SHOWN_GAIN:g}" in results]
    with styled():
        figure = Figure(figsize=(6.9, 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        grid = np.geomspace(EPISODE_STEPS, 1e6, 120)
        for kind, colour in zip(shown, COLOURS, strict=False):
            runs = results[f"{kind}-gain-{SHOWN_GAIN:g}"]
            for number, run in enumerate(runs.values()):  # found or not: a mean would be a return that no run has
                at, value = columns(run["curve"])
                left.plot(
                    np.array(at) / 1000, value, color=colour, linewidth=0.8, label=NAMES[kind] if not number else None
                )
            middle.plot(grid, [expected_share(runs, steps) for steps in grid], color=colour)
            points = [(gain, results[cell]) for gain in GAINS if (cell := f"{kind}-gain-{gain:g}") in results]
            gains = [gain for gain, _ in points]
            right.plot(gains, [expected_share(each) for _, each in points], color=colour)
            found = [np.mean([run["found_at"] is not None for run in each.values()]) for _, each in points]
            shift = 1.2 ** (shown.index(kind) - 1)  # equal shares stand beside each other
            right.plot(np.array(gains) * shift, found, "o", color=colour, markersize=4, clip_on=False, zorder=3)
        middle.axvline(STEPS, color="0.6", linestyle=":", linewidth=0.8)
        middle.annotate("budget", (STEPS, 0.03), (3, 0), textcoords="offset points", color="0.4", fontsize=6)
        left.set(xlabel="environment steps (thousands)", ylabel="return of an episode", ylim=(-0.03, 1.03))
        middle.set(
            xscale="log", xlabel="environment steps", ylabel="expected share that has found it", ylim=(-0.03, 1.03)
        )
        right.set(xscale="log", xlabel="gain of the last layer", ylabel="share that found it in the budget")
        right.set(ylim=(-0.03, 1.03), xticks=GAINS, xticklabels=[f"{gain:g}" for gain in GAINS])
        right.minorticks_off()
        for axes, title in zip((left, middle, right), _titles(results), strict=True):
            axes.set_title(title, fontsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return save(figure, folder / "learning-exploration")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the sizes of a paper's figure, text as text, and the same file for the same numbers."""
    from matplotlib import rc_context

    sizes: Any = {"font.size": 7, "axes.linewidth": 0.6, "legend.fontsize": 6.5, "lines.linewidth": 1.2}
    sizes |= {"svg.hashsalt": "latentpg", "svg.fonttype": "none"}
    with rc_context(sizes):
        yield


def save(figure: Any, stem: Path) -> list[Path]:  # noqa: ANN401 (matplotlib is imported late)
    """Write a figure as SVG and PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
    for path in paths:
        buffer = io.BytesIO()
        metadata: Any = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=metadata)
        publish(path, buffer.getvalue())
    return paths


def curve_of(runs: Mapping[int, Mapping[str, Any]]) -> Curve:
    """Join the learning curves of all seeds."""
    return learning_curve({str(seed): columns(run["curve"]) for seed, run in runs.items()})


def columns(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Part steps from returns."""
    return [step for step, _ in curve], [value for _, value in curve]


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the interquartile mean over seeds with its bootstrap interval."""
    each = np.array(values, dtype=np.float64)
    low, high = bootstrap_interval(each)
    return Interval(float(interquartile_mean(each)), float(low), float(high))


def spelled(interval: Interval, *, digits: int) -> str:
    """Write an interval.

    >>> spelled(Interval(1.0, 0.5, 1.25), digits=2)
    '1.00 (0.50 to 1.25)'
    """
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _titles(results: Results) -> tuple[str, str, str]:
    runs = next(iter(results.values()))
    networks = len(runs) * INITIALISATIONS
    return (
        f"(a) {len(runs)} seeds, gain {SHOWN_GAIN:g}",
        f"(b) {networks} networks, gain {SHOWN_GAIN:g}",
        f"(c) lines: {networks} networks; dots: {len(runs)} runs",
    )
