"""What a cloned policy has to show for itself: likelihood held out, use of the latent, and behaviour.

Every number says what kind it is. The likelihood is that of the test part, in nats and in the data's units, with the
Jacobian of the policy's coordinates in it; intervals are between episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from latentpg.cloning.outcomes import Outcome, act_out
from latentpg.cloning.parts import CloningOptions
from latentpg.cloning.preparing import Prepared
from latentpg.errors import EstimatorError, LatentPGError
from latentpg.evaluation import (
    HMC,
    Annealing,
    Independence,
    Information,
    IWAECurve,
    Mismatch,
    Sandwich,
    Units,
    action_scale_of,
    iwae_curve,
    measure_information,
    measure_mismatch,
    measure_units,
    sandwich,
)
from latentpg.imitation import FitRows, HeldOut, VariationalBound, effective_scale, held_out
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies.heads import BoxHead
from latentpg.programs import row_blocks, take_rows
from latentpg.training.policies import EpisodePart

MOST_MEASURED = 4000
"""Rows that the likelihood is measured on, at most: as many whole episodes as they make, and two at least."""

MOST_ROWS = 2000
"""Rows on which the use of the latent is measured, at most."""


@dataclass(frozen=True)
class Scale:
    """The decoder's standard deviations: in policy coordinates and in the data's units, and their floor.

    For an evidence lower bound ``effective`` is the geometric mean at which a plain one would weigh error against
    divergence as this one does with its beta, and ``weight`` the lambda of "squared error + lambda KL" that says the
    same; None for objectives that weigh nothing.
    """

    coordinates: tuple[float, ...]
    units: tuple[float, ...]
    floor: float | None
    effective: float | None
    weight: float | None

    def lines(self) -> list[str]:
        """Say it in words."""
        floor = "no floor" if self.floor is None else f"a floor of {self.floor:.3g}"
        return [
            f"decoder's standard deviations {_numbers(self.units)} in the data's units, {_numbers(self.coordinates)} "
            f"in policy coordinates, with {floor} there",
            *(
                []
                if self.weight is None
                else [
                    f"the bound weighs as squared error (summed) + {self.weight:.3g} KL does: noise of "
                    f"{self.effective:.3g} in policy coordinates"
                ]
            ),
        ]


@dataclass(frozen=True)
class Collapse:
    """Is the latent used, and does the prior lie where the posterior does; None for what could not be measured."""

    units: Units | None
    information: Information | None
    mismatch: Mismatch | None
    why_not: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Everything that was measured; None where there is nothing to measure, or where it was not asked for."""

    likelihood: HeldOut
    log_jacobian: float
    curve: IWAECurve | None
    gap: Sandwich | None
    scale: Scale | None
    collapse: Collapse | None
    outcome: Outcome | None


def measure(built: Prepared, *, seed: int, check: Callable[[], None] = lambda: None) -> Measured:
    """Measure a policy, as it stands, on the test part and in roll-outs; ``check`` is called between the parts.

    Draws come from streams of the seed; the ambient one is left as it was.
    """
    run, policy = built.config.run, built.policy
    test = first_episodes(built.test, measured_episodes(built.test, run.measured_episodes))
    annealing = annealing_of(run)
    with seeded(stream_seed(seed, "likelihood")):
        found = held_out(
            policy,
            test,
            action_scale=action_scale_of(built.spaces[1]),
            num_particles=tuple(run.likelihood_particles),
            annealing=annealing,
        )
    check()
    with seeded(stream_seed(seed, "curve")):
        curve = found.curve or bounds(built, test)
        gap = None
        # a whole episode cannot be dreamed at the observations of a demonstration, which are those of its own way
        if found.annealed is not None and annealing is not None and not isinstance(built.config.policy, EpisodePart):
            some = first_episodes(test, 20)
            gap = sandwich(policy, take_rows(some.obs, slice(0, 200)), some.episode[:200], annealing=annealing)
    check()
    with seeded(stream_seed(seed, "collapse")):
        collapse = measure_collapse(built, test)
    check()
    return Measured(
        found,
        log_jacobian_of(built),
        curve,
        gap,
        scale_of(built),
        collapse,
        act_out(built, seed=seed, check=check),
    )


