r"""The signal-to-noise ratio of a guide's gradient, coordinate by coordinate, and its slope in K.

A sample is R replicates ``[R, D]`` of a gradient, as :class:`~latentpg.studies.guide_target.GuideGradient` poses it: on
:class:`~latentpg.studies.linear_gaussian.LinearGaussianData` the coordinates of b are those whose ratio the paper
averages, which ``GuideGradient(only=("guide_bias",))`` picks out.

Source: T. Rainforth et al., "Tighter Variational Bounds Are Not Necessarily Better", 2018, where the ratio in psi falls
as :math:`K^{-1/2}` for the importance-weighted bound; G. Tucker et al., "Doubly Reparameterized Gradient Estimators for
Monte Carlo Objectives", 2019, where it grows as :math:`K^{1/2}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from latentpg.numerics.statistics import Interval, critical_value, log_log_slope

MIN_EFFECTIVE = 10
"""Replicates that the variance of every coordinate must rest on, if an interval is to be given."""


def coordinate_snr_interval(sample: Float[Tensor, "R D"]) -> Interval:
    r"""Estimate :math:`\frac1D\sum_d |\bar g_d| / s_d`, the paper's signal-to-noise ratio averaged over coordinates.

    The spread is that of the delete-one jackknife, of the logarithm for the upper end. Two things need care.

    *The floor.* A coordinate without any signal shows :math:`\sqrt{2/\pi R}`, and one whose mean lies
    :math:`\delta` standard errors from zero shows too much by :math:`b(\delta)/\sqrt R`, which falls from
    :math:`\sqrt{2/\pi}` at 0 to .02 at 2. No estimate of :math:`|\delta|` is free of it. So the lower end is that of
    the average less :math:`\sqrt{6/\pi R}\;e^{-t_d^2}` a coordinate, with :math:`t_d = \sqrt R\,\bar g_d/s_d`: of a
    normal :math:`t_d` the expectation is :math:`\sqrt{2/\pi R}\;e^{-\delta^2/3}`, which is b at 0 and above it
    elsewhere. Where most coordinates are near the floor the interval therefore covers more than it says: the jackknife
    knows the spread of a mean, which is larger than that of its absolute value.

    *Rare events.* A coordinate that seldom varies has an :math:`s_d` that is hardly known. If the squared deviations of
    any rest on fewer than :data:`MIN_EFFECTIVE` replicates, by :math:`(\sum_r c_{rd}^2)^2 / \sum_r c_{rd}^4`, then
    nothing is claimed: the interval is from 0 to infinity. Coordinates without spread are left out of the value.

    >>> import torch
    >>> two = torch.tensor([[1.0, 3.0], [-1.0, 1.0]], dtype=torch.float64).repeat(20, 1)
    >>> interval = coordinate_snr_interval(two)  # means 0 and 2, standard deviations 1.01
    >>> round(interval.value, 2), round(interval.low, 1), round(interval.high, 1)
    (0.99, 0.7, 1.2)
    """
    size, mean, variance = len(sample), sample.mean(0), sample.var(0)
    centered = sample - mean
    squares = centered.square()
    varying = squares.sum(0) > 0
    effective = squares[:, varying].sum(0).square() / squares[:, varying].square().sum(0)
    value = float(_average_snr(mean[varying], variance[varying]))
    if not bool(varying.all()) or float(effective.min()) < MIN_EFFECTIVE:
        return Interval(value, 0.0, math.inf)
    # Leaving out replicate r moves the mean by -c_r / (R - 1) and the sum of squares by -c_r² R / (R - 1).
    left_mean = mean - centered / (size - 1)
    left_variance = ((size - 1) * variance - squares * (size / (size - 1))) / (size - 2)
    left_out = _average_snr(left_mean, left_variance)
    floored = left_out - _floor(left_mean, left_variance, size - 1)
    low = value - float(_floor(mean, variance, size)) - critical_value(size - 1) * _jackknife(floored)
    high = value * math.exp(critical_value(size - 1) * _jackknife(left_out.log()))
    return Interval(value, max(low, 0.0), high)


def snr_slope(
    num_particles: Sequence[int],
    samples: Sequence[Float[Tensor, "R D"]],
    *,
    ratio: Callable[[Tensor], Interval] = coordinate_snr_interval,
) -> Interval:
    """Fit the log-log slope of a signal-to-noise ratio against K, given independent samples, one a K.

    ``ratio`` may be :func:`~latentpg.numerics.statistics.signal_to_noise_interval` instead, that of the whole vector,
    which has no floor.
    """
    return log_log_slope(num_particles, [ratio(sample) for sample in samples])


def _average_snr(mean: Tensor, variance: Tensor) -> Tensor:
    return (mean.abs() / variance.sqrt()).mean(-1)


def _floor(mean: Tensor, variance: Tensor, size: int) -> Tensor:
    """Give what the average may show too much, at least in expectation."""
    return math.sqrt(6 / (math.pi * size)) * (-size * mean.square() / variance).exp().mean(-1)


def _jackknife(left_out: Tensor) -> float:
    return math.sqrt((len(left_out) - 1) * float(left_out.var(correction=0)))
