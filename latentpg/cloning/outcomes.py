"""What roll-outs of a cloned policy did: returns, and where modes are known, success and how many ways were taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.cloning.acting import Played, play, play_groups
from latentpg.cloning.places import PLACES, Place
from latentpg.cloning.preparing import Prepared
from latentpg.evaluation import Behaviour, context_entropy, measure_behaviour, wilson_interval
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.statistics import Interval
from latentpg.programs import Latents, draw_guide, row_blocks

CONTEXTS, IN_EACH = 20, 12
"""Initial states, and roll-outs from each, where initial states differ."""


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
