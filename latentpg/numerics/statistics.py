r"""Confidence intervals of what replicates measure: one function a quantity, each with an interval of its own.

``sample [R, P]`` holds R independent replicates of a vector, a gradient for the most part. An interval is meant to
cover the true value in ``level`` of all repetitions of the experiment, also where the true value is zero, which is
where the usual recipes fail. All sums are done in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError

LEVEL = 0.95
"""Confidence level of every interval unless another is asked for."""

MIN_REPLICATES = 4
"""Fewer replicates than this leave nothing to judge a spread by."""


@dataclass(frozen=True)
class Interval:
    """A point estimate between the ends of its confidence interval, in the units of what was measured."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the order, up to rounding; NaN is let through, so that a failure stays visible."""
        assert not (self.low > self.high), (self.low, self.high)

    def scaled(self, factor: float) -> Interval:
        """Change the units by a positive factor.

        >>> Interval(1.0, 0.5, 2.0).scaled(10.0)
        Interval(value=10.0, low=5.0, high=20.0)
        """
        return Interval(self.value * factor, self.low * factor, self.high * factor)


def critical_value(degrees: int, *, level: float = LEVEL) -> float:
    r"""Return the two-sided Student t quantile, by the expansion in 1 / degrees about the normal one.

    Good to 1 % from 4 degrees of freedom on (Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964,
    26.7.5).

    >>> round(critical_value(10), 2), round(critical_value(1000), 2)
    (2.23, 1.96)
    """
    if not 0.0 < level < 1.0:
        raise OptionError(
            "critical_value()", "`level`", expected="a number in (0, 1)", got=repr(level), fix="level=0.95"
        )
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def mean_interval(values: Float[Tensor, " R"], *, level: float = LEVEL) -> Interval:
    r"""Estimate :math:`\mathbb E\,x` by the mean, with Student's interval.

    >>> mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0])).value
    2.5
    """
    x = _checked("mean_interval()", values)
    mean, error = float(x.mean()), _standard_error(x)
    reach = critical_value(len(x) - 1, level=level) * error
    return Interval(mean, mean - reach, mean + reach)


def positive_mean_interval(values: Float[Tensor, " R"], *, level: float = LEVEL) -> Interval:
    r"""Estimate the mean of a quantity that is never negative, with an interval that is long towards large values.

    A spread is judged better on a log scale, where its estimate is nearer to normal, and the lower end stays positive:
    the ends are :math:`\bar x\,e^{\pm t s / (\bar x\sqrt R)}`. Where the sample is skewed further than that allows for,
    the upper end is the one that takes its skewness into account (P. Hall, "On the removal of skewness by
    transformation", 1992). What neither can mend is a tail that the sample does not show: for the square of one
    exponential variable 90 % is covered at 200 replicates.

    >>> interval = positive_mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> 0 < interval.low < interval.value == 2.5 < interval.high
    True
    """
    x = _checked("positive_mean_interval()", values)
    mean, error = float(x.mean()), _standard_error(x)
    if mean == 0.0:
        return Interval(0.0, 0.0, 0.0)
    t = critical_value(len(x) - 1, level=level)
    factor = math.exp(min(t * error / mean, 700.0))
    skewed = mean + (t + _lengthening(_skewness(x), len(x), t)) * error
    return Interval(mean, mean / factor, max(mean * factor, skewed))


def total_variance_interval(sample: Float[Tensor, "R P"], *, level: float = LEVEL) -> Interval:
    r"""Estimate :math:`\operatorname{tr}\operatorname{Var} x`, the variance summed over coordinates.

    >>> total_variance_interval(torch.tensor([[0.0], [2.0], [0.0], [2.0]])).value
    1.3333333333333333
    """
    x = _checked("total_variance_interval()", sample)
    size = len(x)
    return positive_mean_interval((x - x.mean(0)).square().sum(1) * (size / (size - 1)), level=level)


