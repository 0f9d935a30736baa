r"""Every outcome of a random program, so that any expectation over it is a finite sum.

A latent with C values and K particles leaves :math:`C^K` outcomes. Listing them turns "is this estimator unbiased?"
into an identity between two numbers, without noise. Two ways to list them:

* :func:`tuples` and :func:`multisets` give the particle indices and their probabilities, for formulas written by hand;
* :func:`enumerate_draws` runs the *library's own code* on all outcomes at once. Every random value of this library
  passes through :func:`latentpg.programs.draw`; here each of those draws is answered by a column of the list, and the
  program runs once on as many copies of its rows as there are outcomes.

Gaussian draws are answered by Gauss-Hermite nodes, which is the same finite sum with quadrature weights for
probabilities: exact for the *discretised* law, and for the Gaussian one up to what the number of nodes allows.

What code computes on average, and what it should equal::

    sum_n  P(n).detach() * surrogate(n)      its gradient is the expected gradient
    sum_n  P(n)          * value(n)          its gradient is the gradient of the expectation

Without the ``detach`` the first is the second, and the test tests nothing; the probabilities of an :class:`Enumeration`
therefore never carry a gradient, and those of :func:`tuples` and :func:`multisets` do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from latentpg.errors import EstimatorError, OptionError, SiteError
from latentpg.numerics.quadrature import hermite_grid
from latentpg.programs import DiagNormal, drawing

MAX_OUTCOMES = 2**21
"""Outcomes times rows beyond which :func:`enumerate_draws` refuses, before memory does."""

DEFAULT_NODES = 8
"""Gauss-Hermite nodes that stand for one Gaussian dimension."""

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, eq=False)
class Tuples:
    """All ``N`` ordered choices of one value a slot, with their log-probabilities."""

    index: Int[Tensor, "K N"]
    log_prob: Float[Tensor, "N *B"]


@dataclass(frozen=True, eq=False)
class Multisets:
    """All ``N`` unordered choices of K values out of C: how often each value occurs, and in how many orders."""

    counts: Int[Tensor, "N C"]
    log_multiplicity: Float[Tensor, " N"]

    def to(self, device: torch.device) -> Multisets:
        """Return the same on another device."""
        return Multisets(self.counts.to(device), self.log_multiplicity.to(device))

    def log_prob(self, log_prob: Float[Tensor, "C *B"]) -> Float[Tensor, "N *B"]:
        r"""Return :math:`\log\frac{K!}{\prod_c n_c!}\prod_c r_c^{n_c}`, the multinomial law of K iid draws from r.

        >>> half = torch.full((2,), 0.5, dtype=torch.float64)
        >>> [round(chance, 12) for chance in multisets(2, 2).log_prob(half.log()).exp().tolist()]
        [0.25, 0.5, 0.25]
        """
        flat = self.counts.to(log_prob.dtype) @ log_prob.reshape(log_prob.shape[0], -1)
        total = flat + self.log_multiplicity.to(log_prob.dtype).unsqueeze(1)
        return total.reshape(-1, *log_prob.shape[1:])


def tuples(slots: Sequence[Float[Tensor, "C *B"]]) -> Tuples:
    r"""List all :math:`C^K` tuples of K independent slots, slot k with log-probabilities ``slots[k]``, differentiably.

    >>> coin = torch.tensor([0.25, 0.75]).log()
    >>> both = tuples([coin, coin])
    >>> both.index.tolist(), both.log_prob.exp().tolist()
    ([[0, 0, 1, 1], [0, 1, 0, 1]], [0.0625, 0.1875, 0.1875, 0.5625])
    """
    index = torch.cartesian_prod(*[torch.arange(len(slot)) for slot in slots]).reshape(-1, len(slots)).T
    log_prob = slots[0][index[0]]
    for slot, chosen in zip(slots[1:], index[1:], strict=True):
        log_prob = log_prob + slot[chosen]
    return Tuples(index, log_prob)


def multisets(num_values: int, num_particles: int) -> Multisets:
    r"""List the :math:`\binom{K+C-1}{K}` multisets of K particles of C values, for what does not look at their order.

    At C = 4 and K = 64 they are 47,905 where there are :math:`4^{64}` tuples.

    >>> multisets(2, 3).counts.tolist()
    [[0, 3], [1, 2], [2, 1], [3, 0]]
    """
    if num_values < 1 or num_particles < 1:
        raise OptionError(
            "multisets()", "sizes", expected="at least one value and particle", got=f"{num_values}, {num_particles}"
        )
    # a multiset is a placing of C - 1 bars among K stars
    places = num_particles + num_values - 1
    placings = list(itertools.combinations(range(places), num_values - 1))
    bars = np.array(placings, dtype=np.int64).reshape(len(placings), num_values - 1)
    ends = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), places)], 1)
    counts = torch.from_numpy(np.diff(ends, axis=1) - 1)
    log_multiplicity = math.lgamma(num_particles + 1) - torch.lgamma(counts.double() + 1).sum(-1)
    return Multisets(counts, log_multiplicity)


@dataclass(frozen=True, eq=False)
class Enumeration(Generic[Outcome]):
    """A program's result on every outcome; ``row`` says which of the original rows each enumerated one is a copy of.

    ``log_prob`` is the log-probability of an outcome given its row, without a gradient.
    """

    result: Outcome
    row: Int[Tensor, " N"]
    log_prob: Float[Tensor, " N"]
    num_rows: int

    def expectation(self, values: Float[Tensor, "N *D"]) -> Float[Tensor, "B *D"]:
        r"""Return :math:`\sum_n P(n)\,v_n` for each original row, the probabilities constant."""
        chance = self.log_prob.exp().reshape(-1, *[1] * (values.ndim - 1))
        weighted = chance * values
        return weighted.new_zeros(self.num_rows, *values.shape[1:]).index_add(0, self.row, weighted)


def enumerate_draws(
    program: Callable[[Int[Tensor, " N"]], Outcome],
    *,
    num_rows: int = 1,
    num_nodes: int = DEFAULT_NODES,
    max_outcomes: int = MAX_OUTCOMES,
) -> Enumeration[Outcome]:
    """Run a program on every outcome of its draws at once.

    ``program`` is handed an index ``[N]`` into the rows ``0..num_rows - 1`` and works on those rows (``obs[index]``,
    and so on). It is first run on each row once, to see how many values it draws, and of how many sizes; then on as
    many copies of the rows as there are outcomes. So the number and the sizes of its draws may not depend on what was
    drawn (:func:`latentpg.oracles.replay.replay` allows it), and rows are the last batch dimension of each draw, as
    everywhere in this library. Choices of probability zero are run too, with that probability.

    The probability that two coins agree:

    >>> from latentpg.programs import Categorical, draw
    >>> def agree(index: Tensor) -> Tensor:
    ...     coin = Categorical(torch.tensor([1.0, 3.0], dtype=torch.float64).log())
    ...     first, second = draw("coins", coin, (2, len(index)))
    ...     return (first == second).double()
    >>> every = enumerate_draws(agree)
    >>> every.expectation(every.result)
    tensor([0.6250], dtype=torch.float64)
    """
    dry = _DryRun(num_rows, num_nodes)
    with drawing(dry):
        program(torch.arange(num_rows))
    count = math.prod(dry.sizes)
    if count * num_rows > max_outcomes:
        raise OptionError(
            "enumerate_draws()",
            "too many outcomes",
            expected=f"outcomes x rows <= max_outcomes={max_outcomes}",
            got=f"{count} x {num_rows}, from draws of {dry.sizes} values",
            fix="fewer particles, values or nodes; multisets() where the order of particles does not matter",
        )
    columns = [torch.arange(size) for size in dry.sizes]
    choices = torch.cartesian_prod(*columns) if columns else torch.zeros(1, 0, dtype=torch.int64)
    choices = choices.reshape(count, len(columns))
    replies = _Replies(choices.repeat_interleave(num_rows, 0), dry, num_nodes)
    row = torch.arange(num_rows).repeat(count)
    with drawing(replies):
        result = program(row)
    if replies.used != len(dry.sizes):
        raise _changing_structure(f"{replies.used} values", f"{len(dry.sizes)} values")
    every = Enumeration(result, row, replies.log_prob, num_rows)
    total = every.expectation(torch.ones_like(replies.log_prob))
    assert bool(((total - 1).abs() < rounding(replies.dtype)).all()), f"probabilities sum to {total.tolist()}, not to 1"
    return every


def rounding(dtype: torch.dtype) -> float:
    """Say how far a sum of probabilities that were computed in this type may be from 1.

    >>> rounding(torch.float64) < 1e-7
    True
    """
    return math.sqrt(torch.finfo(dtype).eps)


def num_atoms(name: str, fn: Distribution, num_nodes: int) -> int:
    """Count the values that stand for one draw: its support, or a grid of Gauss-Hermite nodes."""
    if (values := _finite_support(fn)) is not None:
        return len(values)
    if _is_gaussian(fn):
        return int(num_nodes ** math.prod(fn.event_shape))
    raise SiteError(
        "enumeration",
        f"draw `{name}` has neither a finite support nor Gauss-Hermite nodes",
        expected="a discrete distribution of finite support, Normal or DiagNormal",
        got=type(fn).__name__,
        fix="test on a policy with discrete or Gaussian latents and actions",
    )


def take_atoms(
    fn: Distribution, choice: Int[Tensor, "*KB"], num_nodes: int, *, pathwise: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Return the chosen values ``[*KB, *event]`` of a draw of shape ``[*KB]``, and their log-probabilities ``[*KB]``.

    Nodes are :math:`\mu + \sigma x`, differentiable when ``pathwise``; probabilities are constants.
    """
    if (values := _finite_support(fn)) is not None:
        value = values.to(choice.device)[choice]
        return value, _law(fn).log_prob(value).detach()
    nodes, log_weight = hermite_grid(num_nodes, math.prod(fn.event_shape))
    mean, scale = fn.mean, fn.variance.sqrt()
    standard = nodes.to(mean)[choice].reshape(*choice.shape, *fn.event_shape)
    value = mean + scale * standard
    return value if pathwise else value.detach(), log_weight.to(mean)[choice]


