"""Intervals between episodes: written-out cases, and how often they hold the truth."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.evaluation.clustered import cluster_bootstrap_interval, clustered_interval, student_quantile
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import Interval, mean_interval


def test_the_linearised_variance_written_out() -> None:
    """Totals 3, 3, 6 of sizes 2, 1, 2: ratio 12/5, rests -9/5, 3/5, 6/5."""
    value = torch.tensor([1.0, 2.0, 3.0, 2.0, 4.0])
    found = clustered_interval(value, torch.tensor([7, 7, 1, 4, 4]))
    error = math.sqrt(3 / 2 * (1.8**2 + 0.6**2 + 1.2**2)) / 5
    reach = 4.302653 * error  # Student's quantile at two degrees
    assert found.value == pytest.approx(2.4)
    assert (found.low, found.high) == pytest.approx((2.4 - reach, 2.4 + reach), rel=1e-4)


def test_a_ratio_divides_by_the_sizes() -> None:
    """Totals 6 and 8 over 3 and 2: ratio 14/5, rests -12/5 and 12/5, one degree of freedom."""
    found = clustered_interval(torch.tensor([6.0, 8.0]), torch.arange(2), size=torch.tensor([3.0, 2.0]))
    error = math.sqrt(2 * (2.4**2 + 2.4**2)) / 5
    assert found.value == pytest.approx(2.8)
    assert found.high - found.value == pytest.approx(12.7062 * error, rel=1e-5)


def test_rows_that_are_episodes_have_students_interval() -> None:
    values = torch.randn(12, dtype=torch.float64)
    plain, found = mean_interval(values), clustered_interval(values, torch.arange(12))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-9)


def test_one_episode_says_nothing_of_the_spread() -> None:
    assert clustered_interval(torch.ones(3), torch.zeros(3, dtype=torch.int64)) == Interval(1.0, -math.inf, math.inf)


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (30, 2.0423)])
def test_quantiles_are_students(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, rel=0.01)


def episodes(groups: int, *, skewed: bool) -> tuple[Tensor, Tensor]:
    """Draw rows of mean 2 in episodes of 1 to 8 rows, alike within an episode."""
    length = torch.randint(1, 9, (groups,))
    cluster = torch.repeat_interleave(torch.arange(groups), length)
    shared = -torch.rand(groups).log() - 1 if skewed else torch.randn(groups)
    return (shared[cluster] + 0.3 * torch.randn(len(cluster)) + 2).double(), cluster


def covered(find: Callable[[Tensor, Tensor], Interval], count: int, groups: int, *, skewed: bool = False) -> float:
    hits = 0
    for _ in range(count):
        found = find(*episodes(groups, skewed=skewed))
        hits += found.low <= 2.0 <= found.high
    return hits / count


def test_the_interval_covers_and_the_one_of_independent_rows_does_not() -> None:
    """Of 600 experiments with a chance of .95, .92 is 3.4 standard errors short."""
    with seeded(0):
        assert 0.92 <= covered(clustered_interval, 600, 30) <= 0.98
        assert covered(lambda value, cluster: clustered_interval(value, torch.arange(len(value))), 300, 30) < 0.75


def test_the_bootstrap_covers_more_of_a_long_tail() -> None:
    """The same 400 experiments with ten exponential episodes: Student's covers .88, the studentised bootstrap .93."""
    with seeded(1):
        student = covered(clustered_interval, 400, 10, skewed=True)

    def bootstrap(value: Tensor, cluster: Tensor) -> Interval:
        with seeded(len(value)):
            return cluster_bootstrap_interval(value, cluster, num_resamples=600)

    with seeded(1):
        found = covered(bootstrap, 400, 10, skewed=True)
    assert student + 0.02 < found
    assert 0.90 <= found <= 0.98


def test_a_sample_without_spread_has_a_point_for_an_interval() -> None:
    with seeded(0):
        assert cluster_bootstrap_interval(torch.full((6,), 3.0), torch.arange(6)) == Interval(3.0, 3.0, 3.0)


@pytest.mark.production
@pytest.mark.parametrize(
    ("value", "cluster", "size", "error", "told"),
    [
        (torch.zeros(3, 1), torch.arange(3), None, ShapeError, r"\[B\] with B >= 1"),
        (torch.zeros(0), torch.arange(0), None, ShapeError, r"\[B\] with B >= 1"),
        (torch.zeros(3), torch.arange(4), None, ShapeError, "one integer a row"),
        (torch.zeros(3), torch.zeros(3), None, ShapeError, "one integer a row"),
        (torch.tensor([0.0, math.nan]), torch.arange(2), None, OptionError, "nan in row 1"),
        (torch.tensor([-math.inf, 0.0]), torch.arange(2), None, OptionError, "-inf in row 0"),
        (torch.zeros(2), torch.arange(2), torch.zeros(2), ShapeError, "a positive number a row"),
        (torch.zeros(2), torch.arange(2), torch.ones(3), ShapeError, "a positive number a row"),
    ],
)
def test_what_is_no_sample_is_refused(
    value: Tensor, cluster: Tensor, size: Tensor | None, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        clustered_interval(value, cluster, size=size)


def test_a_bootstrap_needs_episodes_resamples_and_a_level() -> None:
    with pytest.raises(ShapeError, match="at least 5 different"):
        cluster_bootstrap_interval(torch.zeros(4), torch.arange(4))
    with pytest.raises(OptionError, match="at least 100"):
        cluster_bootstrap_interval(torch.zeros(6), torch.arange(6), num_resamples=9)
    with pytest.raises(OptionError, match=r"in \(0, 1\)"):
        cluster_bootstrap_interval(torch.zeros(6), torch.arange(6), level=1.0)
