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


def test_a_median_takes_the_ranks_that_reach_the_level() -> None:
    values = torch.arange(1.0, 10.0)
    # of nine, ranks 2 and 8 leave out 2 (1 + 9) / 512 = 3.9 %; ranks 3 and 7 would leave out 18 %
    assert statistics.median_interval(values[torch.randperm(9)]) == Interval(5.0, 2.0, 8.0)
    assert statistics.median_interval(torch.tensor([1.0, 2.0, 3.0])) == Interval(2.0, 1.0, 3.0)


def test_a_slope_weighs_points_by_their_intervals() -> None:
    points = [Interval(1 / k, 0.999 / k, 1.001 / k) for k in (1, 2, 4)] + [Interval(9.0, 0.1, 810.0)]
    slope = statistics.log_log_slope([1, 2, 4, 8], points)
    assert slope.low < -1 < slope.high
    assert slope.high - slope.low < 0.1


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