class _DryRun:
    """Answers each draw with its first value, and writes down how many numbers were drawn and of how many values."""

    def __init__(self, rows: int, num_nodes: int) -> None:
        self.rows, self.num_nodes = rows, num_nodes
        self.sizes: list[int] = []
        self.draws: list[tuple[str, int, int]] = []

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        shape = sample_shape + fn.batch_shape
        numbers, remainder = divmod(shape.numel(), self.rows)
        if remainder:
            raise _changing_structure(f"draw `{name}` of shape {list(shape)}", f"a multiple of {self.rows} rows")
        size = num_atoms(name, fn, self.num_nodes)
        self.draws.append((name, numbers, size))
        self.sizes += [size] * numbers
        return take_atoms(fn, torch.zeros(shape, dtype=torch.int64), self.num_nodes, pathwise=pathwise)[0]


class _Replies:
    """Answers each draw with its columns of the list of choices, and adds up the log-probability of each row."""

    def __init__(self, choices: Tensor, dry: _DryRun, num_nodes: int) -> None:
        self.choices, self.expected, self.num_nodes = choices, iter(dry.draws), num_nodes
        self.used = 0
        self.log_prob = torch.zeros(len(choices), dtype=torch.float64)
        self.dtype = torch.float64  # the coarsest in which a probability came

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        shape, rows = sample_shape + fn.batch_shape, len(self.choices)
        seen = (name, shape.numel() / rows, num_atoms(name, fn, self.num_nodes))
        expected = next(self.expected, None)
        if seen != expected:
            raise _changing_structure(str(seen), str(expected))
        numbers = int(seen[1])
        columns = self.choices[:, self.used : self.used + numbers]
        self.used += numbers
        # rows are the innermost dimension of a draw, whether it is [K, N] or [K * N]
        value, log_prob = take_atoms(fn, columns.T.reshape(shape), self.num_nodes, pathwise=pathwise)
        self.dtype = min(self.dtype, log_prob.dtype, key=lambda dtype: dtype.itemsize)
        self.log_prob = self.log_prob + log_prob.double().expand(shape).reshape(numbers, rows).sum(0)
        return value


