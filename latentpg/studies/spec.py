"""What a study is: a source of rows, targets, lines of estimators, and axes over which everything is crossed."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators import (
    ESTIMATORS,
    GUIDE_OBJECTIVES,
    ConditionalIS,
    Estimator,
    make_estimator,
    make_guide_objective,
)
from latentpg.estimators.guides import GuideObjective
from latentpg.numerics.statistics import MIN_REPLICATES
from latentpg.studies.guide_target import GuideGradient
from latentpg.studies.problem import Source
from latentpg.studies.sources import source_kind
from latentpg.studies.targets import MODEL_TARGETS, Gradient
from latentpg.studies.targets import Target as ModelTarget

Target = ModelTarget | GuideGradient
"""What is measured: of an estimator of log pi, or of a guide objective."""


Setting = int | float | str | bool
"""A value on an axis."""

PARTICLES = "num_particles"
"""The axis of K, which every sampling estimator has."""

STORED = "conditional-wake"
"""The guide objective that works on stored particles, and so is told their K and proposal."""

TARGETS: Mapping[str, Callable[..., Target]] = {**MODEL_TARGETS, "guide-gradient": GuideGradient}
"""Every target by the name that files and commands use."""


@dataclass(frozen=True)
class Line:
    """One curve of a figure: an estimator or guide objective by its registered name, its proposal, other options.

    >>> Line("conditional-is", "guide").label
    'conditional-is, guide'
    """

    estimator: str
    proposal: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    role: Literal["estimator", "objective"] = "estimator"

    @property
    def label(self) -> str:
        """A name for legends and tables."""
        parts = [self.estimator, *([self.proposal] if self.proposal else [])]
        return ", ".join([*parts, *(f"{name}={value}" for name, value in self.options.items() if name != "num_sweeps")])

    def takes(self, option: str) -> bool:
        """Tell whether its estimator has an option."""
        return option in self.known_options()

    def known_options(self) -> Sequence[str]:
        """List what its estimator or objective can be told, K and proposal of stored particles among it."""
        if self.role == "estimator":
            if self.estimator not in ESTIMATORS:
                make_estimator(self.estimator)  # raises, with suggestions
            return list(inspect.signature(ESTIMATORS[self.estimator]).parameters)
        if self.estimator not in GUIDE_OBJECTIVES:
            make_guide_objective(self.estimator)  # raises, with suggestions
        options = list(inspect.signature(GUIDE_OBJECTIVES[self.estimator]).parameters)
        return [*options, PARTICLES, "proposal"] if self.estimator == STORED else options


@dataclass(frozen=True)
class Cell:
    """One point of a curve: what is asked, by which estimator, and where on the axes."""

    line: Line
    target: str = "gradient"
    settings: tuple[tuple[str, Setting], ...] = ()

    @property
    def key(self) -> str:
        """A name that no other cell of the study has; the cell's random stream hangs on it.

        >>> Cell(Line("posterior-is", "prior"), "gradient", (("num_particles", 8),)).key
        'gradient | posterior-is, prior | num_particles=8'
        """
        return " | ".join([self.target, self.line.label, *(f"{name}={value}" for name, value in self.settings)])

    @property
    def num_particles(self) -> int | None:
        """K, or None for an estimator that takes none."""
        value = self.at(PARTICLES)
        return None if value is None else int(value)

    def at(self, axis: str) -> Setting | None:
        """Return where the cell lies on an axis, or None if the axis does not concern it."""
        return dict(self.settings).get(axis)

    def build(self) -> Estimator:
        """Make the estimator.

        One with a second set of particles (:class:`~latentpg.estimators.SplitIS`) gets K in both.
        """
        options = self._options()
        if PARTICLES in options and self.line.takes("num_value_particles"):
            options.setdefault("num_value_particles", options[PARTICLES])
        return make_estimator(self.line.estimator, options)

    def build_objective(self) -> tuple[GuideObjective, ConditionalIS | None]:
        """Make the guide objective, and the estimator whose stored particles it works on, if it wants any."""
        options = self._options()
        if self.line.estimator != STORED:
            return make_guide_objective(self.line.estimator, options), None
        stored = make_estimator("conditional-is", options)
        assert isinstance(stored, ConditionalIS)
        return make_guide_objective(STORED), stored

    def _options(self) -> dict[str, Any]:
        options = dict(self.line.options)
        if self.line.proposal is not None:
            options["proposal"] = self.line.proposal
        options |= {name: value for name, value in self.settings if self.line.takes(name)}
        return options


@dataclass(frozen=True)
class Study:
    """A grid of experiments.

    Each axis belongs to whoever has a field of its name: the source, a target or an estimator; a cell lies on the axes
    that concern it. ``x`` is the axis that figures have to the right. With ``skip_invalid`` a cell whose estimator does
    not fit the source is named and left out; without it, it ends the study.
    """

    name: str
    title: str
    source: Source
    lines: tuple[Line, ...]
    targets: Mapping[str, Target] = field(default_factory=lambda: {"gradient": Gradient()})
    axes: Mapping[str, tuple[Setting, ...]] = field(default_factory=lambda: {PARTICLES: (1, 2, 4, 8, 16, 32, 64)})
    x: str = PARTICLES
    num_replicates: int = 200
    num_timings: int = 9
    seed: int = 0
    skip_invalid: bool = False

    def __post_init__(self) -> None:
        """Check numbers, names and axes."""
        _check("num_replicates", self.num_replicates, MIN_REPLICATES)
        _check("num_timings", self.num_timings, MIN_REPLICATES)
        _check("seed", self.seed, 0)
        _check_distinct("lines", [line.label for line in self.lines])
        if not self.targets:
            raise OptionError("Study()", "`targets`", expected="one or more", got="none", fix=f"one of {list(TARGETS)}")
        for line in self.lines:
            line.known_options()
            twice = sorted(set(line.options) & set(self.axes))
            if twice:
                raise OptionError(
                    "Study()",
                    f"line `{line.label}`: `{twice[0]}` is an axis too",
                    expected="an option of the line or an axis, not both",
                    got=repr(line.options[twice[0]]),
                    fix=f"leave `{twice[0]}` out of the line",
                )
        for axis, values in self.axes.items():
            _check_distinct(f"axis {axis}", list(values))
            if axis != PARTICLES:  # which estimators without particles have no use for
                self._check_owner(axis)
        for size in self.axes.get(PARTICLES, ()):
            _check("num_particles", size, 1)
        if self.x not in self.axes:
            raise OptionError("Study()", "`x`", expected=f"one of the axes {list(self.axes)}", got=repr(self.x))

    @property
    def num_particles(self) -> tuple[int, ...]:
        """The grid of K, if there is one."""
        return tuple(int(size) for size in self.axes.get(PARTICLES, ()))

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, target by target and curve by curve."""
        for name, target in self.targets.items():
            for line in self.lines:
                if (line.role == "objective") is not isinstance(target, GuideGradient):
                    continue
                axes = [axis for axis in self.axes if self._concerns(axis, line, target)]
                for values in itertools.product(*(self.axes[axis] for axis in axes)):
                    yield Cell(line, name, tuple(zip(axes, values, strict=True)))

    def source_of(self, cell: Cell) -> Source:
        """Return the source at a cell's place on the axes."""
        changes = {name: value for name, value in cell.settings if name in _fields_of(self.source)}
        return replace(self.source, **changes) if changes else self.source  # type: ignore[type-var]

    def target_of(self, cell: Cell) -> Target:
        """Return the target at a cell's place on the axes."""
        target = self.targets[cell.target]
        changes = {name: value for name, value in cell.settings if name in _fields_of(target)}
        return replace(target, **changes) if changes else target  # type: ignore[type-var]

    def config(self) -> dict[str, Any]:
        """Return the resolved configuration, as a file can hold it."""
        return {
            "title": self.title,
            "seed": self.seed,
            "num_replicates": self.num_replicates,
            "num_timings": self.num_timings,
            "skip_invalid": self.skip_invalid,
            "x": self.x,
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "source": {"kind": source_kind(self.source), **_values_of(self.source)},
            "targets": [
                {"name": name, "kind": kind_of(target), **_values_of(target)} for name, target in self.targets.items()
            ],
            "lines": [{line.role: line.estimator, "proposal": line.proposal, **line.options} for line in self.lines],
        }

    def _concerns(self, axis: str, line: Line, target: Target) -> bool:
        return axis in _fields_of(self.source) or axis in _fields_of(target) or line.takes(axis)

    def _check_owner(self, axis: str) -> None:
        options = {option for line in self.lines for option in line.known_options()}
        of_targets = {name for target in self.targets.values() for name in _fields_of(target)}
        owners = [kind for kind in (_fields_of(self.source), of_targets, options) if axis in kind]
        known = sorted({*_fields_of(self.source), *of_targets, *options})
        if not owners:
            raise OptionError(
                "Study()",
                f"axis `{axis}` concerns nothing",
                expected=f"a field of the source, a target or an estimator: {', '.join(known)}",
                got=axis,
                fix=did_you_mean(axis, known),
            )


def kind_of(target: Target) -> str:
    """Return the registered name of a target's kind.

    >>> kind_of(Gradient("theta"))
    'gradient'
    """
    return next(name for name, maker in TARGETS.items() if type(target) is maker)


def _fields_of(owner: object) -> Sequence[str]:
    return [each.name for each in fields(owner)] if is_dataclass(owner) and not isinstance(owner, type) else []


def _values_of(owner: object) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in _fields_of(owner)}


def _check(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise OptionError("Study()", f"`{name}`", expected=f"an integer >= {minimum}", got=repr(value))


def _check_distinct(what: str, values: Sequence[object]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice or not values:
        raise OptionError("Study()", f"`{what}`", expected="one or more, all distinct", got=", ".join(twice) or "none")
