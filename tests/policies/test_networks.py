"""Networks: only what sees a latent carries particles, and lean ways to the same numbers have the same gradients."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.policies.networks import MLP, ConditionedMLP, one_hot, refuse_batch_dependence, select

sizes = st.integers(1, 4)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [(), (4,), (4, 5, 6)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_an_mlp_is_its_layers_in_order(hidden: tuple[int, ...], batch: tuple[int, ...]) -> None:
    network = MLP(2, hidden, 7, nn.ReLU)
    features = torch.randn(*batch, 2)
    expected = features
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    for layer in linear[:-1]:
        expected = (expected @ layer.weight.T + layer.bias).relu()
    expected = expected @ linear[-1].weight.T + linear[-1].bias
    assert [layer.out_features for layer in linear] == [*hidden, 7]
    assert network(features).shape == (*batch, 7)
    torch.testing.assert_close(network(features), expected)


@settings(max_examples=40)
@given(particles=sizes, rows=sizes, categories=sizes, width=sizes, seed=st.integers(0, 1000))
def test_conditioning_by_addition_is_a_first_layer_on_the_concatenation(
    particles: int, rows: int, categories: int, width: int, seed: int
) -> None:
    """Value and every gradient, at K != B and K = B, with a category and a vector as latents."""
    network = ConditionedMLP(3, [categories, width], (5, 4), 2).double()
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(numbers(seed + i, *parameter.shape))
    features = numbers(seed + 50, rows, 3)
    mode = (numbers(seed + 51, particles, rows).abs() * 100).long() % categories
    style = numbers(seed + 52, particles, rows, width)

    joined = torch.cat(
        [features.expand(particles, rows, 3), nn.functional.one_hot(mode, categories).double(), style], -1
    )
    parts = [network.features.weight, *[cast(nn.Linear, layer).weight for layer in network.latents]]
    first = joined @ torch.cat(parts, 1).T + network.features.bias
    expected = network.rest(first.tanh())
    ours = network(features, [mode, style])
    assert ours.shape == (particles, rows, 2)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value.square().sum(), list(network.parameters())) for value in (ours, expected)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*gradients, strict=True))


def test_the_features_are_multiplied_once_whatever_the_number_of_particles() -> None:
    network = ConditionedMLP(3, [2], (5,), 1)
    seen: list[tuple[int, ...]] = []
    network.features.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    network(torch.randn(4, 3), [torch.randn(9, 4, 2)])
    assert seen == [(4, 5)]


def test_a_network_without_a_hidden_layer_cannot_be_conditioned() -> None:
    with pytest.raises(OptionError, match="at least one width"):
        ConditionedMLP(3, [2], (), 1)


def test_as_many_latents_as_were_declared() -> None:
    network = ConditionedMLP(3, [2, 2], (5,), 1)
    with pytest.raises(ValueError, match="shorter"):
        network(torch.randn(4, 3), [torch.randn(4, 2)])


# ------------------------------------------------------------------------------------------------- one_hot, select


@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 5)])
def test_one_hot_is_torchs_own_in_floats(shape: tuple[int, ...]) -> None:
    index = torch.randint(4, shape)
    assert torch.equal(one_hot(index, 4), nn.functional.one_hot(index, 4).to(torch.get_default_dtype()))


def test_one_hot_and_select_run_under_vmap() -> None:
    index, heads = torch.randint(3, (6, 4)), torch.randn(6, 4, 3, 2)
    assert torch.equal(torch.vmap(lambda i: one_hot(i, 3))(index), one_hot(index, 3))
    expected = torch.stack([select(heads[r], index[r]) for r in range(6)])
    assert torch.equal(torch.vmap(select)(heads, index), expected)


@settings(max_examples=40)
@given(rows=sizes, categories=sizes, width=sizes, lead=st.lists(sizes, max_size=2).map(tuple), seed=st.integers(0, 999))
def test_selection_picks_the_head_of_each_rows_category_and_sends_the_gradient_there(
    rows: int, categories: int, width: int, lead: tuple[int, ...], seed: int
) -> None:
    """Also where a leading dimension is as large as the rows, which indexing gone wrong would not notice."""
    heads = numbers(seed, rows, categories, width).requires_grad_()
    index = (numbers(seed + 1, *lead, rows).abs() * 100).long() % categories
    chosen = select(heads, index)
    assert chosen.shape == (*lead, rows, width)
    by_product = (one_hot(index, categories).to(heads.dtype).unsqueeze(-1) * heads).sum(-2)
    assert torch.equal(chosen, by_product)
    cotangent = numbers(seed + 2, *lead, rows, width)
    (ours,) = torch.autograd.grad((chosen * cotangent).sum(), heads)
    (theirs,) = torch.autograd.grad((by_product * cotangent).sum(), heads)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    one_by_one = torch.zeros_like(heads)
    for position, category in zip(
        torch.cartesian_prod(*[torch.arange(n) for n in (*lead, rows)]).reshape(-1, len(lead) + 1).tolist(),
        index.flatten().tolist(),
        strict=True,
    ):
        one_by_one[position[-1], category] += cotangent[tuple(position)]
    assert torch.allclose(ours, one_by_one, rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------------------- refused layers


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.1), nn.Dropout2d(), nn.AlphaDropout(), nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.LazyBatchNorm1d()],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_look_at_other_rows_or_at_chance_are_named(layer: nn.Module) -> None:
    nested = nn.Sequential(nn.Linear(3, 3), nn.Sequential(layer))
    for module, where in ((layer, "``"), (nested, "`1.0`")):
        with pytest.raises(OptionError) as caught:
            refuse_batch_dependence(module, "encoder")
        for phrase in ("in encoder", type(layer).__name__, where, "LayerNorm"):
            assert phrase in str(caught.value)


def test_layers_of_one_row_alone_are_welcome() -> None:
    refuse_batch_dependence(nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.Linear(3, 3), nn.GELU()), "encoder")
