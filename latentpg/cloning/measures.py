"""What a cloned policy has to show for itself: likelihood held out, use of the latent, and behaviour.

Every number says what kind it is. The likelihood is that of the test part, in nats and in the data's units, with the
Jacobian of the policy's coordinates in it; intervals are between episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.cloning.acting import Played, play, play_groups
from latentpg.cloning.parts import CloningOptions
from latentpg.cloning.places import PLACES, Place
from latentpg.cloning.preparing import Prepared
from latentpg.errors import EstimatorError, LatentPGError
from latentpg.evaluation import (
    HMC,
    Annealing,
    Behaviour,
    Independence,
    Information,
    IWAECurve,
    Mismatch,
    Sandwich,
    Units,
    action_scale_of,
    context_entropy,
    iwae_curve,
    measure_behaviour,
    measure_information,
    measure_mismatch,
    measure_units,
    sandwich,
    wilson_interval,
)
from latentpg.imitation import FitRows, HeldOut, VariationalBound, effective_scale, held_out
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.statistics import Interval
from latentpg.policies.heads import BoxHead
from latentpg.programs import Latents, draw_guide, row_blocks, take_rows

CONTEXTS, IN_EACH = 20, 12
"""Initial states, and roll-outs from each, where initial states differ."""

MOST_ROWS = 2000
"""Rows on which the use of the latent is measured, at most."""

Part = Callable[[], object]


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
class Outcome:
    """What roll-outs did: whole returns with their interval, and where modes are known, behaviour.

    ``sensitivity`` is the success rate, or else the mean return, for each way to draw z.
    """

    acting: str
    played: Played
    returns: Interval
    modes: Int[Tensor, " E"] | None
    behaviour: Behaviour | None
    sensitivity: Mapping[str, Interval] = field(default_factory=dict)


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
    test = first_episodes(built.test, run.measured_episodes)
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
        if found.annealed is not None and annealing is not None:
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
    rows = test.take(torch.arange(test.size)[:: -(-test.size // MOST_ROWS)])
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
    sigma = head.log_scale.detach().double().exp()
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


def act_out(
    built: Prepared,
    *,
    seed: int,
    acting: str | None = None,
    num_episodes: int | None = None,
    with_sensitivity: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Outcome | None:
    """Play roll-outs and measure them; None where there is no environment, or none are asked for."""
    config, envs = built.config, built.envs
    run, place = config.run, PLACES.get(config.selection.env or "")
    number = run.rollouts if num_episodes is None else num_episodes
    acting = run.acting if acting is None else acting
    if envs is None or number == 0:
        return None
    played = play(envs, built.policy, config.policy, num_episodes=number, seed=seed, acting=acting)
    check()
    modes, behaviour = None, None
    if place is not None:
        modes = torch.from_numpy(place.modes(played.obs.numpy(), played.lengths.numpy()))
        with seeded(stream_seed(seed, "intervals")):
            behaviour = _behaviour(built, place, played, modes, seed, acting)
    check()
    ways: dict[str, Interval] = {}
    if with_sensitivity and built.policy.guide_parameters():
        bank = posterior_draws(built, seed=seed)
        for source in ("prior", "prior-mean", "posterior"):
            one = played if source == "prior" else _play_from(built, bank, number, seed, acting, source)
            ways[source] = success_of(one) if place is not None else mean_of(one.returns)
            check()
    return Outcome(acting, played, mean_of(played.returns), modes, behaviour, ways)


def posterior_draws(built: Prepared, *, seed: int) -> Latents:
    """Draw z for each row that was learnt from, from the guide."""
    rows = built.rows
    with seeded(stream_seed(seed, "posterior")), torch.no_grad(), row_blocks(max(1, 2**18 // rows.longest)):
        drawn = draw_guide(built.policy, rows.obs, rows.action, num_particles=1)
    return {name: value[0] for name, value in drawn.latents.items()}


def success_of(played: Played) -> Interval:
    """Return the share of episodes with a positive return, with Wilson's interval."""
    return wilson_interval(int((played.returns > 0).sum()), len(played.returns))


def mean_of(values: Float[Tensor, " E"]) -> Interval:
    """Return a mean with its 95 % interval by the normal law; one value has none."""
    mean = float(values.double().mean())
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    reach = 1.96 * float(values.double().std()) / math.sqrt(len(values))
    return Interval(mean, mean - reach, mean + reach)


def demonstrated_modes(built: Prepared) -> Float[Tensor, " M"] | None:
    """Count how often each mode was demonstrated in the training part; None where modes are not known."""
    mode = built.split.train.mode
    place = PLACES.get(built.config.selection.env or "")
    if mode is None:
        if place is None:
            return None
        train = built.split.train
        mode = torch.from_numpy(place.modes(train.obs.numpy(), train.lengths.numpy()))
        mode = mode[mode >= 0]
    number = max(0 if place is None else place.num_modes, int(mode.max()) + 1 if len(mode) else 0)
    return torch.bincount(mode, minlength=number).double()


def first_episodes(rows: FitRows, number: int) -> FitRows:
    """Take the rows of the first episodes."""
    return rows.take((rows.episode < number).nonzero().flatten())


def _play_from(built: Prepared, bank: Latents, number: int, seed: int, acting: str, source: str) -> Played:
    assert built.envs is not None
    return play(
        built.envs,
        built.policy,
        built.config.policy,
        num_episodes=number,
        seed=seed,
        acting=acting,
        bank=bank,
        source=source,
    )


def _behaviour(
    built: Prepared, place: Place, played: Played, modes: Tensor, seed: int, acting: str
) -> Behaviour | None:
    """Measure against the demonstrations; contexts are initial states, played anew where no two roll-outs share one."""
    demonstrated = demonstrated_modes(built)
    if demonstrated is None or float(demonstrated.sum()) == 0:
        return None
    success = (played.returns > 0) & (modes >= 0)
    found = measure_behaviour(modes, success, demonstrated)
    starts = played.starts.unique(dim=0, return_inverse=True)[1]
    groups, group_modes, group_success = starts, modes, success
    if int(starts.max()) + 1 == len(starts) and len(starts) > 1 and built.envs is not None and acting != "ensembled":
        again = play_groups(
            built.envs,
            built.policy,
            built.config.policy,
            num_contexts=CONTEXTS,
            size=IN_EACH,
            seed=seed,
            acting=acting,
        )
        if again is None:
            return found
        group_modes = torch.from_numpy(place.modes(again.obs.numpy(), again.lengths.numpy()))
        group_success = (again.returns > 0) & (group_modes >= 0)
        groups = torch.arange(CONTEXTS).repeat_interleave(IN_EACH)
    if int(groups.max()) == 0:  # one initial state: within it is over all
        return found
    within = context_entropy(group_modes, group_success, groups, num_modes=len(demonstrated))
    return Behaviour(found.success, found.entropy, found.coverage, found.divergence, found.counts, within)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
