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
from latentpg.studies.overfit import Overfit
from latentpg.studies.plots import PLOT_NAMES
from latentpg.studies.problem import Source
from latentpg.studies.procedures import STEP, Procedure
from latentpg.studies.ratio_law import RatioLaw
from latentpg.studies.sources import source_kind
from latentpg.studies.targets import MODEL_TARGETS, Gradient
from latentpg.studies.targets import Target as ModelTarget
from latentpg.studies.training_target import Training

Target = ModelTarget | GuideGradient | Procedure
"""What is measured: of an estimator of log pi, of a guide objective, or of what is done with both."""

Setting = int | float | str | bool
"""A value on an axis."""

PARTICLES = "num_particles"
"""The axis of K, which every sampling estimator has."""

STORED = "conditional-wake"
"""The guide objective that works on stored particles, and so is told their K and proposal."""

REUSING = frozenset({STORED, "wake"})
"""Guide objectives that look at the particles of the estimator they stand beside, whose K is theirs."""

TARGETS: Mapping[str, Callable[..., Target]] = {
    **MODEL_TARGETS,
    "guide-gradient": GuideGradient,
    "training": Training,
    "overfit": Overfit,
    "ratio-law": RatioLaw,
}
"""Every target by the name that files and commands use."""


@dataclass(frozen=True)
class Line:
    """One curve of a figure: an estimator or guide objective by its registered name, its proposal, other options.

    ``objective`` names a guide objective *beside* an estimator, as training needs both.

    >>> Line("conditional-is", "guide").label
    'conditional-is, guide'
    >>> Line("wake-sleep", objective="wake").label
    'wake-sleep + wake'
    """

    estimator: str
    proposal: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    role: Literal["estimator", "objective"] = "estimator"
    objective: str | None = None

    @property
    def label(self) -> str:
        """A name for legends and tables."""
        parts = [self.estimator, *([self.proposal] if self.proposal else [])]
        parts += [
            f"{'K' if name == PARTICLES else name}={value}"
            for name, value in self.options.items()
            if name != "num_sweeps"
        ]
        return ", ".join(parts) + (f" + {self.objective}" if self.objective else "")

    def takes(self, option: str) -> bool:
        """Tell whether its estimator has an option."""
        return option in self.known_options()

    def known_options(self) -> Sequence[str]:
        """List what its estimator or objective can be told, K and proposal of stored particles among it."""
        if self.role == "estimator":
            beside = [] if self.objective is None else _options_of_objective(self.objective)
            if self.objective in REUSING:
                beside = [option for option in beside if option != PARTICLES]
            return list(dict.fromkeys([*_options_of_estimator(self.estimator), *beside]))
        options = _options_of_objective(self.estimator)
        return [*options, PARTICLES, "proposal"] if self.estimator == STORED else options


def _options_of_estimator(name: str) -> list[str]:
    if name not in ESTIMATORS:
        make_estimator(name)  # raises, with suggestions
    return list(inspect.signature(ESTIMATORS[name]).parameters)


