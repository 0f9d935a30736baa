"""Gauss-Hermite grids: polynomials up to their degree, and no further."""

import math

import pytest
import torch

from latentpg.numerics.quadrature import hermite_grid


def double_factorial(number: int) -> int:
    return math.prod(range(number, 0, -2))


@pytest.mark.parametrize("num_nodes", [1, 2, 5, 16, 64])
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
