"""The command line of a run: selectors first, then the options of the parts that they chose.

A first pass reads the flags that choose parts; then only the options of those parts are parsed, so that ``--help``
shows just them, each with the value it would have.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from latentpg.errors import OptionError
from latentpg.learners.workers import TIMEOUT
from latentpg.numerics.devices import DEVICES
from latentpg.studies.workers import BACKENDS, Backend
from latentpg.training.config import (
    TrainingConfig,
    allowed,
    check_names,
    check_trust,
    fine_tuning_options,
    known_values,
    layered,
    read_options,
    resolve,
    select,
    tuned_options,
    unknown_option,
)
from latentpg.training.parts import SELECTORS, Selection, options_of, owner_of
from latentpg.training.source import KEYS
from latentpg.training.starting import inherited_names, read_source

_SELECTS = tuple(each.name for each in fields(Selection))

_OF_COMMAND: tuple[tuple[str, Any, Any, str], ...] = (
    ("config", Path | None, None, "TOML file of options, below the flags and above those that ship."),
    ("tuned", bool, True, "Start from the options that ship for this environment and algorithm, where there are any."),
    ("seeds", str | None, None, "Several runs, as 0:5 (five of them) or 3,5,8, and a learning curve over them."),
    ("num_workers", int, 1, "Processes in which runs of several seeds go on."),
    ("backend", Literal[BACKENDS], "process", "Where those are: processes of this machine, or a Ray cluster's."),
    ("device", Literal[DEVICES], "cpu", "Where policies and rows are; environments stay on the processor."),
    ("group_timeout", float, float(TIMEOUT), "Seconds that the workers of torchrun wait for each other."),
    ("out", Path | None, None, "Folder to write to, new or empty; without it runs/ENV-ALGO-DATE-TIME."),
    ("trust_env", bool, False, "Let an environment id of the form module:Env import that module."),
    ("from", Path | None, None, "Folder of an earlier run, of imitate or train, whose policy this one begins with."),
    ("from_checkpoint", Literal["best", "last"] | None, None, "Which of that run's checkpoints; else the best."),
)

_TEXTS: Mapping[str, str] = {
    "env": "Id of a Gymnasium environment.",
    "algo": "What learns.",
    "policy": "What acts.",
    "estimator": "How log pi is estimated.",
    "proposal": "Where the estimator's particles come from.",
    "guide_objective": "What teaches the guide.",
    "num_envs": "Environments that are stepped together.",
    "total_timesteps": "Environment steps in all, every one counted.",
    "seed": "One seed for everything that is drawn.",
    "eval_every": "Steps from one evaluation to the next.",
    "eval_episodes": "Whole episodes of an evaluation.",
    "eval_acting": "The policy itself, or its decoder's mean at a sampled z.",
    "checkpoint_every": "Steps from one checkpoint to the next.",
    "log_every": "Updates from one row of metrics to the next.",
    "video_every": "Steps from one filmed episode to the next; none without it.",
    "worker_timeout": "Seconds within which each worker process of async environments must answer.",
}


@dataclass(frozen=True)
class TrainCommand:
    """What a command line asks for."""

    config: TrainingConfig
    seeds: tuple[int, ...] | None
    num_workers: int
    out: Path | None
    trusted: bool
    backend: Backend
    device: str
    group_timeout: float | int


def parse_train(words: Sequence[str]) -> TrainCommand:
    """Read the words after ``latentpg train``; tyro ends the process with status 2 on a value of the wrong type."""
    if not words or words in (["-h"], ["--help"]):
        return _parse(["--env", "CartPole-v1", "--help"]) if words else _parse([])
    return _parse(words)


def changed_options(words: Sequence[str], config: TrainingConfig) -> list[str]:
    """Return what words on the command line would change of a configuration, a line each; names must be known."""
    given = {name: getattr(config.selection, name) for name in _SELECTS}
    changed = [
        f"{name} = {value}, and not {given[name]}"
        for name, value in choices_in(words).items()
        if name in given and value != given[name]
    ]
    if changed:
        return changed
    values = known_values(config)
    check_flags("latentpg resume", words, _names(config, ()))
    parsed = _values(tyro.cli(_options_class(config, ()), args=words, prog="latentpg resume"), config)
    now = known_values(resolve(parsed))
    return [
        f"{name} = {now.get(name)}, and not {values.get(name)}"
        for name in {**values, **now}
        if now.get(name) != values.get(name)
    ]


def seeds_of(text: str) -> tuple[int, ...]:
    """Read seeds: a range without its end, or a list.

    >>> seeds_of("0:3"), seeds_of("3,5,8")
    ((0, 1, 2), (3, 5, 8))
    """
    try:
        first, colon, end = text.partition(":")
        seeds = tuple(range(int(first), int(end))) if colon else tuple(int(word) for word in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise OptionError("--seeds", "not a list of seeds", expected="0:5, or 3,5,8", got=repr(text), fix="--seeds 0:5")
    return seeds


def command_of(config: TrainingConfig, seeds: Sequence[int] | None = None) -> str:
    """Spell the command that makes the same run again: what differs from the defaults of its parts and shipped options.

    >>> command_of(resolve({**tuned_options("CartPole-v1", "ppo"), "seed": 3}))
    'latentpg train --env CartPole-v1 --algo ppo --seed 3'
    """
    selection, values = config.selection, known_values(config)
    start = {"env": selection.env, "algo": selection.algo}
    if config.source is None:
        base = layered(tuned_options(**start), start)
    else:
        given = {name: values.pop(name) for name in KEYS}
        handed_on = {name: values[name] for name in inherited_names(values) if name in values}
        base = layered(fine_tuning_options(**start), {**handed_on, **given}, start)
    chosen = {name: values[name] for name in _SELECTS if values[name] != getattr(select(base), name)}
    plain = known_values(resolve(layered(base, chosen)))
    words = ["latentpg", "train", "--env", selection.env, "--algo", selection.algo]
    if config.source is not None:
        words += ["--from", config.source.path, "--from-checkpoint", config.source.checkpoint]
    for name, value in values.items():
        if name in chosen or (name not in _SELECTS and name != "seed" and value != plain.get(name)):
            words += spell(name, value)
    words += ["--seeds", spell_seeds(seeds)] if seeds else ["--seed", str(config.run.seed)]
    return shlex.join(words)


def _parse(words: Sequence[str]) -> TrainCommand:
    first = choices_in(words, (*_SELECTS, "from", "from_checkpoint"))
    file = {} if first.get("config") is None else read_options(Path(first["config"]))
    chosen = {name: first[name] for name in _SELECTS if name in first}
    handed_on: Mapping[str, Any] = {}
    if {"-h", "--help"} & {*words} and "from" in first and not (Path(first["from"]) / "config.toml").is_file():
        chosen = {"env": "CartPole-v1", **chosen}  # help needs no run
    elif "from" in first:
        handed_on = read_source(first["from"], checkpoint=first.get("from_checkpoint")).values
        _check_handed_on(handed_on, {**file, **chosen})
    elif "from_checkpoint" in first:
        raise OptionError("--from-checkpoint", "of no run", expected="--from RUN beside it", got="no --from")
    both = {**handed_on, **file, **chosen}
    if "env" in both:
        check_names(file, select({**handed_on, **file, "env": both["env"]}), where=str(first.get("config")))
    shipped: dict[str, Any] = {}
    if "no_tuned" not in first and "env" in both:
        options_for = fine_tuning_options if "from" in both else tuned_options
        shipped = options_for(str(both["env"]), str(both.get("algo", "ppo")))
    config = resolve(layered(shipped, {**handed_on}, file, chosen))
    check_flags("latentpg train", words, _names(config, _OF_COMMAND))
    options: Any = tyro.cli(
        _options_class(config, _OF_COMMAND),
        args=words,
        prog="latentpg train",
        description="Train a policy on an environment. Options are those of the parts that were chosen.",
    )
    check_trust(config.selection.env, trusted=options.trust_env)
    resolved = resolve(_values(options, config))
    _check_handed_on(handed_on, resolved.flat())
    seeds = None if options.seeds is None else seeds_of(options.seeds)
    return TrainCommand(
        resolved,
        seeds,
        options.num_workers,
        options.out,
        options.trust_env,
        options.backend,
        options.device,
        options.group_timeout,
    )


def choices_in(words: Sequence[str], names: Sequence[str] = _SELECTS) -> dict[str, str]:
    """Read the flags that decide which other flags there are: those of ``names``, and ``--config``, ``--no-tuned``."""
    found: dict[str, str] = {}
    flags = {flag_of(name): name for name in (*names, "config")}
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name == "--no-tuned":
            found["no_tuned"] = "yes"
        elif name in flags and (equals or place + 1 < len(words)):
            found[flags[name]] = value if equals else words[place + 1]
    return found


def _options_class(config: TrainingConfig, extra: Sequence[tuple[str, Any, Any, str]]) -> type:
    """Make the class of the options that there are, with a configuration's values as defaults."""
    values = config.flat()
    parts: list[tuple[str, Any, Any]] = []
    for name in _SELECTS:
        kind: Any = str if name == "env" else Literal[tuple(SELECTORS[name])]
        parts.append(option_field(name, kind, values[name], _TEXTS[name]))
    for name, (part, maker) in allowed(config.selection).items():
        hint = get_type_hints(maker)[options_of(part, maker)[name].name]
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        chosen = part if part in ("run", "agent") else f"{part.replace('_', ' ')} {getattr(config.selection, part)}"
        parts.append(option_field(name, hint, value, _TEXTS.get(name, f"Of the {chosen}.")))
    parts += [option_field(*each) for each in extra]
    return make_dataclass("TrainOptions", parts, frozen=True)


