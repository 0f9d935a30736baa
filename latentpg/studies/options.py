"""What a command line may change of a study: its numbers, its axes, and the fields of its source."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from latentpg.errors import OptionError
from latentpg.numerics.devices import DEVICES
from latentpg.studies.declared import check_cells
from latentpg.studies.files import make_study
from latentpg.studies.spec import Study
from latentpg.studies.workers import Backend

_OWN: tuple[tuple[str, Any, str], ...] = (
    ("seed", int, "One seed for everything that is drawn."),
    ("num_replicates", int, "Independent values or gradients measured in every cell."),
    ("skip_invalid", bool, "Name and leave out cells whose estimator does not fit the source."),
)
"""Fields of a study that are options of its command."""


def options_of(study: Study) -> type:
    """Make the class of a study's options, with the study's own settings as defaults."""
    parts: list[tuple[str, Any, Any]] = [
        _part("out", Path | None, None, "Folder to write to, new or empty; without it runs/NAME-DATE-TIME."),
        _part("resume", bool, False, "Go on in the folder --out, which holds this very study, with what is missing."),
        _part("num_workers", int, 1, "Processes in which cells run."),
        _part("backend", Backend, "process", "Processes of this machine, or a Ray cluster (extra: ray)."),
        _part("device", Literal[DEVICES], "cpu", "Where cells are measured."),
    ]
    parts += [_part(name, kind, getattr(study, name), text) for name, kind, text in _OWN]
    for axis, values in study.axes.items():
        kind = type(values[0])  # which files make the same for all of an axis
        text = "The grid of K." if axis == "num_particles" else f"Values on the axis {axis}."
        parts.append(_part(axis, tuple[kind, ...], values, text))  # type: ignore[valid-type]
    for name, value in _scalars(study).items():
        parts.append(_part(name, type(value), value, "Of the source."))
    return make_dataclass("StudyOptions", parts, frozen=True)


def resolve(study: Study, options: Any) -> Study:  # noqa: ANN401 (an instance of what options_of made)
    """Return the study with what the options change."""
    changes = {name: getattr(options, name) for name, _, _ in _OWN}
    axes = {axis: tuple(getattr(options, axis)) for axis in study.axes}
    source = replace(study.source, **{name: getattr(options, name) for name in _scalars(study)})  # type: ignore[type-var]
    resolved = replace(study, axes=axes, source=source, **changes)
    check_cells(resolved)
    return resolved


def command_of(study: Study, named: str) -> str:
    """Spell the command that runs a study again with the same results; ``named`` is its name or file.

    >>> command_of(make_study("quickstart"), "quickstart")
    'latentpg study quickstart --seed 0'
    """
    plain = make_study(named)
    words = ["latentpg", "study", named, "--seed", str(study.seed)]
    if study.num_replicates != plain.num_replicates:
        words += ["--num-replicates", str(study.num_replicates)]
    if study.skip_invalid != plain.skip_invalid:
        words.append("--skip-invalid" if study.skip_invalid else "--no-skip-invalid")
    for name, value in _scalars(study).items():
        if value != getattr(plain.source, name):
            words += _spell(name, value)
    for axis, values in study.axes.items():
        if values != plain.axes[axis]:
            words += [_flag(axis), *map(str, values)]
    return shlex.join(words)


def check_owner_names(study: Study) -> None:
    """Refuse a study whose source or axes have a name that is an option of the command already."""
    taken = {"out", "resume", "num_workers", "backend", "device", *(name for name, _, _ in _OWN)}
    clash = sorted(taken & {*study.axes, *_scalars(study)})
    if clash:
        raise OptionError(
            "latentpg study",
            f"the field or axis `{clash[0]}` is an option already",
            expected="another name",
            got=clash[0],
        )


def _scalars(study: Study) -> Mapping[str, int | float | str | bool]:
    """List the source's fields that a word on the command line can set and no axis does."""
    if not is_dataclass(study.source):
        return {}
    values = {each.name: getattr(study.source, each.name) for each in fields(study.source)}
    return {
        name: value for name, value in values.items() if isinstance(value, int | float | str) and name not in study.axes
    }


def _part(name: str, kind: Any, default: Any, text: str) -> tuple[str, Any, Any]:  # noqa: ANN401 (a type, its value)
    return name, Annotated[kind, tyro.conf.arg(help=text)], field(default=default)


def _spell(name: str, value: int | float | str | bool) -> list[str]:
    if isinstance(value, bool):
        return [_flag(name if value else f"no_{name}")]
    return [_flag(name), str(value)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
