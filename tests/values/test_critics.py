"""Critics: one value a row, the short way through active features, and orthogonal starts."""

import copy
import math
from typing import cast

import pytest
import torch
from torch import nn

from latentpg.errors import OptionError, ShapeError
from latentpg.values import (
    Critic,
    Features,
    Fourier,
    GaussianRBF,
    GridCells,
    Identity,
    LinearCritic,
    NetworkCritic,
    Ranges,
    TileCoding,
    orthogonal_,
)

SQUARE = Ranges((0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize("features", [GridCells(SQUARE), TileCoding(SQUARE), Fourier(SQUARE), GaussianRBF(SQUARE)])
def test_a_linear_critic_is_the_inner_product_whatever_way_it_takes(features: Features) -> None:
    """Value and gradient; several rows in one cell make the gradient add up."""
    critic = LinearCritic(features, dtype=torch.float64)
    critic.load(torch.randn(features.out_features, dtype=torch.float64))
    obs, cotangent = torch.rand(30, 2, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    value = critic(obs)
    assert value.shape == (30,)
    assert torch.allclose(value, features(obs) @ critic.weight, rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad(value @ cotangent, critic.weight)
    assert torch.allclose(gradient, features(obs).T @ cotangent, rtol=0, atol=1e-13)


def test_a_linear_critic_starts_at_zero_and_its_state_is_its_weights() -> None:
    critic = LinearCritic(TileCoding(SQUARE, tilings=2, tiles=2))
    assert critic(torch.rand(5, 2)).tolist() == [0.0] * 5
    assert list(critic.state_dict()) == ["weight"]
    other = copy.deepcopy(critic)
    other.load(torch.ones(18))
    assert critic.weight.abs().sum() == 0.0


def test_both_kinds_are_critics() -> None:
    assert isinstance(LinearCritic(Identity(2)), Critic)
    assert isinstance(NetworkCritic(2), Critic)


@pytest.mark.parametrize("weight", [[1.0], [1.0, float("nan")]])
def test_weights_of_another_size_or_not_finite_are_refused(weight: list[float]) -> None:
    with pytest.raises(OptionError, match="`weight`\n  expected: 2 finite numbers"):
        LinearCritic(Identity(2)).load(weight)


def test_a_network_critic_is_an_mlp_with_one_output() -> None:
    critic, obs = NetworkCritic(3, hidden=(5, 4), activation=nn.ReLU), torch.randn(7, 3)
    first, _, second, _, last = cast(list[nn.Linear], list(critic.network.layers))
    expected = (last.weight @ second(first(obs).relu()).relu().T + last.bias)[0]
    assert critic(obs).shape == (7,)
    torch.testing.assert_close(critic(obs), expected)


def test_an_orthogonal_start_has_equal_singular_values_and_no_biases() -> None:
    critic = NetworkCritic(6, hidden=(8, 4), init="orthogonal")
    layers = [module for module in critic.modules() if isinstance(module, nn.Linear)]
    for layer, gain in zip(layers, (math.sqrt(2.0), math.sqrt(2.0), 1.0), strict=True):
        singular = torch.linalg.svdvals(layer.weight)
        assert torch.allclose(singular, torch.full_like(singular, gain), atol=1e-5)
        assert layer.bias.abs().sum() == 0.0


def test_the_default_start_is_not_orthogonal() -> None:
    layer = cast(nn.Linear, NetworkCritic(6, hidden=(8,)).network.layers[0])
    assert torch.linalg.svdvals(layer.weight).std() > 0.01


def test_orthogonal_takes_layers_without_biases_and_gains_of_ones_own() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))
    orthogonal_(network, gain=3.0, output_gain=0.01)
    for layer, gain in ((network[0], 3.0), (network[2], 0.01)):
        assert torch.allclose(torch.linalg.svdvals(layer.weight), torch.tensor(gain), rtol=1e-4, atol=0)


@pytest.mark.production
def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(OptionError, match="`init`\n  expected: 'torch' or 'orthogonal'"):
        NetworkCritic(3, init="xavier")  # type: ignore[arg-type]


def test_sizes_are_at_least_one() -> None:
    with pytest.raises(OptionError, match="`in_features`"):
        NetworkCritic(0)
    with pytest.raises(OptionError, match="`hidden`"):
        NetworkCritic(3, hidden=(8, 0))


@pytest.mark.production
def test_observations_of_another_shape_are_refused() -> None:
    for critic in (NetworkCritic(3), LinearCritic(Identity(3))):
        for shape in ((3,), (2, 5, 3), (2, 4)):
            with pytest.raises(ShapeError, match=r"`obs`\n  expected: \[B, S=3\]"):
                critic(torch.zeros(shape))
