"""Importance-weight arithmetic against plain sums of exponentials, and at the extremes where those would fail."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.numerics.weights import (
    MIN_PARTICLES_FOR_PARETO,
    ess,
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    normalized_weights,
    pareto_k,
)

EXACT = 1e-12

log_weights = hnp.arrays(
    float,
    st.tuples(st.integers(1, 6), st.integers(1, 3)),
    elements=st.floats(-8, 8, allow_nan=False),
).map(torch.from_numpy)


def off_by(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max())


@given(log_weights)
def test_they_are_what_their_formulas_say(log_weight: Tensor) -> None:
    weight = log_weight.exp()
    assert off_by(log_mean_exp(log_weight).exp() / weight.mean(0), torch.ones(())) < EXACT
    assert off_by(normalized_weights(log_weight), weight / weight.sum(0)) < EXACT
    assert off_by(ess(log_weight), weight.sum(0) ** 2 / (weight**2).sum(0)) < EXACT * len(weight)


@given(log_weights, st.floats(-1e4, 1e4))
def test_a_constant_of_every_weight_changes_the_value_alone(log_weight: Tensor, constant: float) -> None:
    rounding = 1e-11 * (1 + abs(constant))
    assert off_by(log_mean_exp(log_weight + constant), log_mean_exp(log_weight) + constant) < rounding
    assert off_by(normalized_weights(log_weight + constant), normalized_weights(log_weight)) < rounding
    assert off_by(ess(log_weight + constant), ess(log_weight)) < 10 * rounding


@given(log_weights)
def test_the_effective_sample_size_is_between_one_and_k(log_weight: Tensor) -> None:
    size = ess(log_weight)
    assert bool((size >= 1 - EXACT).all()) and bool((size <= len(log_weight) * (1 + EXACT)).all())


def test_weights_that_are_zero_are_no_trouble() -> None:
    log_weight = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf], [0.0, -4000.0]], dtype=torch.float64)
    assert normalized_weights(log_weight).tolist() == [[0.5, 0.0], [0.0, 0.0], [0.5, 1.0]]
    assert ess(log_weight).tolist() == [2.0, 1.0]
    assert log_mean_exp(log_weight).tolist() == pytest.approx([math.log(2 / 3), -4000 - math.log(3)])


def test_the_gradient_of_the_value_is_the_normalised_weights() -> None:
    log_weight = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_mean_exp(log_weight).sum(), log_weight)
    assert off_by(gradient, normalized_weights(log_weight).detach()) < EXACT


@given(log_weights)
def test_leave_one_out_means_by_leaving_one_out(value: Tensor) -> None:
    for k, baseline in enumerate(leave_one_out_mean(value)):
        others = torch.cat([value[:k], value[k + 1 :]])
        expected = others.mean(0) if len(others) else torch.zeros_like(baseline)
        assert off_by(baseline, expected) < 10 * EXACT


@given(log_weights.filter(lambda weight: len(weight) > 1))
def test_leave_one_out_bounds_by_putting_the_others_geometric_mean_in(log_weight: Tensor) -> None:
    for k, baseline in enumerate(leave_one_out_log_mean_exp(log_weight)):
        replaced = log_weight.clone()
        replaced[k] = torch.cat([log_weight[:k], log_weight[k + 1 :]]).mean(0)
        assert off_by(baseline, log_mean_exp(replaced)) < 10 * EXACT


@pytest.mark.parametrize("baseline", [leave_one_out_mean, leave_one_out_log_mean_exp])
def test_a_baseline_does_not_depend_on_its_own_particle(baseline: Callable[[Tensor], Tensor]) -> None:
    log_weight = torch.randn(4, 1, dtype=torch.float64)
    jacobian = torch.func.jacrev(baseline)(log_weight).squeeze()
    assert torch.equal(jacobian.diagonal(), torch.zeros(4, dtype=torch.float64))
    assert bool((jacobian + torch.eye(4) != 0).all())


def generalized_pareto_quantiles(shape: float, size: int) -> Tensor:
    """Give the quantiles ((1 - p)^-shape - 1) / shape at evenly spaced p: a sample without noise."""
    p = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return ((1 - p) ** -shape - 1) / shape


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0])
def test_pareto_k_reads_the_shape_of_a_pareto_tail(shape: float) -> None:
    """The tail of a generalised Pareto law beyond any threshold has its shape again.

    The fit sees M = 3 sqrt(K) = 949 tail values and has a standard error of (1 + shape) / sqrt(M); the quantiles have
    no noise, and the prior of ten observations at 0.5 moves it by at most 10 / 949 of the difference.
    """
    weight = 1 + generalized_pareto_quantiles(shape, 100_000)
    fitted = float(pareto_k(weight.log().unsqueeze(1))[0])
    assert abs(fitted - shape) < (1 + shape) / math.sqrt(949)


def test_pareto_k_ignores_scale_order_and_the_body() -> None:
    weight = 1 + generalized_pareto_quantiles(0.6, 1000)
    log_weight = weight.log()
    shuffled = log_weight[torch.randperm(1000)] + 700
    body = log_weight.clone()
    body[:500] = -50.0
    expected = float(pareto_k(log_weight.unsqueeze(1))[0])
    for other in (shuffled, body):
        assert float(pareto_k(other.unsqueeze(1))[0]) == pytest.approx(expected, abs=1e-8)


def test_pareto_k_of_equal_weights_is_minus_infinity() -> None:
    log_weight = torch.zeros(MIN_PARTICLES_FOR_PARETO, 2)
    log_weight[:, 1] = torch.linspace(0, 3, MIN_PARTICLES_FOR_PARETO)
    fitted = pareto_k(log_weight)
    assert float(fitted[0]) == -math.inf and math.isfinite(float(fitted[1]))


def test_pareto_k_warns_of_one_dominant_weight() -> None:
    log_weight = torch.randn(256, 1, dtype=torch.float64)
    log_weight[0] += 20
    assert float(pareto_k(log_weight)[0]) > 0.7
