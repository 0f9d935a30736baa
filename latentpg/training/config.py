"""The resolved configuration of a run: which parts, and every option of each, as frozen dataclasses.

A file and a command line both are a flat list of names and values (``num_steps = 32``, ``--num-steps 32``), put one on
top of the other: a part's own defaults, the options that ship for an environment, a file, flags. A file must suit the
parts that it chooses itself; where a flag then chooses another part, what belonged to the old one is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators import Estimator
from latentpg.estimators.guides import GuideObjective
from latentpg.learners import AgentOptions
from latentpg.runs import FORMAT_VERSION
from latentpg.runs.untrusted import RefusedError, read_toml
from latentpg.studies.declared import as_declared
from latentpg.training.parts import (
    NONE,
    SELECTORS,
    RunOptions,
    Selection,
    default_of,
    options_of,
    owner_of,
)
from latentpg.training.policies import PolicyPart
from latentpg.training.source import KEYS, Source, source_of
from latentpg.training.spans import check_span, with_span

TUNED = Path(__file__).with_name("tuned")
"""Where the option files that ship are."""

_OWN_KEYS = ("format_version", "name", "study", "seeds")  # beside options; earlier folders say study for name


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that a run's result hangs on, beside the versions of what it stands on."""

    selection: Selection
    run: RunOptions
    policy: PolicyPart
    estimator: Estimator
    objective: GuideObjective | None
    agent: AgentOptions
    algorithm: Any
    source: Source | None = None

    def flat(self) -> dict[str, Any]:
        """Return names and values as a file holds them; :func:`resolve` makes the same configuration of them.

        >>> config = resolve({"env": "CartPole-v1"})
        >>> resolve(config.flat()) == config
        True
        """
        proposal = getattr(self.estimator, "proposal", None)
        made = {
            "run": self.run,
            "agent": self.agent,
            "algo": self.algorithm,
            "policy": self.policy,
            "estimator": self.estimator,
            "proposal": proposal,
            "guide_objective": self.objective,
        }
        flat = {each.name: getattr(self.selection, each.name) for each in fields(Selection)}
        for part, maker in self.selection.parts().items():
            for name, field in options_of(part, maker).items():
                value = getattr(made[part], field.name)
                flat[name] = list(value) if isinstance(value, tuple) else value
        return flat | ({} if self.source is None else self.source.values())

    def with_seed(self, seed: int) -> TrainingConfig:
        """Return the same with another seed."""
        return resolve({**self.flat(), "seed": seed})


def resolve(values: Mapping[str, Any], *, where: str = "training") -> TrainingConfig:
    """Build a configuration from names and values; what is not given has its part's default.

    >>> resolve({"env": "CartPole-v1", "num_particles": 4}).estimator
    ConditionalIS(num_particles=4, proposal=Prior())
    """
    selection = select(values, where=where)
    check_names(values, selection, where=where)
    values = with_span(values, selection, where=where)
    made = {
        part: make_part(where, maker, options_of(part, maker), values)
        for part, maker in selection.parts().items()
        if part not in ("estimator", "proposal", "guide_objective")
    }
    estimator = _make_estimator(where, selection, values)
    objective = None
    if selection.guide_objective != NONE:
        maker = SELECTORS["guide_objective"][selection.guide_objective]
        objective = make_part(where, maker, options_of("guide_objective", maker), values)
    source = source_of(values, where=where)
    parts = made["run"], made["policy"], estimator, objective, made["agent"], made["algo"]
    config = TrainingConfig(selection, *parts, source)
    check_span(selection.policy, config.algorithm)
    _check_entropy(config)
    return config


def known_values(config: TrainingConfig) -> dict[str, Any]:
    """Return a configuration's names and values as a file has them, which is without those that are None."""
    return {name: value for name, value in config.flat().items() if value is not None}


def select(values: Mapping[str, Any], *, where: str = "training") -> Selection:
    """Read which parts are chosen."""
    names = {each.name: values.get(each.name) for each in fields(Selection)}
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise OptionError(where, f"`{name}`", expected="a name", got=repr(value))
    if not names["env"]:
        raise OptionError(
            where, "no environment", expected="the id of a Gymnasium environment", got="none", fix="--env CartPole-v1"
        )
    return Selection.of(**names)  # type: ignore[arg-type]


def check_names(values: Mapping[str, Any], selection: Selection, *, where: str) -> None:
    """Refuse a name that none of the chosen parts has, and say where it belongs if anywhere."""
    known = [*(each.name for each in fields(Selection)), *allowed(selection)]
    for name in values.keys() - set(KEYS):
        if name not in known:
            raise unknown_option(where, name, known)


def unknown_option(
    where: str,
    name: str,
    known: list[str],
    *,
    got: str | None = None,
    owner: Callable[[str], str | None] = owner_of,
) -> OptionError:
    """Build the error for an option that no chosen part has; ``owner`` names a part that would have it."""
    home = owner(name)
    return OptionError(
        where,
        f"unknown option `{name}`" if home is None else f"`{name}` is no option of the parts that were chosen",
        expected=f"one of {', '.join(known)}",
        got=repr(name) if got is None else got,
        fix=did_you_mean(name, known) if home is None else f"it belongs to {home}; choose that, or drop it",
    )


