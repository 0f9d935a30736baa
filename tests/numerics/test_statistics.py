"""Intervals on cases with known answers, and how often they cover the truth."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics import statistics
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import Interval


def test_a_mean_has_students_interval() -> None:
    interval = statistics.mean_interval(torch.arange(1.0, 11.0))
    # mean 5.5, standard deviation 3.02765, t(9) = 2.26216
    assert interval.value == 5.5
    assert interval.high - 5.5 == pytest.approx(2.26216 * 3.02765 / math.sqrt(10), rel=1e-3)
    assert 5.5 - interval.low == pytest.approx(interval.high - 5.5)


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.7764), (10, 2.2281), (30, 2.0423), (199, 1.9720)])
def test_critical_values_are_students(degrees: int, quantile: float) -> None:
    assert statistics.critical_value(degrees) == pytest.approx(quantile, rel=0.01)


def test_the_squared_norm_statistic_is_the_mean_over_distinct_pairs() -> None:
    x = torch.randn(7, 3, dtype=torch.float64) + 2
    gram = x @ x.T
    pairs = (gram.sum() - gram.diagonal().sum()) / (7 * 6)
    assert statistics.norm_of_mean_interval(x).value ** 2 == pytest.approx(float(pairs), rel=1e-9)


def test_the_trace_of_the_squared_covariance_is_unbiased() -> None:
    """Its average over many small samples is tr Σ², which the naive ‖S‖² overshoots by about (tr Σ)² / R."""
    scale = torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    truth = float(scale.pow(4).sum())
    samples = torch.randn(4000, 6, 4, dtype=torch.float64) * scale + 3
    found = torch.tensor([statistics._trace_of_squared_covariance(x) for x in samples], dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - truth) < 4 * error
    assert 4 * error < float(scale.square().sum()) ** 2 / 6  # so that the naive estimate would fail here


def test_a_sample_without_spread() -> None:
    x = torch.tensor([3.0, 4.0]).expand(5, 2)
    assert statistics.norm_of_mean_interval(x) == Interval(5.0, 5.0, 5.0)
    assert statistics.total_variance_interval(x) == Interval(0.0, 0.0, 0.0)
    assert statistics.signal_to_noise_interval(x).value == math.inf
    assert statistics.noise_floor(x) == 0.0


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    x = torch.randn(20, 5, dtype=torch.float64) + 0.3
    for function, power in (
        (statistics.norm_of_mean_interval, 1),
        (statistics.total_variance_interval, 2),
        (statistics.signal_to_noise_interval, 0),
    ):
        small, large = function(x), function(scale * x)
        assert large.value == pytest.approx(small.value * scale**power, rel=1e-6)
        assert large.low == pytest.approx(small.low * scale**power, rel=1e-6)
        assert large.high == pytest.approx(small.high * scale**power, rel=1e-6)


def test_a_median_lies_between_interpolated_ranks() -> None:
    values = torch.arange(1.0, 10.0)
    # of nine, ranks 2 and 8 leave out 2 (1 + 9) / 512 = 3.9 %, ranks 3 and 7 2 (1 + 9 + 36) / 512 = 18 %
    share = (0.05 - 20 / 512) / (92 / 512 - 20 / 512)
    inward = 7 * share / (2 + 5 * share)  # n = 9, d = 2: (n - d) I / (d + (n - 2d) I)
    found = statistics.median_interval(values[torch.randperm(9)])
    assert (found.value, found.low, found.high) == pytest.approx((5.0, 2 + inward, 8 - inward), rel=1e-6)
    assert statistics.median_interval(torch.tensor([1.0, 2.0, 3.0])) == Interval(2.0, 1.0, 3.0)
    assert statistics.median_interval(torch.tensor([1.0, 2.0])) == Interval(1.5, 1.0, 2.0)


def test_the_long_tail_moves_an_end_by_the_skewness_written_out() -> None:
    """One in 200 is a thousand times the others: the log scale alone reaches e^(t s / mean √R), which is not enough."""
    with seeded(0):
        values = -torch.rand(200, dtype=torch.float64).log()
    values = values.pow(3)
    found, t, size = statistics.positive_mean_interval(values), 1.9720, 200
    mean, error = float(values.mean()), float(values.std()) / math.sqrt(size)
    skewness = float((values - mean).pow(3).mean()) / float((values - mean).square().mean()) ** 1.5
    reach = min(t, skewness * (2 * t**2 + 1) / (6 * math.sqrt(size)))
    assert found.low == pytest.approx(mean * math.exp(-t * error / mean), rel=1e-3)
    assert found.high == pytest.approx(mean + (t + reach) * error, rel=1e-3)
    assert found.high > 1.01 * mean * math.exp(t * error / mean)


def test_the_lower_end_of_a_ratio_reaches_further_under_a_long_tail() -> None:
    """A variance that ten of 200 replicates make lengthens the lower end, one that all make does not."""
    size = 200
    sign = torch.ones(size, dtype=torch.float64)
    sign[::2] = -1
    tail = torch.where(torch.arange(size) < 10, 4.0, 0.3).double() * sign
    for noise, is_longer in ((tail, True), (sign * torch.linspace(0.9, 1.1, size, dtype=torch.float64), False)):
        sample = (noise + 2).unsqueeze(1)
        moments = statistics._Moments.of(sample / float(noise.std()))
        spread = (
            2 * moments.trace_of_square / size**2,
            4 * moments.along / size,
            -4 * moments.skew / size,
            moments.spread_of_square / size,
        )
        plain = statistics._invert(moments.squared_mean, spread, statistics.critical_value(size - 1))
        found = statistics.signal_to_noise_interval(sample)
        assert (found.low < 0.98 * plain.low) is is_longer
        assert found.high == pytest.approx(plain.high)


def test_a_slope_weighs_points_by_their_intervals() -> None:
    points = [Interval(1 / k, 0.999 / k, 1.001 / k) for k in (1, 2, 4)] + [Interval(9.0, 0.1, 810.0)]
    slope = statistics.log_log_slope([1, 2, 4, 8], points)
    assert slope.low < -1 < slope.high
    assert slope.high - slope.low < 0.1


def test_a_point_without_an_upper_end_is_weighed_by_its_lower_half() -> None:
    known = [Interval(1 / k, 0.9 / k, 1 / 0.9 / k) for k in (1, 2, 4)]
    open_ended = [*known[:2], Interval(0.25, 0.225, math.inf)]
    expected = statistics.log_log_slope([1, 2, 4], known)
    assert statistics.log_log_slope([1, 2, 4], open_ended).high == pytest.approx(expected.high)


def test_a_slope_needs_points_that_stand_out() -> None:
    with pytest.raises(OptionError, match="reaches zero"):
        statistics.log_log_slope([1, 2], [Interval(1.0, 0.5, 2.0), Interval(0.1, 0.0, 0.2)])


@pytest.mark.parametrize("function", [statistics.mean_interval, statistics.norm_of_mean_interval])
def test_too_few_replicates_are_refused(function: Callable[[Tensor], Interval]) -> None:
    values = torch.zeros(3) if function is statistics.mean_interval else torch.zeros(3, 2)
    with pytest.raises(ShapeError, match="too few replicates"):
        function(values)


Case = tuple[Callable[[Tensor], Interval], Callable[[Tensor, Tensor], float]]

CASES: dict[str, Case] = {
    "bias": (statistics.norm_of_mean_interval, lambda mean, scale: float(mean.norm())),
    "variance": (statistics.total_variance_interval, lambda mean, scale: float(scale.square().sum())),
    "snr": (statistics.signal_to_noise_interval, lambda mean, scale: float(mean.norm() / scale.norm())),
    "mse": (
        lambda x: statistics.positive_mean_interval(x.square().sum(1)),
        lambda mean, scale: float(mean.square().sum() + scale.square().sum()),
    ),
}


def coverage(case: Case, mean: Tensor, scale: Tensor, *, replicates: int, repetitions: int, skewed: bool) -> float:
    """How often the interval of a sample of this law holds the truth."""
    function, truth_of = case
    truth = truth_of(mean, scale)
    hits = 0
    for _ in range(repetitions):
        noise = torch.randn(replicates, len(mean), dtype=torch.float64)
        if skewed:
            noise = -torch.rand(replicates, len(mean), dtype=torch.float64).log() - 1  # exponential, centred
        interval = function(mean + scale * noise)
        hits += interval.low <= truth <= interval.high
    return hits / repetitions


def is_honest(share: float, repetitions: int) -> bool:
    """Whether a share of hits can come from an interval that covers 93 to 98 %: four standard errors of leeway."""
    leeway = 4 * math.sqrt(0.95 * 0.05 / repetitions)
    return 0.93 - leeway <= share <= 0.98 + leeway


LAWS = {
    "unbiased": (torch.zeros(12), torch.ones(12)),
    "near zero": (torch.tensor([0.15] + [0.0] * 11), torch.ones(12)),
    "resolved": (torch.tensor([1.0] + [0.0] * 11), torch.ones(12)),
    "one direction": (torch.tensor([0.15] + [0.0] * 11), torch.tensor([1.0] + [0.1] * 11)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_the_truth(case: str, law: str) -> None:
    mean, scale = (part.double() for part in LAWS[law])
    with seeded(1):
        share = coverage(CASES[case], mean, scale, replicates=100, repetitions=300, skewed=False)
    assert is_honest(share, 300), share


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_the_truth_in_many_repetitions(case: str, law: str, skewed: bool) -> None:
    mean, scale = (part.double() for part in LAWS[law])
    # The documented limit: with 200 replicates the variance of one skewed coordinate is covered in 90 % of cases only.
    heavy = skewed and law == "one direction" and case in {"variance", "mse"}
    with seeded(2):
        share = coverage(CASES[case], mean, scale, replicates=4000 if heavy else 200, repetitions=4000, skewed=skewed)
    assert is_honest(share, 4000), share


def test_the_length_of_a_mean_alone_would_not_cover_zero() -> None:
    """The recipe that the interval replaces, ‖mean‖ with a normal error about it, is found out by the same check."""

    def naive(x: Tensor) -> Interval:
        length = float(x.mean(0).norm())
        reach = 1.96 * math.sqrt(float(x.var(0).sum()) / len(x) / x.shape[1])
        return Interval(length, length - reach, length + reach)

    share = coverage(
        (naive, CASES["bias"][1]),
        *(p.double() for p in LAWS["unbiased"]),
        replicates=100,
        repetitions=300,
        skewed=False,
    )
    assert not is_honest(share, 300)
