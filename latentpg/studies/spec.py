"""What a study is: a source of rows, lines of estimators over a grid of K, and how often each is repeated."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import ESTIMATORS, Estimator, make_estimator
from latentpg.numerics.statistics import MIN_REPLICATES
from latentpg.programs import LatentPolicy, Latents


@dataclass(frozen=True)
class Problem:
    """What a source builds: a policy, M rows, the latents recorded with them, and facts worth reporting about both."""

    policy: LatentPolicy
    obs: Tensor
    action: Tensor
    latents: Latents
    facts: Mapping[str, float | int | str] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Where a study's rows come from; its ``repr`` and its fields are its configuration."""

    def build(self, seed: int) -> Problem:
        """Build the policy and the rows, the same ones for the same seed."""
        ...

    def describe(self) -> str:
        """Say in a few words what the rows are, for captions."""
        ...


@dataclass(frozen=True)
class Line:
    """One curve of a figure: an estimator by its registered name, its proposal if it takes one, and other options.

    >>> Line("conditional-is", "guide").label
    'conditional-is, guide'
    """

    estimator: str
    proposal: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name for legends and tables."""
        return self.estimator if self.proposal is None else f"{self.estimator}, {self.proposal}"


@dataclass(frozen=True)
class Cell:
    """One point of a curve. ``num_particles`` is None for an estimator that takes none."""

    line: Line
    num_particles: int | None

    @property
    def key(self) -> str:
        """A name that no other cell of the study has; the cell's random stream hangs on it.

        >>> Cell(Line("posterior-is", "prior"), 8).key
        'posterior-is, prior, K=8'
        """
        return self.line.label if self.num_particles is None else f"{self.line.label}, K={self.num_particles}"

    def build(self) -> Estimator:
        """Make the estimator.

        One with a second set of particles (:class:`~latentpg.estimators.SplitIS`) gets K in both.
        """
        options = dict(self.line.options)
        if self.line.proposal is not None:
            options["proposal"] = self.line.proposal
        if self.num_particles is not None:
            options["num_particles"] = self.num_particles
            if "num_value_particles" in _options_of(self.line.estimator):
                options.setdefault("num_value_particles", self.num_particles)
        return make_estimator(self.line.estimator, options)


@dataclass(frozen=True)
class Study:
    """A grid of experiments. Every line that takes particles is run at every K of ``num_particles``."""

    name: str
    title: str
    source: Source
    lines: tuple[Line, ...]
    num_particles: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    num_replicates: int = 200
    num_timings: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers and that no two lines share a name."""
        _check("num_replicates", self.num_replicates, MIN_REPLICATES)
        _check("num_timings", self.num_timings, MIN_REPLICATES)
        _check("seed", self.seed, 0)
        if not self.num_particles or len(set(self.num_particles)) != len(self.num_particles):
            raise OptionError(
                "Study()", "`num_particles`", expected="one or more distinct K", got=str(list(self.num_particles))
            )
        for size in self.num_particles:
            _check("num_particles", size, 1)
        labels = [line.label for line in self.lines]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice or not labels:
            raise OptionError(
                "Study()", "`lines`", expected="one or more of distinct names", got=", ".join(twice) or "none"
            )

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, curve by curve."""
        for line in self.lines:
            takes_particles = "num_particles" in _options_of(line.estimator)
            yield from (Cell(line, size) for size in (self.num_particles if takes_particles else (None,)))

    def config(self) -> dict[str, Any]:
        """Return the resolved configuration, as a file can hold it."""
        lines = [{"estimator": line.estimator, "proposal": line.proposal, **line.options} for line in self.lines]
        return {
            "title": self.title,
            "seed": self.seed,
            "num_replicates": self.num_replicates,
            "num_timings": self.num_timings,
            "num_particles": list(self.num_particles),
            "source": {"kind": type(self.source).__name__, **asdict(self.source)},  # type: ignore[call-overload]
            "lines": lines,
        }


def stream_seed(seed: int, name: str) -> int:
    """Derive the seed of a named random stream, whatever the order in which streams are asked for.

    >>> stream_seed(0, "a") == stream_seed(0, "a") != stream_seed(0, "b")
    True
    """
    child = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(name.encode()), len(name)))
    return int(child.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _options_of(estimator: str) -> Mapping[str, Any]:
    if estimator not in ESTIMATORS:
        make_estimator(estimator)  # raises, with suggestions
    return inspect.signature(ESTIMATORS[estimator]).parameters


def _check(name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise OptionError("Study()", f"`{name}`", expected=f"an integer >= {minimum}", got=repr(value))
