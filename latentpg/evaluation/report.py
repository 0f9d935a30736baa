r"""A held-out log-likelihood as a report: what kind of number it is, its units, and its intervals.

**Units.** A policy acts in coordinates of its own, :math:`a = c + h \odot a'`, and its density is one of :math:`a'`.
The density of the data is :math:`\pi(a|s) = \pi'(a'|s)/\prod_i |h_i|`: ``action_scale`` is h, and
:math:`-\sum_i\log|h_i|` is added for every executed step. Left out, two policies with different normalisers cannot be
compared.

Rows come in episodes, and every interval is between episodes (:mod:`latentpg.evaluation.clustered`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError, SpaceError
from latentpg.evaluation.clustered import check_clusters, clustered_interval
from latentpg.numerics.statistics import LEVEL, Interval
from latentpg.policies.spaces import _affine  # the one place that says how a policy's coordinates are scaled
from latentpg.programs import Observations, Span, num_rows

EXACT = "exact"
"""Kind of a likelihood that is the policy's own, without noise."""

LOWER_BOUND = "lower bound"
"""Kind of a likelihood that is at most the policy's own in expectation."""


@dataclass(frozen=True)
class Likelihood:
    """What was found: log-likelihoods ``[B]`` in nats, how they were found, and the means with their intervals.

    ``kind`` is :data:`EXACT` or :data:`LOWER_BOUND`; ``method`` says it in words. ``log_prob`` has the Jacobian in it.
    ``dimensions [B]`` counts the numbers that were scored in a row: executed steps times the action's entries.
    ``per_row`` is the mean over rows; ``per_dimension`` the sum of all over the number of dimensions, for comparisons
    between policies whose rows are of different length.
    """

    kind: str
    method: str
    log_prob: Float[Tensor, " B"]
    dimensions: Int[Tensor, " B"]
    cluster: Int[Tensor, " B"]
    per_row: Interval
    per_dimension: Interval

    def lines(self) -> list[str]:
        """Say it in words, one line a number."""
        sign, episodes = ("" if self.kind == EXACT else ">= "), len(self.cluster.unique())
        return [
            f"held-out log-likelihood, {self.kind} ({self.method}), {len(self.log_prob)} rows of {episodes} episodes",
            f"  a row       {sign}{as_text(self.per_row)} nats, of {int(self.dimensions.sum())} dimensions in all",
            f"  a dimension {sign}{as_text(self.per_dimension)} nats",
        ]


def report_likelihood(
    log_prob: Float[Tensor, " B"],
    obs: Observations,
    action: Tensor,
    cluster: Int[Tensor, " B"],
    *,
    kind: str,
    method: str,
    action_scale: Float[Tensor, "*A"] | None = None,
    level: float = LEVEL,
) -> Likelihood:
    """Turn log-likelihoods in policy coordinates, however they were found, into a report in the data's units."""
    where = "report_likelihood()"
    if kind not in (EXACT, LOWER_BOUND):
        raise OptionError(where, "`kind`", expected=f'"{EXACT}" or "{LOWER_BOUND}"', got=repr(kind))
    rows = num_rows(obs)
    cluster = check_clusters(where, cluster, rows)
    if tuple(log_prob.shape) != (rows,):
        raise ShapeError(where, "`log_prob`", expected=f"[B={rows}]", got=str(list(log_prob.shape)))
    steps, event = _steps(obs), action.shape[2:] if isinstance(obs, Span) else action.shape[1:]
    dimensions = steps * math.prod(event)
    total = log_prob.double()
    if action_scale is not None:
        total = total - steps * _log_volume(where, action, event, action_scale)
    return Likelihood(
        kind,
        method,
        total,
        dimensions,
        cluster,
        clustered_interval(total, cluster, level=level),
        clustered_interval(total, cluster, size=dimensions.double(), level=level),
    )


def action_scale_of(space: spaces.Space[Any]) -> Float[Tensor, "*A"] | None:
    """Return how many units of the data one unit of a policy's coordinates is, by entry; None for discrete actions.

    >>> action_scale_of(spaces.Box(-0.02, 0.02, (2,)))
    tensor([0.0200, 0.0200], dtype=torch.float64)
    """
    if isinstance(space, spaces.Box):
        return torch.as_tensor(_affine(space)[1], dtype=torch.float64)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return None
    raise SpaceError("action_scale_of()", "no such action space", expected="Box or a discrete one", got=repr(space))


def _steps(obs: Observations) -> Int[Tensor, " B"]:
    if isinstance(obs, Span):
        return obs.mask.sum(1)
    return torch.ones(num_rows(obs), dtype=torch.int64, device=(obs if isinstance(obs, Tensor) else obs[0]).device)


def _log_volume(where: str, action: Tensor, event: torch.Size, scale: Tensor) -> float:
    r"""Return :math:`\sum_i\log|h_i|` of one step."""
    if not action.is_floating_point():
        raise OptionError(
            where, "`action_scale` of discrete actions", expected="None: a probability has no unit", got="a scale"
        )
    if tuple(scale.shape) != tuple(event):
        raise ShapeError(
            where,
            "`action_scale`",
            expected=f"one number an entry of the action: {list(event)}",
            got=str(list(scale.shape)),
            fix="action_scale_of(space), or the normaliser's standard deviations",
        )
    if not bool((scale.isfinite() & (scale > 0)).all()):
        raise OptionError(where, "`action_scale`", expected="positive numbers", got=str(scale.tolist()))
    return float(scale.double().log().sum())


def as_text(interval: Interval) -> str:
    """Write a value with its interval, three digits each."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