def _options_of_objective(name: str) -> list[str]:
    if name not in GUIDE_OBJECTIVES:
        make_guide_objective(name)  # raises, with suggestions
    return list(inspect.signature(GUIDE_OBJECTIVES[name]).parameters)


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
        known = _options_of_estimator(self.line.estimator)
        options = self._options()
        if self.line.objective is not None:  # each takes what it knows; that one of the two does is checked elsewhere
            options = {name: value for name, value in options.items() if name in known}
        if PARTICLES in options and "num_value_particles" in known:
            options.setdefault("num_value_particles", options[PARTICLES])
        return make_estimator(self.line.estimator, options)

    def build_objective(self) -> tuple[GuideObjective, ConditionalIS | None]:
        """Make the guide objective, and the estimator whose stored particles it works on, if it wants any."""
        options = self._options()
        if self.line.objective is not None:
            known = _options_of_objective(self.line.objective)
            mine = {name: value for name, value in options.items() if name in known}
            return make_guide_objective(self.line.objective, mine), None
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
    that concern it. ``x`` is the axis that figures have to the right, and ``panels`` one whose values are panels of the
    same figure. ``figures`` chooses some of the figures, by name; without it all are drawn. With ``skip_invalid`` a
    cell whose estimator does not fit the source is named and left out; without it, it ends the study.
    """

    name: str
    title: str
    source: Source
    lines: tuple[Line, ...]
    targets: Mapping[str, Target] = field(default_factory=lambda: {"gradient": Gradient()})
    axes: Mapping[str, tuple[Setting, ...]] = field(default_factory=lambda: {PARTICLES: (1, 2, 4, 8, 16, 32, 64)})
    x: str = PARTICLES
    panels: str | None = None
    figures: tuple[str, ...] = ()
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
        others = [axis for axis in self.axes if axis != self.x]
        if self.panels is not None and self.panels not in others:
            raise OptionError("Study()", "`panels`", expected=f"an axis other than x: {others}", got=repr(self.panels))
        if self.figures:
            _check_distinct("figures", self.figures)
        for name in self.figures:
            if name not in PLOT_NAMES:
                expected, fix = f"some of {', '.join(PLOT_NAMES)}", did_you_mean(name, PLOT_NAMES)
                raise OptionError("Study()", "`figures`: unknown figure", expected=expected, got=repr(name), fix=fix)

    @property
    def num_particles(self) -> tuple[int, ...]:
        """The grid of K, if there is one."""
        return tuple(int(size) for size in self.axes.get(PARTICLES, ()))

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, target by target and curve by curve."""
        for name, target in self.targets.items():
            for line in self.lines:
                if not _belong(line, target):
                    continue
                axes = [axis for axis in self.axes if self._concerns(axis, line, target)]
                for values in itertools.product(*(self.axes[axis] for axis in axes)):
                    yield Cell(line, name, tuple(zip(axes, values, strict=True)))

    def jobs(self) -> Mapping[str, Sequence[Cell]]:
        """Gather cells into pieces of work, each by a key of its own: the steps of one procedure are one piece."""
        found: dict[str, list[Cell]] = {}
        with_steps = {name for name, target in self.targets.items() if isinstance(target, Procedure)}
        for cell in self.cells():
            key = cell.key
            if cell.target in with_steps:
                key = replace(cell, settings=tuple(each for each in cell.settings if each[0] != STEP)).key
            found.setdefault(key, []).append(cell)
        return found

    def job(self, key: str) -> Sequence[Cell]:
        """Return the cells of one piece of work as :meth:`jobs` has them, without listing a million others for it."""
        told = key.split(" | ")
        axes = {}
        for axis, values in self.axes.items():
            axes[axis] = tuple(value for value in values if f"{axis}={value}" in told) or values
        return replace(self, axes=axes).jobs()[key]

    def source_of(self, cell: Cell) -> Source:
        """Return the source at a cell's place on the axes."""
        return self.source_at(cell.settings)

    def source_at(self, settings: Sequence[tuple[str, Setting]]) -> Source:
        """Return the source at a place on the axes."""
        changes = {name: value for name, value in settings if name in _fields_of(self.source)}
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
            "panels": self.panels,
            "figures": list(self.figures) or None,
            "axes": {axis: list(values) for axis, values in self.axes.items()},
            "source": {"kind": source_kind(self.source), **_values_of(self.source)},
            "targets": [
                {"name": name, "kind": kind_of(target), **_values_of(target)} for name, target in self.targets.items()
            ],
            "lines": [
                {
                    line.role: line.estimator,
                    **({} if line.objective is None else {"objective": line.objective}),
                    "proposal": line.proposal,
                    **line.options,
                }
                for line in self.lines
            ],
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


def _belong(line: Line, target: Target) -> bool:
    """Tell whether a line can answer a target: with an objective, an estimator, or both."""
    if isinstance(target, Procedure) and target.pairs:
        return line.objective is not None
    return line.objective is None and (line.role == "objective") is isinstance(target, GuideGradient)


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