def noise_floor(sample: Float[Tensor, "R P"]) -> float:
    r"""Compute :math:`\sqrt{\operatorname{tr}\operatorname{Var} x / R}`: the length of a mean of R by chance alone.

    A bias far below it cannot be seen with R replicates.
    """
    return math.sqrt(total_variance_interval(sample).value / len(sample))


def norm_of_mean_interval(sample: Float[Tensor, "R P"], *, level: float = LEVEL) -> Interval:
    r"""Estimate :math:`\|\mathbb E\,x\|`; with x the error of a gradient this is the length of its bias.

    :math:`\|\bar x\|` itself is never zero, even if the expectation is. The statistic used is the unbiased estimate of
    the *square*,

    .. math:: T = \|\bar x\|^2 - \tfrac1R\operatorname{tr}S = \tfrac{1}{R(R-1)}\sum_{i \ne j} x_i^\top x_j,
       \qquad \operatorname{Var} T \approx \tfrac{4}{R}\,b^\top\Sigma b + \tfrac{2}{R^2}\operatorname{tr}\Sigma^2

    with b the expectation and :math:`\Sigma` the covariance of one replicate. The interval holds every length u that is
    not rejected: :math:`(T - u^2)^2 \le t^2\operatorname{Var} T`, the variance taken *at* u, with :math:`b^\top\Sigma b
    = \rho\,u^2`. So it holds at b = 0 too, where the spread of T is not that of a resolved bias. :math:`\rho` is the
    variance along :math:`\bar x`, and :math:`\operatorname{tr}\Sigma^2` comes from products of distinct replicates
    (Li and Chen, "Two sample tests for high-dimensional covariance matrices", 2012). A T below zero is reported as 0,
    and the upper end is then that of T = 0.

    >>> interval = norm_of_mean_interval(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
    >>> interval.value, interval.low, interval.high > 0.5
    (0.0, 0.0, True)
    """
    x = _checked("norm_of_mean_interval()", sample)
    variance = float(x.var(0).sum())
    if variance == 0.0:
        length = float(x[0].norm())
        return Interval(length, length, length)
    moments = _Moments.of(x / math.sqrt(variance))
    size, t = len(x), critical_value(len(x) - 1, level=level)
    spread = (2 * moments.trace_of_square / size**2, 4 * moments.along / size, 0.0, 0.0)
    return _invert(moments.squared_mean, spread, t).scaled(math.sqrt(variance))


def signal_to_noise_interval(sample: Float[Tensor, "R P"], *, level: float = LEVEL) -> Interval:
    r"""Estimate the signal-to-noise ratio :math:`\|\mathbb E\,x\| / \sqrt{\operatorname{tr}\operatorname{Var} x}`.

    The square is estimated by :math:`T / \operatorname{tr}S`, and the interval found as in
    :func:`norm_of_mean_interval`; the spread now has the spread of :math:`\operatorname{tr}S` in it too, and its
    covariance with T. A variance with a long tail is more often found too small than too large, and the ratio too
    large: the lower end reaches further by what the skewness of a replicate's influence on the ratio asks for, as far
    as the ratio stands out of the noise. Without noise the ratio is infinite.
    """
    x = _checked("signal_to_noise_interval()", sample)
    variance = float(x.var(0).sum())
    if variance == 0.0:
        return Interval(math.inf, math.inf, math.inf)
    moments = _Moments.of(x / math.sqrt(variance))
    size, t = len(x), critical_value(len(x) - 1, level=level)
    spread = (
        2 * moments.trace_of_square / size**2,
        4 * moments.along / size,
        -4 * moments.skew / size,
        moments.spread_of_square / size,
    )
    interval = _invert(moments.squared_mean, spread, t)
    resolved = sum(part * interval.value**power for power, part in enumerate(spread, 1) if power > 1)
    longer = _lengthening(-moments.skewness_of_ratio, size, t) * resolved / (spread[0] + resolved)
    return replace(interval, low=_invert(moments.squared_mean, spread, t + longer).low)


