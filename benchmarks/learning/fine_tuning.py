r"""Fine-tuning cloned policies by RL on the avoiding task: success and the modes that are kept, by the ratio learnt on.

A policy is cloned from 96 unlabelled demonstrations (:mod:`benchmarks.learning.avoiding`, whose options are taken but
for the number of epochs) and then learns from its own episodes, whose return is 1 where the rod arrives and 0 where it
does not. The return says nothing of modes: 24 ways are equally good, and one of them would do.

**Where it begins.** ``short``: an episode-long z of 8 numbers, its prior matched to the guide's posteriors, after a
quarter of the minibatches that cloning is given elsewhere, so that there is something to gain; ``full`` after all of
them. ``plain``: a Gaussian without a latent. ``chunk``: 24 codes for 8 actions, cloned shortly; ``full-chunk`` as long
as elsewhere. All that a row spans is scored as one: an episode, a step, a chunk.

**How it goes on.** GRPO with leave-one-out advantages, an update of 96 episodes in four minibatches, each gone over
once, clipped at .2: the loss is a sum over an episode's rows, so that what is climbed is the return whatever the span.
With episode-long z the log-ratio of a row is estimated in three ways, each on particles that both policies share:
``conditional`` keeps the z that acted and adds three of the guide; ``joint`` is that of (z, actions) together;
``elbo`` is the difference of two evidence lower bounds on four draws of the guide. A chunk's and a step's is exact.
Then ``conditional`` with k3 to the cloned policy in the loss, with an entropy bonus, with the prior held as cloning
left it, and by PPO, whose critic sees the first observation of an episode, which is always the same; and the Gaussian
with k3. ESS/K of 1/K says that the guide's particles add nothing to the z that acted.

**What was tried** on seed 100, ``short`` with conditional IS alone, and not kept: a rate of 1e-4, which is slower; four
epochs over each minibatch; 240 episodes an update; a guide that is taught along; an entropy bonus of 1e-3, by which
success was gone after ten updates.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.learning import avoiding
from benchmarks.learning._demonstrated import ENV, HORIZON, NUM_MODES, Shown, behave, demonstrations, timed
from benchmarks.learning.exploration import COLOURS, save, styled
from benchmarks.learning.store import Results
from latentpg.estimators import ELBO, ClosedForm, ConditionalIS, Estimator, Exact, Guide, JointScore
from latentpg.imitation import FitOptions, MaximumLikelihood, VariationalBound, fit, step_rows
from latentpg.learners import GRPO, PPO, Agent, AgentOptions, GRPOOptions, PPOOptions
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies import ChunkPolicy, CodeLatent, EpisodePolicy, GaussianLatent, PlainPolicy
from latentpg.rollout import make_envs
from latentpg.runs.files import publish
from latentpg.runs.tensors import decode_tensors, encode_tensors
from latentpg.values import NetworkCritic

SEEDS = (0, 1, 2)

EPISODES = 96
"""Episodes of an update."""

UPDATES = 50
LONG = 100
"""Updates of a run, and of those that are to show how far it goes."""

EVERY = 10
"""Updates from one measurement to the next."""

RATE = 3e-4
"""Adam's rate, the same for all."""

PARTICLES = 4

SHORT = replace(avoiding.FIT, num_epochs=250, evaluate_every=250, match_prior_every=12)
"""1,000 minibatches of 24 episodes; 4,000 make the policy of the table above."""

CHUNKS = replace(avoiding.CHUNK_FIT, num_epochs=40, evaluate_every=40)


@dataclass(frozen=True)
class Start:
    """A cloned policy: what its latent spans, how it is cloned, and on which minibatches of rows it learns."""

    span: str
    options: FitOptions
    batch_size: int


