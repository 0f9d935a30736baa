"""The resolved configuration of a run of cloning: data, parts, and every option of each.

As for training, a file and a command line both are a flat list of names and values, put one on top of the other: a
part's own defaults, the options that ship for an environment, a file, flags. Options that ship are a recipe for one
policy and one objective: who asks for others gets none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from latentpg.cloning.parts import SCRIPTED, SELECTORS, CloningOptions, CloningSelection, owner_of
from latentpg.errors import OptionError
from latentpg.imitation import FitOptions, Objective
from latentpg.studies.declared import as_declared
from latentpg.training.config import make_part, read_options, unknown_option
from latentpg.training.parts import NONE, default_of, options_of
from latentpg.training.policies import PolicyPart

TUNED = Path(__file__).with_name("tuned")
"""Where the option files that ship are."""

SELECTS = tuple(each.name for each in fields(CloningSelection))
"""The names that choose parts."""


@dataclass(frozen=True)
class CloningConfig:
    """Everything that a run's result hangs on, beside the versions of what it stands on."""

    selection: CloningSelection
    run: CloningOptions
    fit: FitOptions
    policy: PolicyPart
    objective: Objective

    def flat(self) -> dict[str, Any]:
        """Return names and values as a file holds them; :func:`resolve` makes the same configuration of them.

        >>> config = resolve({"data": "scripted:latentpg/Routes-v0"})
        >>> resolve(config.flat()) == config
        True
        """
        made = {
            "run": self.run,
            "fit": self.fit,
            "policy": self.policy,
            "objective": self.objective,
            "proposal": getattr(self.objective, "proposal", None),
        }
        flat = {name: getattr(self.selection, name) for name in SELECTS}
        for part, maker in self.selection.parts().items():
            for name, field in options_of(part, maker).items():
                value = getattr(made[part], field.name)
                flat[name] = list(value) if isinstance(value, tuple) else value
        return flat

    def known(self) -> dict[str, Any]:
        """Return names and values as a file has them, which is without those that are None."""
        return {name: value for name, value in self.flat().items() if value is not None}

    def but(self, **changes: object) -> CloningConfig:
        """Return the same with some options changed."""
        return resolve({**self.flat(), **changes})


def resolve(values: Mapping[str, Any], *, where: str = "latentpg imitate") -> CloningConfig:
    """Build a configuration from names and values; what is not given has its part's default.

    >>> resolve({"data": "shown.npz", "policy": "gaussian", "beta": 2}).objective.beta
    2.0
    """
    selection = select(values, where=where)
    check_names(values, selection, where=where)
    parts = selection.parts()
    made = {part: make_part(where, parts[part], options_of(part, parts[part]), values) for part in ("run", "fit")}
    policy = make_part(where, parts["policy"], options_of("policy", parts["policy"]), values)
    return CloningConfig(selection, made["run"], made["fit"], policy, _make_objective(where, selection, values))


def select(values: Mapping[str, Any], *, where: str = "latentpg imitate") -> CloningSelection:
    """Read which parts are chosen."""
    names = {name: values.get(name) for name in (*SELECTS, "latent_kind")}
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise OptionError(where, f"`{name}`", expected="a name", got=repr(value))
    if not names["data"]:
        raise OptionError(
            where,
            "no demonstrations",
            expected="a file or folder of demonstrations, lasa, or scripted:ENV",
            got="none",
            fix="--data scripted:latentpg/Avoiding-v0",
        )
    return CloningSelection.of(**names)  # type: ignore[arg-type]


def check_names(values: Mapping[str, Any], selection: CloningSelection, *, where: str) -> None:
    """Refuse a name that none of the chosen parts has, and say where it belongs if anywhere."""
    known = [*SELECTS, *allowed(selection)]
    for name in values:
        if name not in known:
            raise unknown_option(where, name, known, owner=owner_of)


def allowed(selection: CloningSelection) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Return the options of the chosen parts by name, with the part each belongs to."""
    return {name: (part, maker) for part, maker in selection.parts().items() for name in options_of(part, maker)}


def tuned_options(env: str | None) -> dict[str, Any]:
    """Return the options that ship for an environment; none is no error.

    >>> tuned_options("latentpg/Avoiding-v0")["policy"], tuned_options("CartPole-v1")
    ('episode', {})
    """
    path = TUNED / f"{(env or '').rpartition('/')[2]}.toml"
    if env is None or not path.is_file():
        return {}
    options = read_options(path)
    return options if options.get("env") == env else {}


def shipped_recipes() -> dict[str, str]:
    """Return the names of the option files that ship, each with the command that takes it."""
    found = {}
    for path in sorted(TUNED.glob("*.toml")):
        found[path.stem] = f"latentpg imitate --data {SCRIPTED}{read_options(path)['env']}"
    return found


def layered(shipped: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Put names and values on top of each other; a layer that chooses other parts than shipped options leaves them out.

    Another latent of the same policy keeps the policy alone.

    >>> layered({"policy": "episode", "num_epochs": 1000}, {"data": "shown.npz", "policy": "mixture"})
    {'data': 'shown.npz', 'policy': 'mixture'}
    """
    above: dict[str, Any] = {}
    for layer in layers:
        above |= layer
    other = any(above.get(name, shipped.get(name)) != shipped.get(name) for name in SELECTORS if name in shipped)
    if other or not shipped:
        return above
    kind = above.get("latent_kind", shipped.get("latent_kind")) != shipped.get("latent_kind")
    return {"policy": shipped["policy"], **above} if kind else {**shipped, **above}


def _make_objective(where: str, selection: CloningSelection, values: Mapping[str, Any]) -> Objective:
    maker = SELECTORS["objective"][selection.objective]
    given = {
        field.name: as_declared(where, maker, field.name, values[name] if name in values else default_of(field))
        for name, field in options_of("objective", maker).items()
    }
    if selection.proposal != NONE:
        proposal = SELECTORS["proposal"][selection.proposal]
        given["proposal"] = make_part(where, proposal, options_of("proposal", proposal), values)
    made: Objective = maker(**given)
    return made
