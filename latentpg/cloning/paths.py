"""Paths of episodes in the plane: of demonstrations and of roll-outs, with the way that each took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentpg.cloning.outcomes import Outcome
from latentpg.cloning.places import Place
from latentpg.cloning.preparing import Prepared
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import Span, act

MOST_PATHS = 240
"""Roll-outs that are drawn, at most."""

MOST_ACTIONS = 1500
"""Actions that are drawn, at most."""


@dataclass(frozen=True)
class Paths:
    """Episodes as points ``[T, 2]``, which way each took (-1 where it is not known), and whether it succeeded."""

    paths: Sequence[NDArray[np.floating[Any]]]
    mode: Sequence[int]
    succeeded: Sequence[bool]

    def rows(self, whose: str) -> list[dict[str, Any]]:
        """Return every point as a row of a table."""
        return [
            {"whose": whose, "episode": e, "step": t, "x": float(x), "y": float(y), "mode": mode, "succeeded": done}
            for e, (path, mode, done) in enumerate(zip(self.paths, self.mode, self.succeeded, strict=True))
            for t, (x, y) in enumerate(path)
        ]


def demonstrated_paths(built: Prepared, place: Place | None) -> Paths:
    """Return the paths of what was learnt from."""
    train = built.split.train
    cut = _cut(train.obs.numpy(), train.lengths.numpy(), place)
    if train.mode is not None:
        modes = train.mode.tolist()
    elif place is not None:
        modes = place.modes(train.obs.numpy(), train.lengths.numpy()).tolist()
    else:
        modes = [-1] * len(cut)
    return Paths(cut, modes, [True] * len(cut))


def played_paths(outcome: Outcome, place: Place | None) -> Paths:
    """Return the paths of the first roll-outs."""
    played = outcome.played
    cut = _cut(played.obs.numpy(), played.lengths.numpy(), place)[:MOST_PATHS]
    modes = [-1] * len(cut) if outcome.modes is None else outcome.modes[: len(cut)].tolist()
    done = [True] * len(cut) if place is None else (played.returns > 0)[: len(cut)].tolist()
    return Paths(cut, modes, done)


def actions_of(built: Prepared) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return actions of the test part and the policy's at the same observations, ``[M, A]`` in policy coordinates."""
    rows = built.test.take(slice(0, MOST_ACTIONS))
    with seeded(stream_seed(built.config.run.seed, "drawn actions")), torch.no_grad():
        ours = act(built.policy, rows.obs).action
    theirs = rows.action
    if isinstance(rows.obs, Span):
        theirs, ours = theirs[rows.obs.mask], ours[rows.obs.mask]
    return _flat(theirs[:MOST_ACTIONS]), _flat(ours[:MOST_ACTIONS])


def _flat(action: Tensor) -> NDArray[np.float64]:
    return action.reshape(len(action), -1).double().cpu().numpy()


def _cut(
    obs: NDArray[np.floating[Any]], lengths: NDArray[np.integer[Any]], place: Place | None
) -> list[NDArray[np.floating[Any]]]:
    """Cut observations into episodes, and take two entries of each; of one entry alone its course over the steps."""
    pieces = np.split(obs, np.cumsum(lengths)[:-1])
    if obs.shape[1] == 1:
        return [np.stack([np.arange(len(piece)), piece[:, 0]], 1) for piece in pieces]
    first, second = (0, 1) if place is None else place.position
    return [piece[:, [first, second]] for piece in pieces]
