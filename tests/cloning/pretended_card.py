"""Cloning on the pretended card of :mod:`tests.learners.pretended_card`, beside the same on the processor.

``python -m tests.cloning.pretended_card`` runs every case, or those that are named: two epochs by an objective, the
state, the second epoch again; and what is measured of a policy, with its roll-outs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from latentpg.cloning import Prepared, measure, outcomes
from latentpg.cloning.latents import latents_by_mode
from latentpg.cloning.paths import actions_of, played_paths
from latentpg.cloning.preparing import open_envs, prepare
from latentpg.cloning.telling import lines_of, result_of
from latentpg.imitation import Cloner
from tests.cloning.runs import EPISODE, OF_OBJECTIVE, small
from tests.learners.pretended_card import CARD, off, told_of

FEW: dict[str, Any] = {"num_demonstrations": 12, "rollouts": 4, "batch_size": 32}
"""Options that make a case short: half as many demonstrations, and four roll-outs."""

FITTED: Mapping[str, dict[str, Any]] = {
    **{name: {"objective": name, **options} for name, options in OF_OBJECTIVE.items()},
    "rows of their own": {"policy": "gaussian", "per_datum": True},
    "noise": {"policy": "chunk", "observation_noise": 0.1},
}
"""Options of every fit: one by each objective, one with densities of rows' own, one with noise on observations."""

MEASURED: Mapping[str, dict[str, Any]] = {
    "measured: codes": {"policy": "mixture", "objective": "exact"},
    "measured: quadrature": {"policy": "gaussian", "latent_size": 1},
    "measured: annealing": {"policy": "gaussian", "latent_size": 4, "annealing_temperatures": 4, "annealing_chains": 4},
    "measured: two levels": {"policy": "two-level"},
    "measured: chunks": {"policy": "chunk", "acting": "ensembled"},
    "measured: an episode": {**EPISODE, "acting": "decoder-mean"},
}
"""Options of the policies that are measured: by every measure of the likelihood, and in roll-outs of every span."""


def cases() -> dict[str, Callable[[], str | None]]:
    """Return every case: it says what is off, or None."""
    found: dict[str, Callable[[], str | None]] = {}
    for name, options in FITTED.items():
        found[name] = partial(off, name, partial(_cloner, options))
    for name, options in MEASURED.items():
        found[name] = partial(_measured, name, options)
    return found


def built_on(device: str, **options: object) -> Prepared:
    """Build what a small run needs on a device."""
    config = small(**{**FEW, **options})
    return prepare(config, open_envs(config), device=torch.device(device))


def _cloner(options: Mapping[str, Any], device: str) -> Cloner:
    return built_on(device, **{**options, "rollouts": 0}).cloner


def _measured(name: str, options: Mapping[str, Any]) -> str | None:
    """Measure on both, and compare every number."""
    told = {}
    for device in ("cpu", CARD):
        built = built_on(device, **options)
        built.cloner.update()
        found = measure(built, seed=0)
        assert lines_of(found) and latents_by_mode(built) is not None
        assert found.outcome is not None and played_paths(found.outcome, None).paths and len(actions_of(built)[0])
        told[device] = dict(_numbers(result_of(built, found)))
    differs = [
        f"{part} is {told[CARD].get(part)}, and {value} on the processor"
        for part, value in told["cpu"].items()
        if not _near(told[CARD].get(part), value)
    ]
    return f"{name}: {'; '.join(differs)}" if differs else None


def _numbers(told: Any, name: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (what a result holds)
    match told:
        case dict():
            for part, value in told.items():
                yield from _numbers(value, f"{name}.{part}")
        case list() | tuple():
            for place, value in enumerate(told):
                yield from _numbers(value, f"{name}.{place}")
        case _:
            yield name, told


def _near(mine: object, theirs: object) -> bool:
    """Tell whether numbers are nearly the same: sums are taken in another order there."""
    if isinstance(mine, float) and isinstance(theirs, float):
        return mine == theirs or abs(mine - theirs) <= 0.02 + 0.02 * abs(theirs) or (mine != mine and theirs != theirs)
    return mine == theirs


if __name__ == "__main__":
    outcomes.CONTEXTS = outcomes.IN_EACH = 2  # else most of the time is spent on roll-outs
    sys.exit(told_of(cases()))