def _values(options: Any, config: TrainingConfig) -> dict[str, Any]:  # noqa: ANN401 (an instance of what was made)
    given = {name: getattr(options, name) for name in config.flat() if name not in KEYS}
    return given | ({} if config.source is None else config.source.values())


def _check_handed_on(handed_on: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse other options than those of the run whose policy is taken."""
    differs = [
        f"{name} = {values[name]}, and there {handed_on[name]}"
        for name in (inherited_names(handed_on) if handed_on else ())
        if name in handed_on and name in values and values[name] != handed_on[name]
    ]
    if differs:
        raise OptionError(
            "latentpg train",
            "the policy, its options, its networks and what it normalises by come from the run that --from names",
            expected="none of these options",
            got="; ".join(differs),
            fix="leave them out, or begin without --from",
        )


def check_flags(
    where: str, words: Sequence[str], names: Sequence[str], owner: Callable[[str], str | None] = owner_of
) -> None:
    """Refuse a flag that does not exist, with a suggestion, which tyro would not give."""
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if not (option.startswith("--") or (option.startswith("-") and option[1:2].isalpha())):
            continue
        name = option.removeprefix("--").replace("-", "_")
        if option not in ("-h", "--help") and name not in names and name.removeprefix("no_") not in names:
            raise unknown_option(where, name, list(names), got=repr(word), owner=owner)


def _names(config: TrainingConfig, extra: Sequence[tuple[str, Any, Any, str]]) -> list[str]:
    return [*_SELECTS, *allowed(config.selection), *(name for name, *_ in extra)]


def option_field(name: str, kind: Any, default: Any, text: str) -> tuple[str, Any, Any]:  # noqa: ANN401 (a type, its value)
    """Return the field of an option for tyro: its name, its type with a line of help, and its default."""
    if name == "from":  # a keyword, which no field may be named
        return "from_run", Annotated[kind, tyro.conf.arg(name="from", help=text)], field(default=default)
    return name, Annotated[kind, tyro.conf.arg(help=text)], field(default=default)


def spell(name: str, value: Any) -> list[str]:  # noqa: ANN401 (an option's value)
    """Spell an option as the words of a command line."""
    if isinstance(value, bool):
        return [flag_of(name if value else f"no_{name}")]
    return [flag_of(name), *map(str, value)] if isinstance(value, list) else [flag_of(name), str(value)]


def spell_seeds(seeds: Sequence[int]) -> str:
    """Spell seeds as :func:`seeds_of` reads them."""
    is_range = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]}:{seeds[0] + len(seeds)}" if is_range else ",".join(map(str, seeds))


def flag_of(name: str) -> str:
    """Return the flag of an option.

    >>> flag_of("num_envs")
    '--num-envs'
    """
    return f"--{name.replace('_', '-')}"