def _finite_support(fn: Distribution) -> Tensor | None:
    """List the values ``[C, *event]`` of one number, those of independent coordinates jointly."""
    fn = _law(fn)
    if fn.has_enumerate_support:
        values = fn.enumerate_support(expand=False)
        return values.reshape(len(values), *fn.event_shape)
    if not isinstance(fn, Independent):
        return None
    inner = _finite_support(fn.base_dist)
    if inner is None:
        return None
    outer = len(fn.base_dist.batch_shape) - fn.reinterpreted_batch_ndims
    coordinates = fn.base_dist.batch_shape[outer:].numel()
    grid = torch.cartesian_prod(*[torch.arange(len(inner))] * coordinates).reshape(-1, coordinates)
    return inner[grid].reshape(len(grid), *fn.event_shape)


def _law(fn: Distribution) -> Distribution:
    """Return what values are drawn from: masks change what is scored, not what is drawn."""
    if isinstance(fn, MaskedDistribution):
        return _law(fn.base_dist)
    if isinstance(fn, Independent):
        return Independent(_law(fn.base_dist), fn.reinterpreted_batch_ndims, validate_args=False)
    return fn


def _is_gaussian(fn: Distribution) -> bool:
    fn = _law(fn)
    while isinstance(fn, Independent):
        base: Distribution = fn.base_dist
        fn = base
    return isinstance(fn, DiagNormal | Normal)


def _changing_structure(got: str, expected: str) -> EstimatorError:
    return EstimatorError(
        "enumerate_draws()",
        "the draws of the program are not the same on every outcome",
        expected=expected,
        got=got,
        likely="a draw whose number or size depends on an earlier value, or one that is shared by all rows",
        fix="latentpg.oracles.replay.replay, which runs one outcome at a time",
    )
