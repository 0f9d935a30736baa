"""Targets that are carried out from end to end, several times over, instead of estimated once a replicate.

A training run is one: what is looked at is where it has come to, after so many steps. A procedure names its measures
itself, and gives each an interval over its independent repetitions; what it finds by enumeration is exact. Along the
axis ``step`` one run is looked at again and again: all its steps are one piece of a study's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from latentpg.errors import OptionError
from latentpg.estimators import Estimator
from latentpg.estimators.guides import GuideObjective
from latentpg.numerics.statistics import Interval
from latentpg.studies.problem import Problem

STEP = "step"
"""The axis along which one run is looked at again."""


@dataclass(frozen=True)
class Traced:
    """A number that a procedure found: of which measure, after which step, over how many repetitions.

    ``step`` is None for a procedure without steps, and ``count`` for a number without noise.
    """

    measure: str
    interval: Interval
    step: int | None = None
    count: int | None = None

    @property
    def exact(self) -> bool:
        """Whether it carries no noise."""
        return self.count is None


@dataclass(frozen=True)
class Chosen:
    """What a line of a study brings to a procedure.

    ``keeps_recorded`` tells that the estimator's claims rest on the latent that was recorded while acting.
    """

    estimator: Estimator
    objective: GuideObjective | None = None
    keeps_recorded: bool = False


@runtime_checkable
class Procedure(Protocol):
    """A frozen dataclass whose fields are its configuration; one with steps has a field ``step``."""

    @property
    def pairs(self) -> bool:
        """Whether its lines have a guide objective beside the estimator."""
        ...

    def carry_out(
        self, problem: Problem, chosen: Chosen, *, steps: Sequence[int], num_replicates: int
    ) -> Sequence[Traced]:
        """Carry it out ``num_replicates`` times from the ambient stream and tell what was found after ``steps``."""
        ...


def check_step(where: str, step: object) -> None:
    """Refuse a number of steps that is none."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise OptionError(where, "`step`", expected="an integer >= 0", got=repr(step))
