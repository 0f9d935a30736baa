"""What a checkpoint says of its run, held to what a run writes: its digests may be right and its content anything.

Whoever can write to a folder can make all digests right, so that a state and its facts are no more trusted than any
other file's content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from latentpg.errors import CheckpointError, LatentPGError

Kind = Callable[[object], bool]
"""Tells whether a value can be a fact of a kind."""


def is_number(value: object) -> bool:
    """Tell whether this is a number, infinity and NaN among them, and no truth value."""
    return type(value) is float or is_count(value)


def is_count(value: object) -> bool:
    """Tell whether this is an integer from 0 on that a run can get to."""
    return type(value) is int and 0 <= value <= 10**18


def is_seconds(value: object) -> bool:
    """Tell whether a run can have taken so long."""
    return is_number(value) and 0 <= value < math.inf  # type: ignore[operator]


def are_numbers(value: object) -> bool:
    """Tell whether these are numbers by name."""
    return isinstance(value, dict) and all(is_number(each) for each in value.values())


OF_RUN: Mapping[str, Kind] = {
    "seconds": is_seconds,
    "evaluation": are_numbers,
    "best": lambda value: is_number(value) or (type(value) is int and abs(value) <= 10**18),
    "best_steps": is_count,
}
"""The facts that every run goes on from."""

OPTIONAL: Mapping[str, Kind] = {
    "inexact": lambda value: isinstance(value, str),
    "device": lambda value: isinstance(value, str),
    "workers": lambda value: is_count(value) and value != 0,
}
"""Those that some have."""


def check_facts(facts: Mapping[str, Any], required: Mapping[str, Kind] = OF_RUN) -> None:
    """Refuse facts that no run has written.

    >>> check_facts({"seconds": 2.5, "evaluation": {}, "best": -4.0, "best_steps": 10})
    """
    for name, holds in required.items():
        if name not in facts or not holds(facts[name]):
            raise _strange(f"`{name}` among its facts", f"{facts.get(name)!r:.80}")
    for name, holds in OPTIONAL.items():
        if name in facts and not holds(facts[name]):
            raise _strange(f"`{name}` among its facts", f"{facts[name]!r:.80}")


@contextmanager
def held_to_its_learner() -> Iterator[None]:
    """Tell of a state that the parts of a learner cannot take up as what it is: not a state of this learner's."""
    try:
        yield
    except LatentPGError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise _strange("its state", f"{type(error).__name__}: {error!s:.300}") from error


def _strange(what: str, got: str) -> CheckpointError:
    return CheckpointError(
        "checkpoint",
        f"{what} is not what this run would have written",
        expected="a checkpoint of this run, untouched, though the digests are right",
        got=got,
        fix="another checkpoint, or a run of your own",
    )