STARTS: Mapping[str, Start] = {
    "short": Start("episode", SHORT, 24),
    "full": Start("episode", replace(avoiding.FIT, match_prior_every=12), 24),
    "plain": Start("step", CHUNKS, 2048),
    "chunk": Start("chunk", replace(CHUNKS, num_epochs=12, evaluate_every=12), 256),
    "full-chunk": Start("chunk", avoiding.CHUNK_FIT, 256),
}


@dataclass(frozen=True)
class Contender:
    """A start, what estimates log pi, and what is added to the objective."""

    start: str
    estimator: Estimator
    name: str
    kl_coefficient: float = 0.0
    entropy_coefficient: float = 0.0
    ppo: bool = False
    hold_prior: bool = False
    updates: int = UPDATES


K3 = 0.01
"""What k3 to the clone costs, a row."""

BONUS = 1e-4
"""What a nat of a row's entropy pays."""

CONDITIONAL = ConditionalIS(PARTICLES, Guide())

CONTENDERS: Mapping[str, Contender] = {
    "conditional": Contender("short", CONDITIONAL, "z an episode, conditional IS", updates=LONG),
    "joint": Contender("short", JointScore(), "z an episode, joint ratio"),
    "elbo": Contender("short", ELBO(PARTICLES), "z an episode, ratio of ELBOs"),
    "plain": Contender("plain", ClosedForm(), "Gaussian, no latent"),
    "chunk": Contender("chunk", Exact(), "24 codes a chunk, exact ratio"),
    "conditional-k3": Contender("short", CONDITIONAL, "conditional IS, k3 to the clone", K3),
    "conditional-entropy": Contender("short", CONDITIONAL, "conditional IS, entropy bonus", 0.0, BONUS),
    "conditional-held": Contender("short", CONDITIONAL, "conditional IS, prior held", hold_prior=True, updates=LONG),
    "conditional-ppo": Contender("short", CONDITIONAL, "conditional IS, PPO", ppo=True),
    "plain-k3": Contender("plain", ClosedForm(), "Gaussian, k3 to the clone", K3),
    "conditional-full": Contender("full", CONDITIONAL, "conditional IS, cloned in full"),
    "chunk-full": Contender("full-chunk", Exact(), "24 codes a chunk, cloned in full, k3", K3),
}


def fine_tune(seed: int, *, cell: str, updates: int | None = None) -> dict[str, Any]:
    """Clone, learn, and measure every so many updates."""
    contender = CONTENDERS[cell]
    start = STARTS[contender.start]
    policy, cloned_seconds = cloned(contender.start, seed)
    learner = _learner(contender, policy, seed)
    curve = [_measured(policy, seed, start.span, 0)]
    told: list[dict[str, float]] = []
    seconds = 0.0
    for update in range(1, 1 + (contender.updates if updates is None else updates)):
        with timed() as clock:
            metrics = learner.update()
        seconds += clock.seconds
        told.append({name.partition("/")[2]: round(metrics[name], 4) for name in TOLD if name in metrics})
        if update % EVERY == 0:
            curve.append(_measured(policy, seed, start.span, update))
    return {
        "options": {
            "estimator": repr(contender.estimator),
            "learner": repr(learner.options),
            "agent": repr(learner.agent.options),
            "cloning": repr(start.options),
        },
        "cloning_cpu_seconds": cloned_seconds,
        "fine_tuning_cpu_seconds": round(seconds, 1),
        "environment_steps": learner.num_timesteps,
        "curve": curve,
        "told": told,
    }


TOLD = (
    "rollout/ep_rew_mean",
    "train/approx_kl",
    "train/clip_fraction",
    "train/ratio_mean",
    "train/ess",
    "train/grad_norm",
    "train/entropy",
    "train/kl_reference",
)
"""Metrics that are kept of every update."""


