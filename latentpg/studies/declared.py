"""Values that come from files and command lines, held to the types that fields declare, before anything is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from latentpg.errors import EstimatorError, OptionError, StudyError, did_you_mean
from latentpg.studies.guide_target import GuideGradient
from latentpg.studies.procedures import Procedure
from latentpg.studies.spec import Study

LARGEST = 2**40
"""The largest whole number that anything but a seed can be: no size beyond it fits into a memory."""


def as_declared(where: str, maker: Callable[..., Any], name: str, value: Any) -> Any:  # noqa: ANN401 (anything a file holds)
    """Return a value as the field ``name`` of a class declares it: a list as a tuple, 2 as 2.0 where float is meant.

    >>> from latentpg.studies.toys import RandomToys
    >>> as_declared("source toys", RandomToys, "scale", 2)
    2.0
    """
    if name != "seed" and _is_too_large(value):
        raise OptionError(where, f"`{name}`", expected=f"at most {LARGEST}", got=f"{value!r:.80}")
    hint = get_type_hints(maker if inspect.isclass(maker) else type(maker)).get(name, Any)
    try:
        return _fit(hint, value)
    except (TypeError, OverflowError):
        words = [word for word in get_args(hint) if get_origin(hint) is Literal]
        raise OptionError(
            where,
            f"`{name}`",
            expected=f"one of {', '.join(words)}" if words else _spell(hint),
            got=repr(value)[:80],
            fix=did_you_mean(value, words) if words and isinstance(value, str) else None,
        ) from None


def check_cells(study: Study) -> None:
    """Refuse what could only fail: a line or target without a cell, a setting its owner refuses, a wrong option.

    What an estimator cannot do is left to the run, which may skip it.
    """
    cells = list(study.cells())
    for line in study.lines:
        if not any(cell.line == line for cell in cells):
            if line.objective is not None:
                wanted = "a target of the kind training"
            elif line.role == "objective":
                wanted = "a target of the kind guide-gradient"
            else:
                wanted = "a target of another kind than guide-gradient and training"
            raise _idle(study, f"line `{line.label}` belongs to no target", wanted)
    for name, target in study.targets.items():
        if not any(cell.target == name for cell in cells):
            both = isinstance(target, Procedure) and target.pairs
            role = "`objective`" if isinstance(target, GuideGradient) else "`estimator`"
            raise _idle(
                study,
                f"target `{name}` belongs to no line",
                "a line with `estimator` and `objective`" if both else f"a line with {role}",
            )
    for cell in cells:
        for owner in (study.source_of(cell), study.target_of(cell)):
            for name, value in vars(owner).items():
                as_declared(f"study {study.name}", type(owner), name, value)
        try:
            if cell.line.role == "estimator":
                cell.build()
            if cell.line.role == "objective" or cell.line.objective is not None:
                cell.build_objective()
        except EstimatorError:
            pass
        except TypeError as error:
            raise OptionError(f"study {study.name}", f"line `{cell.line.label}`", got=str(error)) from error


def _idle(study: Study, what: str, expected: str) -> StudyError:
    return StudyError(f"study {study.name}", what, expected=expected, got="none", fix="add it, or leave this out")


def _fit(hint: Any, value: Any) -> Any:  # noqa: ANN401 (any annotation, any value)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if float in parts and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        for part in parts:
            try:
                return _fit(part, value)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal and not any(type(value) is type(part) and value == part for part in parts):
        raise TypeError
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_fit(parts[0], each) for each in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, float, str, NoneType) and type(value) is not hint:
        raise TypeError
    return value


def _is_too_large(value: Any) -> bool:  # noqa: ANN401 (anything a file holds)
    if isinstance(value, list | tuple):
        return any(map(_is_too_large, value))
    return type(value) is int and abs(value) > LARGEST


def _spell(hint: Any) -> str:  # noqa: ANN401 (any annotation)
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "nothing"}
    if get_origin(hint) is tuple:
        return f"a list, each {_spell(get_args(hint)[0])}"
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not int or float not in get_args(hint)]
        return " or ".join(map(_spell, parts))
    return words.get(hint, str(hint))