def median_interval(values: Float[Tensor, " R"], *, level: float = LEVEL) -> Interval:
    r"""Estimate a median, with an interval between order statistics: of the law's shape next to nothing is assumed.

    Between the ranks d and R + 1 - d the median lies with a chance that is known whatever the law, but only a few
    levels can be had so. Between the two that enclose the level, the ends are interpolated (T. P. Hettmansperger and
    S. J. Sheather, "Confidence intervals based on interpolated order statistics", 1986), which hits the level nearly,
    and for every smooth law. With fewer than six values no such interval reaches 95 %; it is then the whole range.

    >>> interval = median_interval(torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0, 9.0, 8.0]))
    >>> interval.value, 1.0 < interval.low < 2.0, 8.0 < interval.high < 9.0
    (4.0, True, True)
    """
    x = _checked("median_interval()", values, minimum=1).sort().values
    size = len(x)
    reached = [1 - 2 * sum(math.comb(size, k) for k in range(rank)) * 2.0**-size for rank in range(1, size // 2 + 1)]
    outer = sum(chance >= level for chance in reached)  # the ranks from 1 to this one reach the level
    if outer == 0 or outer == len(reached):
        low, high = (x[0], x[-1]) if outer == 0 else (x[outer - 1], x[size - outer])
        return Interval(float(x.quantile(0.5)), float(low), float(high))
    share = (reached[outer - 1] - level) / (reached[outer - 1] - reached[outer])
    inward = (size - outer) * share / (outer + (size - 2 * outer) * share)
    low, high = x[outer - 1].lerp(x[outer], inward), x[size - outer].lerp(x[size - outer - 1], inward)
    return Interval(float(x.quantile(0.5)), float(low), float(high))


def log_log_slope(abscissa: Sequence[float | int], points: Sequence[Interval], *, level: float = LEVEL) -> Interval:
    """Fit the slope of log y against log x, each point weighed by its own interval, and carry those intervals over.

    Points must be positive, lower ends too, and independent; of an interval without an upper end the lower half counts.
    The interval says how well these points fix a straight line, not whether they lie on one.

    >>> points = [Interval(1 / k, 0.9 / k, 1.1 / k) for k in (1, 2, 4, 8)]
    >>> round(log_log_slope([1, 2, 4, 8], points).value, 6)
    -1.0
    """
    if len(abscissa) != len(points) or len(points) < 2 or any(point.low <= 0 for point in points):
        raise OptionError(
            "log_log_slope()",
            "`points`",
            expected="two or more points, one an abscissa, with positive lower ends",
            got=f"{len(points)} points for {len(abscissa)} abscissas",
            fix="leave out the points whose interval reaches zero",
        )
    z = NormalDist().inv_cdf(0.5 + level / 2)
    x = torch.tensor([math.log(k) for k in abscissa], dtype=torch.float64)
    y = torch.tensor([math.log(point.value) for point in points], dtype=torch.float64)
    widths = [max(_log_width(point) / (2 * z), 1e-12) for point in points]
    weight = torch.tensor(widths, dtype=torch.float64).square().reciprocal()
    centered = x - (weight * x).sum() / weight.sum()
    information = float((weight * centered.square()).sum())
    slope = float((weight * centered * y).sum()) / information
    reach = z / math.sqrt(information)
    return Interval(slope, slope - reach, slope + reach)


def _log_width(point: Interval) -> float:
    return math.log(point.high / point.low) if math.isfinite(point.high) else 2 * math.log(point.value / point.low)


@dataclass(frozen=True)
class _Moments:
    r"""What the spread of :math:`T` is made of, for a sample whose total variance is one.

    C is a replicate less the mean.
    """

    squared_mean: float  # T, unbiased for |E x|^2
    along: float  # variance of c along the mean's direction
    skew: float  # covariance of that coordinate with |c|^2
    spread_of_square: float  # variance of |c|^2
    trace_of_square: float  # tr Sigma^2
    skewness_of_ratio: float  # of what one replicate adds to T / tr S

    @staticmethod
    def of(x: Tensor) -> _Moments:
        size, mean = len(x), x.mean(0)
        centered = x - mean
        length = float(mean.norm())
        along = centered @ mean / length if length > 0 else torch.zeros(size, dtype=x.dtype)
        square = centered.square().sum(1)
        squared_mean = length**2 - float(square.sum()) / (size * (size - 1))
        return _Moments(
            squared_mean=squared_mean,
            along=float(along.square().sum()) / (size - 1),
            skew=float((along * (square - square.mean())).sum()) / (size - 1),
            spread_of_square=float(square.var()),
            # for a covariance of trace one it cannot be below 1/P, though its estimate from few replicates can
            trace_of_square=max(_trace_of_squared_covariance(x), 1 / x.shape[1]),
            skewness_of_ratio=_skewness(2 * length * along - max(squared_mean, 0.0) * square),
        )


def _invert(squared: float, spread: tuple[float, float, float, float], t: float) -> Interval:
    r"""Return the lengths :math:`u \ge 0` with :math:`(T - u^2)^2 \le t^2 (v_0 + v_2 u^2 + v_3 u^3 + v_4 u^4)`."""
    v0, v2, v3, v4 = (t**2 * part for part in spread)

    def roots(statistic: float) -> list[float]:
        found = np.roots([1 - v4, -v3, -2 * statistic - v2, 0.0, statistic**2 - v0])
        return sorted(float(root.real) for root in found if abs(root.imag) <= 1e-9 * abs(root) and root.real > 0)

    floored = max(squared, 0.0)
    value = math.sqrt(floored)
    low = max((root for root in roots(squared) if root < value), default=0.0)
    high = min((root for root in roots(floored) if root > value), default=math.inf)
    return Interval(value, low, high)


def _trace_of_squared_covariance(x: Tensor) -> float:
    r"""Estimate :math:`\operatorname{tr}\Sigma^2` without bias from products of distinct replicates.

    With :math:`A_{ij} = x_i^\top x_j` the U-statistic is the mean of :math:`A_{ij}^2 - 2 A_{ij} A_{jk} + A_{ij} A_{kl}`
    over distinct indices. The squared norm of the sample covariance would be too large by about
    :math:`(\operatorname{tr}\Sigma)^2 / R`.
    """
    size = len(x)
    centered = x - x.mean(0)  # changes nothing but the rounding
    products = centered @ centered.T
    products.fill_diagonal_(0.0)
    pairs, rows, whole = products.square().sum(), products.sum(0), products.sum()
    chains = rows.square().sum() - pairs
    apart = whole.square() - 4 * chains - 2 * pairs
    estimate = pairs - 2 * chains / (size - 2) + apart / ((size - 2) * (size - 3))
    return float(estimate) / (size * (size - 1))


def _skewness(x: Tensor) -> float:
    r"""Return :math:`m_3 / m_2^{3/2}`, or 0 for a sample without spread."""
    centered = x - x.mean()
    variance = float(centered.square().mean())
    return float(centered.pow(3).mean()) / variance**1.5 if variance > 0 else 0.0


def _lengthening(skewness: float, size: int, t: float) -> float:
    r"""Say by how many standard errors the end of an interval on the side of the long tail must be moved out.

    By the first term of the studentised mean's Edgeworth expansion, :math:`\gamma (2 t^2 + 1) / (6\sqrt R)`; a tail on
    the other side moves nothing. It is cut off at t, where one term of an expansion says nothing any more.
    """
    return min(max(skewness * (2 * t**2 + 1) / (6 * math.sqrt(size)), 0.0), t)


def _standard_error(x: Tensor) -> float:
    return float(x.std()) / math.sqrt(len(x))


def _checked(where: str, sample: Tensor, minimum: int = MIN_REPLICATES) -> Tensor:
    if sample.ndim == 0 or len(sample) < minimum:
        raise ShapeError(
            where,
            "too few replicates",
            expected=f"R >= {minimum} along the first dimension",
            got=str(list(sample.shape)),
            fix="more replicates",
        )
    return sample.detach().to(torch.float64)
