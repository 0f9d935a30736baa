"""Every path of a random program, one run a path: for programs whose draws depend on what was drawn before.

:func:`replay` runs the program again and again, depth first. Each run follows a prefix of choices and takes the first
possible value afterwards; the next run changes the last choice that has another value left. Choices of probability zero
are not taken, so that a support with holes is no trouble. Where the draws are the same on every outcome,
:func:`latentpg.oracles.enumeration.enumerate_draws` does all of it in one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from latentpg.errors import OptionError
from latentpg.oracles.enumeration import DEFAULT_NODES, num_atoms, rounding, take_atoms
from latentpg.programs import drawing

MAX_PATHS = 100_000
"""Runs beyond which :func:`replay` gives up."""

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, eq=False)
class Path(Generic[Outcome]):
    """One path of the program: its probability in logs, and what the program returned on it."""

    log_prob: float
    result: Outcome

    @property
    def prob(self) -> float:
        """Probability of the path."""
        return math.exp(self.log_prob)


def replay(
    program: Callable[[], Outcome], *, num_nodes: int = DEFAULT_NODES, max_paths: int = MAX_PATHS
) -> list[Path[Outcome]]:
    """Return every path of a program that draws through :func:`latentpg.programs.draw`.

    Tossing a coin until it shows heads, three times at most:

    >>> from latentpg.programs import Categorical, draw
    >>> def tosses() -> int:
    ...     coin = Categorical(torch.zeros(2, dtype=torch.float64))
    ...     return next((n for n in (1, 2, 3) if draw("coin", coin).item() == 1), 4)
    >>> [(path.result, round(path.prob, 3)) for path in replay(tosses)]
    [(4, 0.125), (3, 0.125), (2, 0.25), (1, 0.5)]
    """
    paths: list[Path[Outcome]] = []
    prefix: list[int] = []
    while True:
        if len(paths) == max_paths:
            raise OptionError(
                "replay()",
                "too many paths",
                expected=f"at most max_paths={max_paths}",
                got="more",
                fix="a smaller program, or enumerate_draws() where its draws do not depend on each other's values",
            )
        source = _Prefix(prefix, num_nodes)
        with drawing(source):
            result = program()
        paths.append(Path(source.log_prob, result))
        prefix = _successor(source.choices)
        if not prefix:
            break
    total = math.fsum(path.prob for path in paths)
    assert abs(total - 1) < rounding(torch.float32), f"probabilities of all paths sum to {total}, not 1"
    return paths


class _Prefix:
    """Answers draws from a list of choices, and with the first possible value once the list has ended."""

    def __init__(self, prefix: list[int], num_nodes: int) -> None:
        self.prefix, self.num_nodes = prefix, num_nodes
        self.choices: list[tuple[int, int]] = []  # which of the possible values was taken, and how many there were
        self.log_prob = 0.0

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        shape = sample_shape + fn.batch_shape
        size = num_atoms(name, fn, self.num_nodes)
        scores = [take_atoms(fn, torch.full(shape, c), self.num_nodes)[1].expand(shape).flatten() for c in range(size)]
        table = torch.stack(scores, -1)  # [numbers, size]
        taken = torch.tensor([self._choose(row) for row in table], dtype=torch.int64)
        return take_atoms(fn, taken.reshape(shape), self.num_nodes, pathwise=pathwise)[0]

    def _choose(self, log_prob: Tensor) -> int:
        possible = (log_prob > -torch.inf).nonzero().flatten().tolist()
        position = self.prefix[len(self.choices)] if len(self.choices) < len(self.prefix) else 0
        self.choices.append((position, len(possible)))
        chosen = int(possible[position])
        self.log_prob += float(log_prob[chosen])
        return chosen


def _successor(choices: list[tuple[int, int]]) -> list[int]:
    """Move the last choice that has another value left; empty when every path has been run."""
    positions = list(choices)
    while positions and positions[-1][0] == positions[-1][1] - 1:
        positions.pop()
    if not positions:
        return []
    return [position for position, _ in positions[:-1]] + [positions[-1][0] + 1]
