"""Gauss-Hermite grids: polynomials up to their degree, and no further."""

import math

import pytest
import torch

from latentpg.errors import OptionError
from latentpg.numerics.quadrature import hermite_grid


def double_factorial(number: int) -> int:
    return math.prod(range(number, 0, -2))


@pytest.mark.parametrize("num_nodes", [1, 2, 5, 16, 64, 256, 512, 1000])
def test_moments_of_the_standard_normal(num_nodes: int) -> None:
    """E x^n is (n - 1)!! for even n and 0 for odd ones, exact for n < 2 * nodes, and not for n = 2 * nodes."""
    nodes, log_weight = hermite_grid(num_nodes, 1)
    x, weight = nodes[:, 0], log_weight.exp()
    assert float(weight.sum()) == pytest.approx(1, abs=1e-14)
    for power in range(min(2 * num_nodes, 20)):
        expected = 0 if power % 2 else double_factorial(power - 1)
        scale = double_factorial(power) + 1
        assert abs(float(weight @ x**power) - expected) / scale < 1e-12
    if num_nodes <= 5:
        power = 2 * num_nodes
        assert abs(float(weight @ x**power) - double_factorial(power - 1)) > 0.5


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
def test_product_grids(dimensions: int) -> None:
    nodes, log_weight = hermite_grid(4, dimensions)
    assert nodes.shape == (4**dimensions, dimensions) and log_weight.shape == (4**dimensions,)
    assert nodes.dtype == log_weight.dtype == torch.float64
    weight = log_weight.exp()
    assert float(weight.sum()) == pytest.approx(1, abs=1e-14)
    covariance = (nodes * weight.unsqueeze(1)).T @ nodes
    assert torch.allclose(covariance, torch.eye(dimensions, dtype=torch.float64), atol=1e-13)


def test_nodes_and_weights_lie_evenly_about_zero() -> None:
    nodes, log_weight = hermite_grid(7, 1)
    assert torch.allclose(nodes, -nodes.flip(0), atol=1e-14)
    assert torch.allclose(log_weight, log_weight.flip(0), atol=1e-12)


def log_moment(power: int) -> float:
    """Return log E x^n = log (n - 1)!! = log n! - n/2 log 2 - log (n/2)! for even n."""
    return math.lgamma(power + 1) - power / 2 * math.log(2) - math.lgamma(power / 2 + 1)


@pytest.mark.parametrize("num_nodes", [64, 512, 1000])
def test_moments_of_every_degree_whose_weights_no_float_holds(num_nodes: int) -> None:
    """Up to the last exact degree, most of which overflow: they are compared as logarithms, to 1e-12 of their size."""
    nodes, log_weight = hermite_grid(num_nodes, 1)
    log_x = nodes[:, 0].abs().log()
    assert num_nodes == 64 or float(log_weight.min()) < math.log(5e-324)
    for power in range(2, 2 * num_nodes, 2):
        found = float(torch.logsumexp(log_weight + power * log_x, 0))
        assert abs(found - log_moment(power)) < 1e-12 * max(1, log_moment(power))


def test_outer_weights_are_right_and_not_rounding() -> None:
    """The mass and mean of N(20, 1/4), as averages over N(0, 1), hang on weights of some 1e-87."""
    nodes, log_weight = hermite_grid(512, 1)
    x = nodes[:, 0]
    log_ratio = -2 * (x - 20) ** 2 + 0.5 * math.log(4) + x**2 / 2
    weight = (log_weight + log_ratio).exp()
    assert float(weight.sum()) == pytest.approx(1, abs=1e-9)
    assert float(weight @ x) == pytest.approx(20, abs=1e-8)


@pytest.mark.parametrize(("num_nodes", "dimensions"), [(0, 1), (-2, 1), (3, -1)])
def test_a_grid_of_no_size_is_refused(num_nodes: int, dimensions: int) -> None:
    with pytest.raises(OptionError, match=rf"(?s)num_nodes.*{num_nodes} and {dimensions}"):
        hermite_grid(num_nodes, dimensions)
