r"""Intervals for what is measured on rows that come in episodes.

Rows of one episode are alike, so that N rows say less than N independent ones would: an interval that takes them for
independent is too short, by a factor that grows with the length of an episode. The unit that was drawn independently
is the episode, and the spread is judged between episodes.

Every function takes ``value [B]`` and ``cluster [B]``, the number of the episode that a row belongs to. With
``size [B]`` the estimand is a ratio, :math:`\sum_b v_b / \sum_b n_b`: log-likelihood per dimension, for instance, where
episodes differ in length. Without it each row counts once and the ratio is the mean over rows.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.statistics import LEVEL, Interval, critical_value


def clustered_interval(
    value: Float[Tensor, " B"],
    cluster: Int[Tensor, " B"],
    *,
    size: Float[Tensor, " B"] | None = None,
    level: float = LEVEL,
) -> Interval:
    r"""Estimate :math:`r = \sum_b v_b / \sum_b n_b` with a cluster-robust Student interval of G - 1 degrees.

    With the totals :math:`V_g, N_g` of G episodes,

    .. math:: \widehat{\operatorname{Var}}\,\hat r
       = \frac{G}{G-1}\,\frac{\sum_g (V_g - \hat r N_g)^2}{(\sum_g N_g)^2},

    the linearised variance of a ratio (W. G. Cochran, "Sampling techniques", 1977, section 6.4), which for
    :math:`n_b = 1` is the cluster-robust variance of a mean (K.-Y. Liang and S. L. Zeger, "Longitudinal data analysis
    using generalized linear models", 1986). One episode says nothing of the spread: its interval is the whole line.

    >>> clustered_interval(torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1])).value
    2.0
    """
    totals, sizes = _totals("clustered_interval()", value, cluster, size)
    ratio = float(totals.sum() / sizes.sum())
    groups = len(totals)
    if groups == 1:
        return Interval(ratio, -math.inf, math.inf)
    reach = student_quantile(groups - 1, level=level) * float(_standard_error(totals, sizes))
    return Interval(ratio, ratio - reach, ratio + reach)


def cluster_bootstrap_interval(
    value: Float[Tensor, " B"],
    cluster: Int[Tensor, " B"],
    *,
    size: Float[Tensor, " B"] | None = None,
    level: float = LEVEL,
    num_resamples: int = 4000,
) -> Interval:
    r"""Estimate the same ratio with a studentised bootstrap over episodes, for totals that are far from normal.

    Whole episodes are drawn with replacement; the quantiles of :math:`t^* = (\hat r^* - \hat r)/\hat\sigma^*` stand in
    for Student's, so that the interval leans to the side of the long tail (B. Efron, "Nonparametric standard errors and
    confidence intervals", 1981). Resamples without any spread are left out. It needs five episodes, below which the
    resamples are too few to have quantiles; draws come from the ambient stream.
    """
    where = "cluster_bootstrap_interval()"
    if num_resamples < 100:
        raise OptionError(
            where, "`num_resamples`", expected="at least 100", got=repr(num_resamples), fix="num_resamples=4000"
        )
    if not 0.0 < level < 1.0:
        raise OptionError(where, "`level`", expected="a number in (0, 1)", got=repr(level), fix="level=0.95")
    totals, sizes = _totals(where, value, cluster, size)
    groups = len(totals)
    if groups < 5:
        raise ShapeError(
            where,
            "too few episodes",
            expected="at least 5 different values in `cluster`",
            got=str(groups),
            fix="clustered_interval(), which is exact for normal totals at any number",
        )
    ratio, error = totals.sum() / sizes.sum(), _standard_error(totals, sizes)
    if not float(error) > 0:
        return Interval(float(ratio), float(ratio), float(ratio))
    index = torch.randint(groups, (num_resamples, groups), device=totals.device)
    drawn, weights = totals[index], sizes[index]
    spread = _standard_error(drawn, weights)
    kept = spread > 0
    t = (drawn.sum(-1) / weights.sum(-1) - ratio)[kept] / spread[kept]
    low, high = t.quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=t.dtype, device=t.device)).tolist()
    # the upper quantile of t* sets the lower end
    return Interval(float(ratio), float(ratio - max(high, 0.0) * error), float(ratio - min(low, 0.0) * error))


def student_quantile(degrees: int, *, level: float = LEVEL) -> float:
    r"""Return the two-sided Student quantile for any number of degrees from 1 on.

    Closed forms at one and two degrees, :math:`\tan(\pi\ell/2)` and :math:`\ell\sqrt{2/(1-\ell^2)}`, where the
    expansion of :func:`~latentpg.numerics.statistics.critical_value` is poor; that expansion from three on.

    >>> round(student_quantile(1), 3), round(student_quantile(2), 3)
    (12.706, 4.303)
    """
    expansion = critical_value(max(degrees, 3), level=level)
    if degrees == 1:
        return math.tan(math.pi * level / 2)
    if degrees == 2:
        return level * math.sqrt(2 / (1 - level**2))
    return expansion


def check_clusters(where: str, cluster: Tensor, rows: int) -> Int[Tensor, " B"]:
    """Refuse episode numbers that are not one integer a row; return them as int64."""
    if tuple(cluster.shape) != (rows,) or cluster.is_floating_point() or cluster.dtype == torch.bool:
        raise ShapeError(
            where,
            "the episode numbers",
            expected=f"one integer a row: [B={rows}]",
            got=f"{list(cluster.shape)} of {cluster.dtype}",
            fix="the index of the episode that each row was cut from",
        )
    return cluster.long()


def _totals(where: str, value: Tensor, cluster: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add up values and sizes within each episode, in float64."""
    if value.ndim != 1 or len(value) == 0:
        raise ShapeError(where, "`value`", expected="[B] with B >= 1", got=str(list(value.shape)))
    cluster = check_clusters(where, cluster, len(value))
    if not bool(value.isfinite().all()):
        row = int((~value.isfinite()).nonzero()[0])
        raise OptionError(
            where,
            "`value` is not finite",
            expected="finite numbers",
            got=f"{float(value[row])} in row {row}",
            likely="a row that the policy gives no density, or a NaN in the data",
            fix="report such rows apart: no mean of them exists",
        )
    if size is None:
        size = torch.ones_like(value)
    if size.shape != value.shape or not bool((size > 0).all()):
        raise ShapeError(
            where,
            "`size`",
            expected=f"a positive number a row: [B={len(value)}]",
            got=f"{list(size.shape)}, least {float(size.min()) if size.numel() else 'none'}",
        )
    names, index = cluster.unique(return_inverse=True)
    zeros = torch.zeros(len(names), dtype=torch.float64, device=value.device)
    index = index.to(value.device)
    return zeros.index_add(0, index, value.double()), zeros.index_add(0, index, size.double())


def _standard_error(totals: Float[Tensor, "*R G"], sizes: Float[Tensor, "*R G"]) -> Float[Tensor, "*R"]:
    groups, count = totals.shape[-1], sizes.sum(-1)
    rest = totals - (totals.sum(-1) / count).unsqueeze(-1) * sizes
    return (groups / (groups - 1) * rest.square().sum(-1)).sqrt() / count
