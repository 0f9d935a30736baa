"""Tanh by the logistic function: values and derivatives are torch's, everywhere that torch.func goes too."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from latentpg.numerics import Tanh, tanh

POINTS = torch.tensor([-30.0, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.7, 2.0, 30.0], dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 4e-16), (torch.float32, 2e-7)])
def test_values_are_torchs_to_one_rounding(dtype: torch.dtype, error: float) -> None:
    x = POINTS.to(dtype)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=error)


def test_with_a_gradient_and_without_the_value_is_the_same_to_the_bit() -> None:
    x = torch.randn(50, 3)
    with torch.no_grad():
        alone = tanh(x)
    assert torch.equal(alone, tanh(x.clone().requires_grad_())) and torch.equal(alone, vmap(tanh)(x))


def test_first_and_second_derivatives() -> None:
    assert torch.autograd.gradcheck(tanh, POINTS.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(tanh, POINTS.clone().requires_grad_())


def test_under_torch_func() -> None:
    def one(x: Tensor) -> Tensor:
        return tanh(x).sum()

    def other(x: Tensor) -> Tensor:
        return torch.tanh(x).sum()

    torch.testing.assert_close(vmap(grad(one))(POINTS), vmap(grad(other))(POINTS))
    torch.testing.assert_close(jacrev(jacrev(one))(POINTS), jacrev(jacrev(other))(POINTS))


def test_as_a_layer() -> None:
    layer = Tanh()
    assert torch.equal(layer(POINTS), tanh(POINTS)) and not list(layer.parameters())