def cloned(name: str, seed: int) -> tuple[Any, float]:
    """Clone, or take what an earlier cell of the same seed has cloned; with the CPU seconds that it took."""
    start, shown = STARTS[name], demonstrations(seed)
    policy = _policy(name, shown, seed)
    key = sha256(repr((name, seed, start, avoiding.NETWORK, torch.__version__)).encode()).hexdigest()[:16]
    file = Path(tempfile.gettempdir()) / "latentpg-fine-tuning" / f"{name}-{seed}-{key}.safetensors"
    if file.is_file():
        state = decode_tensors(file.read_bytes())
        seconds = float(state.pop("seconds"))
        policy.load_state_dict(state)
        return policy, seconds
    with timed() as clock:
        _fit(policy, name, shown, seed)
    file.parent.mkdir(exist_ok=True)
    publish(file, encode_tensors({**policy.state_dict(), "seconds": torch.tensor(clock.seconds)}))
    return policy, clock.seconds


def _fit(policy: Any, name: str, shown: Shown, seed: int) -> None:  # noqa: ANN401 (a policy)
    options = STARTS[name].options
    if name == "plain":
        fit(policy, step_rows(shown.train), objective=MaximumLikelihood(), options=options, seed=seed)
    elif STARTS[name].span == "chunk":
        fit(policy, shown.chunks, objective=MaximumLikelihood(), options=options, seed=seed)
    else:
        fit(policy, shown.episodes, objective=VariationalBound(), options=options, seed=seed)


def _policy(name: str, shown: Shown, seed: int) -> Any:  # noqa: ANN401 (a policy)
    common: dict[str, Any] = {"encoder": shown.normalization.encoder(), **avoiding.NETWORK}
    with seeded(stream_seed(seed, "policy")):
        if name == "plain":
            made = PlainPolicy(*shown.spaces, **common)
            nn.init.constant_(made.head.log_std, avoiding.START)
            return made
        common["initial_log_std"] = avoiding.START
        if STARTS[name].span == "chunk":
            return ChunkPolicy(*shown.spaces, latent=CodeLatent(NUM_MODES), horizon=HORIZON, **common)
        latent = GaussianLatent(avoiding.SIZE, "mixture", num_components=avoiding.NUM_EPISODES)
        return EpisodePolicy(*shown.spaces, latent=latent, initial_guide_log_std=-2.0, **common)


def _learner(contender: Contender, policy: Any, seed: int) -> GRPO | PPO:  # noqa: ANN401 (a policy)
    start = STARTS[contender.start]
    agent = Agent(
        policy,
        estimator=contender.estimator,
        options=AgentOptions(
            learning_rate=RATE,
            batch_size=start.batch_size,
            entropy_coefficient=contender.entropy_coefficient,
            hold_prior=contender.hold_prior,
            gap_every=0,
        ),
    )
    envs = make_envs(ENV, EPISODES, vectorization_mode="native")
    execute = HORIZON if start.span == "chunk" else None
    given: Any = {"latent": start.span, "num_epochs": 1, "kl_coefficient": contender.kl_coefficient}
    if contender.ppo:
        options = PPOOptions(
            num_episodes=EPISODES, gamma=1.0, value_learning_rate=1e-3, value_warmup_updates=1, **given
        )
        with seeded(stream_seed(seed, "critic")):
            critic = nn.Sequential(policy.trunk.encoder, NetworkCritic(4))
        return PPO(envs, agent, critic, options=options, seed=seed, execute=execute)
    grouped = GRPOOptions(num_groups=1, group_size=EPISODES, advantage="rloo", aggregation="constant", **given)
    return GRPO(envs, agent, options=grouped, seed=seed, execute=execute)


def _measured(policy: Any, seed: int, span: str, update: int) -> dict[str, Any]:  # noqa: ANN401 (a policy)
    found = behave(policy, seed, span=span)
    return {"update": update, **{name: found[name] for name in ("success", "entropy", "coverage", "counts")}}


CELLS: Mapping[str, Callable[[int], dict[str, Any]]] = {cell: partial(fine_tune, cell=cell) for cell in CONTENDERS}
"""One of them clones for the others of its seed that begin alike."""


