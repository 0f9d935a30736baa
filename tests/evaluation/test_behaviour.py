"""Success, diversity and likeness to demonstrations: written-out cases, coverage, and refusals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.evaluation.behaviour import (
    context_entropy,
    measure_behaviour,
    miller_madow_entropy,
    mode_coverage,
    mode_entropy,
    smoothed_kl,
    wilson_interval,
)
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import Interval


def all_succeed(counts: Tensor) -> tuple[Tensor, Tensor]:
    mode = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return mode, torch.ones(len(mode), dtype=torch.bool)


def test_wilsons_interval_solves_its_own_equation() -> None:
    """At both ends |p_hat - p| = z sqrt(p (1 - p) / n)."""
    found, z = wilson_interval(7, 20), 1.959964
    for end in (found.low, found.high):
        assert abs(0.35 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 20), rel=1e-6)
    assert wilson_interval(0, 5).low == 0.0 < wilson_interval(0, 5).high


def test_wilsons_interval_covers_at_small_numbers() -> None:
    """The binomial sum is exact: at n = 30 the chance of holding p, averaged over rates, is within a point of .95."""
    rates = [0.02 * k for k in range(1, 50)]
    intervals = [wilson_interval(k, 30) for k in range(31)]

    def chance(p: float) -> float:
        mass = [math.comb(30, k) * p**k * (1 - p) ** (30 - k) for k in range(31)]
        return sum(m for m, found in zip(mass, intervals, strict=True) if found.low <= p <= found.high)

    held = [chance(p) for p in rates]
    assert abs(sum(held) / len(held) - 0.95) < 0.01
    assert min(held) > 0.88


def test_the_correction_is_miller_and_madows() -> None:
    plugin = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(miller_madow_entropy(torch.tensor([6.0, 2.0, 0.0]))) == pytest.approx(plugin + 1 / 16)


def held(law: Tensor, size: int, experiments: int) -> tuple[float, float]:
    """Count how often the interval holds the entropy of a law, and how often the plain percentile one does."""
    truth = float(-torch.xlogy(law, law).sum()) / math.log(len(law))
    found = plain = 0
    for _ in range(experiments):
        counts = torch.bincount(torch.multinomial(law, size, replacement=True), minlength=len(law))
        interval = mode_entropy(*all_succeed(counts), num_modes=len(law), num_resamples=300)
        found += interval.low <= truth + 1e-12 and truth <= interval.high + 1e-12
        index = torch.multinomial(counts.double(), 300 * size, replacement=True).reshape(300, size)
        again = torch.zeros(300, len(law), dtype=torch.float64).scatter_add_(1, index, torch.ones(300, size).double())
        share = again / size
        entropies = -torch.xlogy(share, share).sum(-1) / math.log(len(law))
        low, high = entropies.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        plain += low <= truth <= high
    return found / experiments, plain / experiments


LAWS = {
    "even": torch.full((24,), 1 / 24, dtype=torch.float64),
    "six of 24": torch.tensor([1 / 6] * 6 + [0.0] * 18, dtype=torch.float64),
    "falling": (r := 1 / torch.arange(1, 25, dtype=torch.float64)) / r.sum(),
    "geometric": (g := 0.7 ** torch.arange(24, dtype=torch.float64)) / g.sum(),
    "one of 100 rare": torch.tensor([0.99, 0.01], dtype=torch.float64),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_interval_covers_where_a_percentile_bootstrap_does_not(name: str) -> None:
    """Of 150 experiments with a chance of .95, .893 is 3.2 standard errors short."""
    with seeded(0):
        found, plain = held(LAWS[name], 100, 150)
    assert found >= 0.893
    assert plain < 0.80


@pytest.mark.slow
@pytest.mark.parametrize("size", [30, 100, 480])
@pytest.mark.parametrize("name", LAWS)
def test_the_interval_covers_at_every_number_of_successes(name: str, size: int) -> None:
    """Of 600 experiments; 30 successes of 24 modes are the least that was asked of it, and cost a few points."""
    with seeded(1):
        found, plain = held(LAWS[name], size, 600)
    print(f"{name}, {size} successes: {found:.3f}, plain percentile {plain:.3f}")
    assert found >= 0.90


def test_roll_outs_that_all_took_one_way_leave_a_length() -> None:
    """Of 30 roll-outs none took the rare way: a chance of .03 for it (entropy .19) is not ruled out."""
    with seeded(0):
        found = mode_entropy(*all_succeed(torch.tensor([30, 0])), num_modes=2)
    assert found.value == found.low == 0.0
    assert found.high > 0.19


def test_failures_have_no_mode() -> None:
    mode, success = torch.tensor([0, 1, -1, 5]), torch.tensor([True, True, False, False])
    with seeded(0):
        found = measure_behaviour(mode, success, torch.tensor([1.0, 1.0]))
    assert found.counts.tolist() == [1.0, 1.0]
    assert found.success.value == 0.5
    assert "2 successes" in "\n".join(found.lines())


def test_without_a_success_diversity_is_nan_and_not_even() -> None:
    mode, success = torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.bool)
    found = measure_behaviour(mode, success, torch.ones(3), context=torch.arange(8) // 2)
    assert math.isnan(found.entropy.value) and math.isnan(found.divergence)
    assert found.coverage == 0.0 and found.success.value == 0.0
    assert found.contexts is not None
    assert math.isnan(found.contexts.solved.value)
    assert (found.contexts.every.value, found.contexts.num_failed, found.contexts.num_contexts) == (0.0, 4, 4)
    assert "4 of 4 contexts without a success" in "\n".join(found.lines())


def test_contexts_that_fail_are_told_apart() -> None:
    """Contexts: both ways (ln 2 + 1/8, cut off at 1), one way (0), none: (1 + 0) / 2 of those solved, 1 / 3 of all."""
    mode = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0])
    success = torch.tensor([True, True, True, True, True, True, False, False])
    found = context_entropy(mode, success, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), num_modes=2)
    assert found.solved.value == pytest.approx(1 / 2)
    assert found.every.value == pytest.approx(1 / 3)
    assert (found.num_contexts, found.num_failed) == (3, 1)


def test_one_way_a_context_is_no_diversity() -> None:
    mode, context = torch.arange(40) % 2, torch.arange(40) % 2
    success = torch.ones(40, dtype=torch.bool)
    with seeded(0):
        assert mode_entropy(mode, success, num_modes=2).value == 1.0
    assert context_entropy(mode, success, context, num_modes=2).every.value == 0.0


def test_coverage_counts_demonstrated_modes_alone() -> None:
    assert mode_coverage(torch.tensor([1.0, 0.0, 9.0, 0.0]), torch.tensor([2.0, 2.0, 0.0, 2.0])) == pytest.approx(1 / 3)


def test_the_smoothed_divergence_written_out() -> None:
    """Counts 2, 0 and half a success each: q = 2.5/3, .5/3, against .3 and .7."""
    expected = 0.3 * math.log(0.3 / (2.5 / 3)) + 0.7 * math.log(0.7 / (0.5 / 3))
    assert smoothed_kl(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 7.0])) == pytest.approx(expected)
    even = smoothed_kl(torch.tensor([5.0, 5.0]), torch.tensor([1.0, 1.0]))
    assert even == pytest.approx(0.0, abs=1e-12)


MODES, WON = torch.tensor([0, 1]), torch.tensor([True, True])


@pytest.mark.production
@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: wilson_interval(3, 2), OptionError, "3 of 2"),
        (lambda: wilson_interval(0, 0), OptionError, "one trial or more"),
        (lambda: wilson_interval(1, 2, level=1.0), OptionError, r"in \(0, 1\)"),
        (lambda: mode_entropy(MODES, WON, num_modes=1), OptionError, "`num_modes`|without a mode"),
        (lambda: mode_entropy(MODES[:1], WON[:1], num_modes=1), OptionError, "to have an entropy"),
        (lambda: mode_entropy(MODES, WON, num_modes=2, num_resamples=5), OptionError, "at least 100"),
        (lambda: mode_entropy(MODES, WON, num_modes=2, level=0.0), OptionError, r"in \(0, 1\)"),
        (lambda: mode_entropy(MODES - 1, WON, num_modes=2), OptionError, "-1 to 0"),
        (lambda: mode_entropy(MODES, WON.long(), num_modes=2), ShapeError, r"success\.bool\(\)"),
        (lambda: mode_entropy(MODES.float(), WON, num_modes=2), ShapeError, "one integer a row"),
        (lambda: mode_entropy(MODES[:1], WON, num_modes=2), ShapeError, "one truth value a roll-out"),
        (lambda: context_entropy(MODES, WON, torch.arange(3), num_modes=2), ShapeError, "one integer a row"),
        (lambda: context_entropy(MODES[:1], WON[:1], MODES[:1], num_modes=1), OptionError, "to have an entropy"),
        (lambda: mode_coverage(torch.ones(2), torch.ones(3)), ShapeError, "one number a mode"),
        (lambda: mode_coverage(torch.tensor([-1.0]), torch.ones(1)), OptionError, "`counts`"),
        (lambda: smoothed_kl(torch.ones(2), torch.zeros(2)), OptionError, "at least one demonstration"),
        (lambda: smoothed_kl(torch.ones(2), torch.ones(2), pseudo_count=0), OptionError, "`pseudo_count`"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def test_the_result_is_an_interval() -> None:
    assert isinstance(wilson_interval(1, 2), Interval)
