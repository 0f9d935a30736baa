"""The command line of ``latentpg imitate``: what chooses parts first, then the options of the chosen parts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tyro

from latentpg.cloning.config import (
    SELECTS,
    CloningConfig,
    allowed,
    check_names,
    layered,
    resolve,
    select,
    tuned_options,
)
from latentpg.cloning.parts import SELECTORS, owner_of
from latentpg.numerics.devices import DEVICES
from latentpg.studies.workers import BACKENDS, Backend
from latentpg.training.config import check_trust, read_options
from latentpg.training.options import check_flags, choices_in, option_field, seeds_of, spell, spell_seeds
from latentpg.training.parts import options_of

_CHOOSE = (*SELECTS[:3], "latent_kind", *SELECTS[3:])  # what other options hang on, each on those before it

_OF_COMMAND: tuple[tuple[str, Any, Any, str], ...] = (
    ("config", Path | None, None, "TOML file of options, below the flags and above those that ship."),
    ("tuned", bool, True, "Start from the options that ship for this environment, where there are any."),
    ("seeds", str | None, None, "Several runs, as 0:3 (three of them) or 3,5,8, and a table of them."),
    ("num_workers", int, 1, "Processes in which runs of several seeds go on."),
    ("backend", Literal[BACKENDS], "process", "Where those are: processes of this machine, or a Ray cluster's."),
    ("device", Literal[DEVICES], "cpu", "Where policy and rows are; environments stay on the processor."),
    ("out", Path | None, None, "Folder to write to, new or empty; without it runs/NAME-DATE-TIME."),
    ("trust_env", bool, False, "Let an environment id of the form module:Env import that module."),
)

_TEXTS: Mapping[str, str] = {
    "data": "Demonstrations: a file NAME.npz or NAME.hdf5, a folder of Minari or LeRobot, lasa, or scripted:ENV.",
    "env": "Id of a Gymnasium environment to act in; without it the data say what spaces there are.",
    "policy": "What is fitted.",
    "objective": "What is climbed, and what teaches the guide.",
    "proposal": "Where an objective's particles come from.",
    "seed": "One seed for everything that is drawn: split, parameters, minibatches, roll-outs.",
    "num_demonstrations": "Episodes of a scripted demonstrator.",
    "demonstration_seed": "Seed of a scripted demonstrator.",
    "split": "Shares of the episodes: training, validation, test.",
    "keep": "Which parameters are handed on: best on the validation part, or last.",
    "per_datum": "Give each row a density of its own for its latent, beside the guide.",
    "checkpoint_every": "Epochs from one checkpoint to the next.",
    "log_every": "Epochs from one row of metrics to the next.",
    "rollouts": "Episodes played at the end; 0 plays none.",
    "num_envs": "Environments that are stepped together.",
    "acting": "How they act: the policy itself, its decoder's mean at a sampled z, or the average of chunks.",
    "measured_episodes": "Episodes of the test part that the likelihood is measured on, at most.",
    "likelihood_particles": "Numbers K of particles of the curve of bounds.",
    "annealing_temperatures": "Temperatures of annealed importance sampling; 0 leaves it out.",
    "annealing_chains": "Its chains a row.",
}


@dataclass(frozen=True)
class ImitateCommand:
    """What a command line asks for."""

    config: CloningConfig
    seeds: tuple[int, ...] | None
    out: Path | None
    trusted: bool
    device: str
    num_workers: int = 1
    backend: Backend = "process"


def parse_imitate(words: Sequence[str]) -> ImitateCommand:
    """Read the words after ``latentpg imitate``; tyro ends the process with status 2 on a value of the wrong type."""
    if words in (["-h"], ["--help"]):
        words = ["--data", "scripted:latentpg/Avoiding-v0", "--help"]
    first = choices_in(words, _CHOOSE)
    chosen = {name: first[name] for name in _CHOOSE if name in first}
    if chosen.get("data") and Path(chosen["data"]).exists():  # so that the run can go on from anywhere
        chosen["data"] = str(Path(chosen["data"]).absolute())
    file = {} if first.get("config") is None else read_options(Path(first["config"]))
    if file:  # which must suit the parts that it chooses itself
        own = {"data": chosen.get("data", ""), **file}
        check_names(file, select({name: own[name] for name in _CHOOSE if name in own}), where=str(first["config"]))
    config = starting_from({**file, **chosen}, tuned="no_tuned" not in first)
    check_flags("latentpg imitate", words, names_of(config, _OF_COMMAND), owner=owner_of)
    options: Any = tyro.cli(
        options_class(config, _OF_COMMAND),
        args=list(words),
        prog="latentpg imitate",
        description="Learn a policy from demonstrations. Options are those of the parts that were chosen.",
    )
    if config.selection.env is not None:
        check_trust(config.selection.env, trusted=options.trust_env)
    resolved = resolve({name: getattr(options, name) for name in config.flat()} | chosen)
    seeds = None if options.seeds is None else seeds_of(options.seeds)
    return ImitateCommand(
        resolved, seeds, options.out, options.trust_env, options.device, options.num_workers, options.backend
    )


def command_of(config: CloningConfig, seeds: Sequence[int] | None = None) -> str:
    """Spell the command that makes the same run again: what differs from the defaults of its parts and shipped options.

    >>> command_of(resolve({"data": "shown.npz", "policy": "gaussian", "num_epochs": 7}))
    'latentpg imitate --data shown.npz --policy gaussian --num-epochs 7 --seed 0'
    """
    values = config.known()
    given = {"data": config.selection.data}
    for name in _CHOOSE * 2:  # twice, because to choose one part may do away with what shipped for another
        if name in values and starting_from(given).known().get(name) != values[name]:
            given[name] = values[name]
    plain = starting_from(given).known()
    words = ["latentpg", "imitate"]
    for name, value in given.items():
        words += spell(name, value)
    for name in {**plain, **values}:
        if name not in given and name != "seed" and values.get(name) != plain.get(name):
            words += spell(name, values.get(name))
    words += ["--seeds", spell_seeds(seeds)] if seeds else ["--seed", str(config.run.seed)]
    return shlex.join(words)


def starting_from(given: Mapping[str, Any], *, tuned: bool = True) -> CloningConfig:
    """Resolve what is given on top of what ships for the environment; options that no chosen part has are left out."""
    asked = select({name: value for name, value in given.items() if name in _CHOOSE})
    values = layered(tuned_options(asked.env) if tuned else {}, given)
    fitting = allowed(select({name: value for name, value in values.items() if name in _CHOOSE}))
    return resolve({name: value for name, value in values.items() if name in (*SELECTS, *fitting)})


def changed_options(words: Sequence[str], config: CloningConfig) -> list[str]:
    """Return what words on the command line would change of a configuration, a line each; names must be known."""
    values = config.known()
    chosen = choices_in(words, _CHOOSE)
    changed = [
        f"{name} = {value}, and not {values.get(name)}"
        for name, value in chosen.items()
        if name in _CHOOSE and value != values.get(name)
    ]
    if changed:
        return changed
    check_flags("latentpg resume", words, names_of(config, ()), owner=owner_of)
    options = tyro.cli(options_class(config, ()), args=list(words), prog="latentpg resume")
    now = resolve({name: getattr(options, name) for name in config.flat()}).known()
    return [
        f"{name} = {now.get(name)}, and not {values.get(name)}"
        for name in {**values, **now}
        if now.get(name) != values.get(name)
    ]


def options_class(config: CloningConfig, extra: Sequence[tuple[str, Any, Any, str]]) -> Any:  # noqa: ANN401 (a class)
    """Make the class of the options that there are, with a configuration's values as defaults."""
    values = config.flat()
    parts: list[tuple[str, Any, Any]] = []
    for name in SELECTS:
        kind: Any = Literal[tuple(SELECTORS[name])] if name in SELECTORS else (str | None if name == "env" else str)
        parts.append(option_field(name, kind, values[name], _TEXTS[name]))
    for name, (part, maker) in allowed(config.selection).items():
        hint = get_type_hints(maker)[options_of(part, maker)[name].name]
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        text = f"Of the {part}." if part in ("run", "fit") else f"Of the {part} {getattr(config.selection, part)}."
        parts.append(option_field(name, hint, value, _TEXTS.get(name, text)))
    parts += [option_field(*each) for each in extra]
    return make_dataclass("ImitateOptions", parts, frozen=True)


def names_of(config: CloningConfig, extra: Sequence[tuple[str, Any, Any, str]]) -> list[str]:
    """List the names of all options that there are."""
    return [*SELECTS, *allowed(config.selection), *(name for name, *_ in extra)]
