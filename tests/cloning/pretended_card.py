"""Cloning on the pretended card of :mod:`tests.learners.pretended_card`, beside the same on the processor.

``python -m tests.cloning.pretended_card`` runs every case, or those that are named: two epochs by an objective, the
state, the second epoch again; what is measured of a policy, with its roll-outs; demonstrations that it plays; a run
that is stopped there and goes on here; and training that begins with a cloned policy.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latentpg.cloning import Prepared, begin_run, clone, measure, outcomes, prepared
from latentpg.cloning.latents import latents_by_mode
from latentpg.cloning.paths import actions_of, played_paths
from latentpg.cloning.preparing import open_envs, prepare
from latentpg.cloning.telling import lines_of, result_of
from latentpg.imitation import Cloner
from latentpg.learners import Learner
from latentpg.programs import act
from latentpg.recording import Wanted, episodes_of_policy, record
from latentpg.runs import newest_checkpoint
from latentpg.training import resolve
from latentpg.training.build import build
from latentpg.training.evaluate import act_by_decoder_mean
from latentpg.training.place import Place
from latentpg.training.starting import read_source
from tests.cloning.runs import EPISODE, OF_OBJECTIVE, run, small
from tests.learners.pretended_card import CARD, off, told_of
from tests.training.runs import after

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

RECORDED: Mapping[str, dict[str, Any]] = {
    "recorded: steps": {"policy": "mixture", "objective": "exact"},
    "recorded: chunks": {"policy": "chunk"},
    "recorded: an episode": EPISODE,
}
"""Options of the policies that demonstrate."""

FINE_TUNED: Mapping[str, dict[str, Any]] = {
    "reinforce": {"num_episodes": 3, "latent": "episode"},
    "grpo": {"num_groups": 2, "group_size": 2, "num_epochs": 1, "latent": "episode", "kl_coefficient": 0.1},
}
"""Options of training that begins with a cloned policy."""


def cases() -> dict[str, Callable[[], str | None]]:
    """Return every case: it says what is off, or None."""
    found: dict[str, Callable[[], str | None]] = {}
    for name, options in FITTED.items():
        found[name] = partial(off, name, partial(_cloner, options))
    for name, options in MEASURED.items():
        found[name] = partial(_measured, name, options)
    for name, options in RECORDED.items():
        found[name] = partial(_recorded, name, options)
    return {**found, "a run": _run_and_go_on, **{f"{algo} from": partial(_fine_tuned, algo) for algo in FINE_TUNED}}


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


def _recorded(name: str, options: Mapping[str, Any]) -> str | None:
    """Let a cloned policy demonstrate on both."""
    told = {}
    for device in ("cpu", CARD):
        built = built_on(device, **options)
        built.cloner.update()
        assert built.envs is not None
        span = built.config.selection.policy if options["policy"] in ("chunk", "episode") else "step"
        acting = act_by_decoder_mean if span == "step" else act
        kept = episodes_of_policy(built.envs, built.policy, Wanted(3, max_episodes=3), latent=span, acting=acting)
        told[device] = record(kept, Wanted(3, max_episodes=3), source="here").demonstrations
    here, there = told["cpu"], told[CARD]
    if not torch.equal(here.lengths, there.lengths) or not torch.allclose(here.obs, there.obs, atol=1e-3):
        return f"{name}: {there.lengths.tolist()} steps, and {here.lengths.tolist()} on the processor, or others"
    return None


def _run_and_go_on() -> str | None:
    """Stop a run there after an epoch, and go on here."""
    config = small(**{**FEW, **OF_OBJECTIVE["exact"], "objective": "exact", "num_epochs": 2, "rollouts": 0})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        with prepared(config, device=torch.device(CARD)) as built:
            clone(built, begin_run(config, out=folder, built=built), stop=after(1))
        saved = newest_checkpoint(folder / "checkpoints")
        told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with prepared(config) as built:
            outcome = clone(built, folder, saved=saved)
        again = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    why = f"at epoch 1: went on on cpu, where sums are taken in another order than on {CARD}"
    right = saved.facts["device"] == told["device"] == CARD and told["exact_resume"] and "device" not in again
    right &= outcome.inexact == again["exact_resume_why"] == why and not again["exact_resume"]
    return None if right else f"a run: {told}, {outcome.inexact}, {again}"


def _fine_tuned(algo: str) -> str | None:
    """Begin training with a cloned policy on both."""
    with tempfile.TemporaryDirectory() as folder:
        run(small(**{**FEW, **EPISODE, "rollouts": 0, "num_epochs": 1}), Path(folder, "run"))
        options = FINE_TUNED[algo]
        begun = read_source(Path(folder, "run"))
        config = resolve({**begun.values, "algo": algo, "num_envs": 2, "eval_episodes": 4, **options})
        assert config.source is not None

        def made(device: str) -> Learner:
            return build(config, tensors=begun.tensors, place=Place(device=torch.device(device))).learner

        return off(f"{algo} from", made)


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