def annealing_of(run: CloningOptions) -> Annealing | None:
    """Return how to anneal, or None where that is left out."""
    if run.annealing_temperatures == 0:
        return None
    return Annealing(run.annealing_temperatures, run.annealing_chains, kernels=(Independence(), HMC()))


def bounds(built: Prepared, test: FitRows) -> IWAECurve | None:
    """Bound what is known exactly by importance sampling too, to see how far the bound is off; None without a guide."""
    if not built.policy.guide_parameters():
        return None
    try:
        return iwae_curve(
            built.policy,
            test.obs,
            test.action,
            test.episode,
            num_particles=tuple(built.config.run.likelihood_particles),
            action_scale=action_scale_of(built.spaces[1]),
        )
    except EstimatorError:  # a guide that gives no chance to what the posterior does
        return None


def measure_collapse(built: Prepared, test: FitRows) -> Collapse | None:
    """Measure how the latent is used on the test part; None where there is no latent."""
    policy = built.policy
    if not policy.guide_parameters():
        return None
    rows = test.take(slice(None, None, -(-test.size // MOST_ROWS)))
    found: dict[str, Any] = {}
    why: list[str] = []
    parts: dict[str, Callable[[], object]] = {
        "units": lambda: measure_units(policy, rows.obs, rows.action),
        "information": lambda: measure_information(policy, rows.obs, rows.episode),
        "mismatch": lambda: measure_mismatch(policy, rows.obs, rows.action, rows.episode),
    }
    with row_blocks(max(1, 2**18 // rows.longest // 256)):
        for name, run in parts.items():
            try:
                found[name] = run()
            except LatentPGError as error:
                found[name] = None
                why.append(f"{name}: {str(error).splitlines()[0]}")
    return Collapse(found["units"], found["information"], found["mismatch"], tuple(why))


def scale_of(built: Prepared) -> Scale | None:
    """Read the decoder's standard deviations; None for actions that are not Gaussian."""
    module = built.policy
    assert isinstance(module, nn.Module)
    head = next((each for each in module.modules() if isinstance(each, BoxHead)), None)
    width = action_scale_of(built.spaces[1])
    if head is None or width is None:
        return None
    sigma = head.log_scale.detach().cpu().double().exp()
    objective, effective = built.config.objective, None
    if isinstance(objective, VariationalBound) and objective.beta > 0:
        effective = effective_scale(float(sigma.log().mean().exp()), beta=float(objective.beta))
    floor = None if head.min_log_std is None else math.exp(head.min_log_std)
    weight = None if effective is None else 2 * effective**2
    return Scale(tuple(sigma.tolist()), tuple((sigma * width.flatten()).tolist()), floor, effective, weight)


def log_jacobian_of(built: Prepared) -> float:
    """Return what is added to a step's log density to have it in the data's units, in nats; 0 for discrete actions."""
    width = action_scale_of(built.spaces[1])
    return 0.0 if width is None else 0.0 - float(width.log().sum())


def measured_episodes(rows: FitRows, number: int) -> int:
    """Return how many episodes, of ``number`` asked for, are measured on.

    >>> import torch
    >>> from latentpg.imitation import point_rows
    >>> measured_episodes(point_rows(torch.zeros(10, 1)), 6)
    6
    """
    ends = rows.episode.bincount().cumsum(0)
    return max(2, min(number, int((ends <= MOST_MEASURED).sum())))


def first_episodes(rows: FitRows, number: int) -> FitRows:
    """Take the rows of the first episodes."""
    return rows.take((rows.episode < number).nonzero().flatten())


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
