"""Fit a policy to demonstrations from beginning to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from latentpg.imitation.cloner import Cloner
from latentpg.imitation.objectives import Objective
from latentpg.imitation.options import FitOptions
from latentpg.imitation.per_datum import PerDatum
from latentpg.imitation.rows import FitRows
from latentpg.programs import LatentPolicy


@dataclass(frozen=True)
class Fitted:
    """What a fit came to: a row of metrics an epoch, and the measurement whose parameters the policy has now.

    ``best`` is in nats a row, of what was held out if anything was. ``state`` is what :class:`Cloner` goes on from.
    """

    history: tuple[Mapping[str, float], ...]
    best: float
    best_epoch: int
    stopped_early: bool
    state: Mapping[str, Tensor]


def fit(
    policy: LatentPolicy,
    rows: FitRows,
    *,
    objective: Objective,
    options: FitOptions = FitOptions(),  # noqa: B008 (a frozen choice without state)
    seed: int,
    validation: FitRows | None = None,
    per_datum: PerDatum | None = None,
    saved: Mapping[str, Tensor] | None = None,
    show: Callable[[Mapping[str, float]], None] | None = None,
) -> Fitted:
    """Fit a policy to rows, in place, and leave it with the parameters that were best on ``validation``.

    Without ``validation`` the best is by the rows themselves, and nothing guards against overfitting. With ``saved``, a
    :meth:`Cloner.state`, the fit goes on from there, bit for bit. ``show`` sees each epoch's row of metrics. A loss or
    gradient that is not finite is a :class:`~latentpg.learners.LearningFault`, with the parameters as they were before
    that step.

    >>> import torch
    >>> from latentpg.imitation import ExpectationMaximization, GaussianMixture, point_rows
    >>> points = torch.tensor([[-1.0], [-1.2], [1.0], [1.4]], dtype=torch.float64)
    >>> mixture = GaussianMixture(torch.tensor([[-0.5], [0.5]], dtype=torch.float64), floor=0.1)
    >>> fitted = fit(mixture, point_rows(points), objective=ExpectationMaximization(), seed=0)
    >>> round(fitted.best, 3), fitted.history[0]["train/log_prob"] < fitted.best
    (-0.156, True)
    """
    cloner = Cloner(
        policy, rows, objective=objective, options=options, seed=seed, validation=validation, per_datum=per_datum
    )
    if saved is not None:
        cloner.restore(saved)
    history = []
    while not cloner.finished:
        history.append(cloner.update())
        if show is not None:
            show(history[-1])
    state = cloner.state()
    cloner.load_best()
    best = cloner.best if cloner.best_policy else -math.inf
    return Fitted(tuple(history), best, cloner.best_epoch, cloner.stopped_early, state)