def allowed(selection: Selection) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Return the options of the chosen parts by name, with the part each belongs to."""
    return {name: (part, maker) for part, maker in selection.parts().items() for name in options_of(part, maker)}


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Put names and values on top of each other, and drop options of parts that a later layer did away with.

    >>> layered({"env": "CartPole-v1", "policy": "mixture", "num_components": 3}, {"policy": "plain"})
    {'env': 'CartPole-v1', 'policy': 'plain'}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        below = {name: value for name, value in merged.items() if not _is_outdated(name, merged, layer)}
        merged = {**below, **layer}
    last = layers[-1] if layers else {}
    if "env" not in merged:
        return merged
    fitting = allowed(select(merged))
    own = {*KEYS, *(each.name for each in fields(Selection))}
    return {name: value for name, value in merged.items() if name in own or name in fitting or name in last}


def read_options(path: Path) -> dict[str, Any]:
    """Read a TOML file of options: one of the user's, one that ships, or a run folder's ``config.toml``."""
    try:
        values = read_toml(path)
    except (OSError, ValueError, RefusedError) as error:  # a name that no file can have is a ValueError
        raise OptionError(str(path), "cannot be read", expected="a TOML file of options", got=str(error)) from error
    version = values.get("format_version", FORMAT_VERSION)
    if type(version) is not int or version != FORMAT_VERSION:
        raise OptionError(
            str(path),
            "another version of the format",
            expected=f"format_version = {FORMAT_VERSION}",
            got=repr(version),
            fix="the version of latentpg that wrote it",
        )
    return {name: value for name, value in values.items() if name not in _OWN_KEYS}


def tuned_options(env: str, algo: str) -> dict[str, Any]:
    """Return the options that ship for an environment and an algorithm; none is no error.

    >>> tuned_options("CartPole-v1", "ppo")["num_steps"]
    32
    """
    return _shipped(TUNED, env, algo)


def fine_tuning_options(env: str, algo: str) -> dict[str, Any]:
    """Return the options that ship for a run that begins with an earlier one's policy; none is no error.

    >>> fine_tuning_options("CartPole-v1", "ppo")
    {}
    """
    return _shipped(TUNED / "from", env, algo)


def _shipped(folder: Path, env: str, algo: str) -> dict[str, Any]:
    path = folder / f"{env.replace('/', '_')}-{algo}.toml"
    return read_options(path) if path.is_file() else {}


def check_trust(env: str, *, trusted: bool) -> None:
    """Refuse ``module:Env``, which imports the module, unless the user said on this command line that it may."""
    if ":" in env and not trusted:
        raise OptionError(
            "--env",
            f"`{env}` would import and so execute the module {env.partition(':')[0]}",
            expected="the id of a registered environment",
            got=repr(env),
            fix="--trust-env, if you trust that module; no file can say so in your place",
        )


def _is_outdated(name: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Tell whether a part was chosen for another part, in whose place a third one has come."""
    policies = (below.get("policy", "mixture"), above.get("policy", below.get("policy", "mixture")))
    estimators = (below.get("estimator"), above.get("estimator", below.get("estimator")))
    if name in ("estimator", "proposal", "guide_objective") and policies[0] != policies[1] and "plain" in policies:
        return True
    return name in ("proposal", "guide_objective") and estimators[0] != estimators[1]


def make_part(where: str, maker: Callable[..., Any], options: Mapping[str, Any], values: Mapping[str, Any]) -> Any:  # noqa: ANN401 (any part)
    """Build a part from its options, which are fields by name, and from values; what is not given has its default."""
    given = {
        field.name: as_declared(where, maker, field.name, values[name] if name in values else default_of(field))
        for name, field in options.items()
    }
    return maker(**given)


def _make_estimator(where: str, selection: Selection, values: Mapping[str, Any]) -> Estimator:
    maker = SELECTORS["estimator"][selection.estimator]
    given = {
        field.name: as_declared(where, maker, field.name, values[name] if name in values else default_of(field))
        for name, field in options_of("estimator", maker).items()
    }
    if selection.proposal != NONE:
        proposal = SELECTORS["proposal"][selection.proposal]
        given["proposal"] = make_part(where, proposal, options_of("proposal", proposal), values)
    return maker(**given)


def _check_entropy(config: TrainingConfig) -> None:
    untaught = config.objective is None and config.selection.policy != "plain"
    if config.agent.entropy_coefficient and untaught:
        raise OptionError(
            "training",
            "the entropy bonus of a latent policy asks the guide, which nothing teaches",
            expected="a guide objective",
            got="--guide-objective none",
            fix="--guide-objective recorded, or --entropy-coefficient 0",
        )