def table(results: Results) -> list[str]:
    """Return a row a contender and number of updates, the seeds in it one by one: before, and after."""
    lines = [
        "| policy and ratio | updates | success before | success after (95 %) | mode entropy before | "
        "mode entropy after (95 %) | modes reached | ESS/K | CPU seconds |",
        "|---|--:|---|---|---|---|---|---|--:|",
    ]
    for cell, contender in CONTENDERS.items():
        runs = [run for _, run in sorted(results.get(cell, {}).items())]
        for updates in sorted({UPDATES, contender.updates}) if runs else ():
            lines.append(_row(contender.name, runs, updates))
    return lines


def _row(name: str, runs: Sequence[Mapping[str, Any]], updates: int) -> str:
    first = [run["curve"][0] for run in runs]
    last = [next(point for point in run["curve"] if point["update"] == updates) for run in runs]
    share = [np.mean([told["ess"] for told in run["told"][:updates] if "ess" in told] or [np.nan]) for run in runs]
    ess = "" if np.isnan(share).any() else f"{np.mean(share):.2f}"
    seconds = np.mean([run["fine_tuning_cpu_seconds"] * updates / len(run["told"]) for run in runs])
    reached = ", ".join(f"{NUM_MODES * each['coverage']:.0f}" for each in last)
    return (
        f"| {name} | {updates} | {_each(first, 'success')} | {_each(last, 'success', bounds=True)} | "
        f"{_each(first, 'entropy')} | {_each(last, 'entropy', bounds=True)} | {reached} | {ess} | {seconds:.0f} |"
    )


def _each(points: Sequence[Mapping[str, Any]], name: str, *, bounds: bool = False) -> str:
    def spell(found: Sequence[float | None]) -> str:
        if found[0] is None:
            return "none"
        inside = f" ({found[1]:.2f}–{found[2]:.2f})" if bounds else ""
        return f"{found[0]:.2f}{inside}"

    return ", ".join(spell(point[name]) for point in points)


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw success and mode entropy along fine-tuning: the ratios on the left, what is added to one on the right."""
    from matplotlib.figure import Figure

    left = ("conditional", "joint", "elbo", "chunk", "plain")
    right = ("conditional", "conditional-held", "conditional-k3", "conditional-entropy", "conditional-full")
    with styled():
        figure = Figure(figsize=(6.9, 4.2), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for column, cells in zip(panels.T, (left, right), strict=True):
            for cell, colour in zip(cells, COLOURS, strict=False):
                for axes, name in zip(column, ("success", "entropy"), strict=True):
                    for place, run in enumerate(results.get(cell, {}).values()):
                        points = [(p["update"], *p[name]) for p in run["curve"] if p[name][0] is not None]
                        at, value, low, high = zip(*points, strict=True)
                        label = CONTENDERS[cell].name if place == 0 else None
                        axes.plot(at, value, color=colour, linewidth=0.9, marker="o", markersize=2, label=label)
                        axes.fill_between(at, low, high, color=colour, alpha=0.08, linewidth=0)
            column[0].legend(frameon=False, loc="lower right", fontsize=5.5)
            column[1].set_xlabel(f"updates of {EPISODES} episodes")
        for axes, label, aim in zip(panels[:, 0], ("success", "mode entropy / log 24"), (0.98, 0.93), strict=True):
            axes.set_ylabel(label)
            for each in panels[panels[:, 0].tolist().index(axes)]:
                each.axhline(aim, color="0.6", linestyle=":", linewidth=0.8)
                each.set_ylim(0, 1.03)
        panels[0, 0].set_title("by the ratio")
        panels[0, 1].set_title("conditional IS, and what is added")
        for axes in panels.flat:
            axes.spines[["top", "right"]].set_visible(False)
        return save(figure, folder / "cloning-fine-tuning")
