"""Plane geometry that tasks share: a longest step, and discs that are run into."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from latentpg.errors import ShapeError


def shortened(vectors: Float[NDArray[np.floating[Any]], "N 2"], longest: float) -> Float[NDArray[np.float64], "N 2"]:
    """Shorten what is longer than ``longest`` to it, keeping its direction; in float64.

    >>> shortened(np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 1.0).tolist()
    [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]
    """
    wide = np.asarray(vectors, dtype=np.float64)
    x, y = wide[:, 0], wide[:, 1]
    length = np.sqrt(x * x + y * y)  # column by column, so that one row and a thousand give the same bits
    return wide / np.maximum(length / longest, 1.0)[:, None]


def inside_any(
    points: Float[NDArray[np.float64], "N 2"], discs: Float[NDArray[np.float64], "D 3"]
) -> Bool[NDArray[np.bool_], " N"]:
    """Tell which points lie inside one of D discs (x, y, radius); the rim is outside.

    >>> inside_any(np.array([[0.9, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0, 1.0]])).tolist()
    [True, False]
    """
    across, along = points[:, :1] - discs[:, 0], points[:, 1:] - discs[:, 1]
    inside: NDArray[np.bool_] = across * across + along * along < discs[:, 2] ** 2
    return np.logical_or.reduce(inside, axis=1)


def gate_crossed(
    along: Float[NDArray[np.floating[Any]], " T"],
    across: Float[NDArray[np.floating[Any]], " T"],
    line: float,
    cuts: tuple[float, ...],
) -> int:
    """Return the gate in which a path is at its first step with ``along >= line``, or -1 if there is none.

    C ``cuts`` divide the line into the gates 0 to C by the coordinate ``across``.

    >>> gate_crossed(np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0, 7.0]), 1.0, (5.5, 6.5))
    1
    """
    beyond = np.flatnonzero(np.asarray(along, dtype=np.float64) >= line)
    return int(np.searchsorted(cuts, float(across[beyond[0]]))) if len(beyond) else -1


def cut_episodes(
    where: str, rows: Float[NDArray[np.floating[Any]], "M D"], lengths: Int[NDArray[np.integer[Any]], " E"]
) -> list[NDArray[np.floating[Any]]]:
    """Cut M rows, one episode after the other, into E episodes; ``where`` names the caller in the error."""
    if (lengths < 1).any() or int(lengths.sum()) != len(rows):
        raise ShapeError(
            where,
            "`lengths`",
            expected=f"[E], each at least 1, {len(rows)} in all, as there are rows",
            got=f"{lengths.tolist()[:20]}, {int(lengths.sum())} in all",
        )
    return np.split(rows, np.cumsum(lengths)[:-1])
