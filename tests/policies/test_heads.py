"""Action heads: from numbers to a distribution over policy coordinates, and from an action to what a guide reads."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributions as plain
from gymnasium import spaces
from torch import Tensor

from latentpg.errors import OptionError, SpaceError
from latentpg.policies import ChunkPolicy, EpisodePolicy
from latentpg.policies.heads import BoxHead, make_head, scale_floors, set_scale

CASES: list[tuple[spaces.Space[Any], int, tuple[int, ...]]] = [
    (spaces.Discrete(4), 4, ()),
    (spaces.Discrete(1), 1, ()),
    (spaces.Discrete(3, start=-7), 3, ()),
    (spaces.MultiDiscrete([2, 3]), 5, (2,)),
    (spaces.MultiDiscrete(np.array([[2, 3], [1, 4]]), start=np.array([[5, 0], [0, -2]])), 10, (4,)),
    (spaces.MultiBinary(3), 3, (3,)),
    (spaces.MultiBinary((2, 2)), 4, (4,)),
    (spaces.Box(-1, 1, (2,)), 2, (2,)),
    (spaces.Box(-1, 1, (2, 3), dtype=np.float64), 6, (6,)),
    (spaces.Box(-1, 1, ()), 1, (1,)),
]
each_space = pytest.mark.parametrize(("space", "size", "event"), CASES, ids=[repr(space) for space, *_ in CASES])


@each_space
@pytest.mark.parametrize("batch", [(), (5,), (7, 5), (7, 5, 2)])
def test_shapes_and_dtypes(space: spaces.Space[Any], size: int, event: tuple[int, ...], batch: tuple[int, ...]) -> None:
    head = make_head(space)
    assert (head.num_parameters, head.event_shape) == (size, event)
    fn = head(torch.randn(*batch, size))
    assert (tuple(fn.batch_shape), tuple(fn.event_shape)) == (batch, event)
    action = fn.sample()
    assert action.shape == batch + event
    assert action.is_floating_point() == isinstance(space, (spaces.Box, spaces.MultiBinary))
    assert fn.log_prob(action).shape == batch
    embedded = head.embed(action)
    assert embedded.shape == (*batch, head.embedding_size)
    assert embedded.is_floating_point()


def reference(space: spaces.Space[Any], parameters: Tensor, action: Tensor, log_std: Tensor | None) -> Tensor:
    """Score by torch's own distributions, one coordinate after another."""
    match space:
        case spaces.Discrete():
            return plain.Categorical(logits=parameters).log_prob(action)
        case spaces.MultiDiscrete():
            logits = parameters.split([int(n) for n in space.nvec.flatten()], -1)
            return torch.stack(
                [plain.Categorical(logits=part).log_prob(action[..., i]) for i, part in enumerate(logits)]
            ).sum(0)
        case spaces.MultiBinary():
            return plain.Bernoulli(logits=parameters).log_prob(action).sum(-1)
        case _:
            assert log_std is not None
            return plain.Normal(parameters, log_std.exp()).log_prob(action).sum(-1)


@each_space
def test_densities_and_their_gradients_are_those_of_independent_coordinates(
    space: spaces.Space[Any], size: int, event: tuple[int, ...]
) -> None:
    head = make_head(space).double()
    parameters = torch.randn(6, size, dtype=torch.float64, requires_grad=True)
    log_std = getattr(head, "log_std", None)
    if log_std is not None:
        with torch.no_grad():
            log_std.copy_(torch.linspace(-1.0, 1.0, size))
    action = head(parameters).sample()
    wrt = [parameters] if log_std is None else [parameters, log_std]
    ours, theirs = head(parameters).log_prob(action), reference(space, parameters, action, log_std)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(value.square().sum(), wrt) for value in (ours, theirs)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*gradients, strict=True))


@each_space
def test_a_guide_tells_every_action_from_every_other(
    space: spaces.Space[Any], size: int, event: tuple[int, ...]
) -> None:
    head = make_head(space)
    if isinstance(space, spaces.Box):
        actions = torch.randn(5, size)
        assert torch.equal(head.embed(actions), actions)
        return
    if isinstance(space, spaces.Discrete):
        actions = torch.arange(size)
    else:
        values = [range(int(n)) for n in getattr(space, "nvec", torch.full(event, 2)).flatten()]
        actions = torch.tensor(list(itertools.product(*values)))
    codes = head.embed(actions)
    assert ((codes == 0) | (codes == 1)).all()
    assert len(codes.unique(dim=0)) == len(actions)
    if not isinstance(space, spaces.MultiBinary):  # one-hot, coordinate by coordinate
        assert (codes.sum(-1) == max(1, len(event) and event[0])).all()


def test_only_a_box_has_parameters_of_its_own() -> None:
    for space, size, _ in CASES:
        names = dict(make_head(space).named_parameters())
        assert set(names) == ({"log_std"} if isinstance(space, spaces.Box) else set()), space
        if isinstance(space, spaces.Box):
            assert names["log_std"].tolist() == [0.0] * size


def test_a_space_without_a_head_is_refused() -> None:
    for space in (spaces.Text(3), spaces.Tuple([spaces.Discrete(2)]), spaces.Box(0, 5, (1,), dtype=np.int64)):
        with pytest.raises(SpaceError, match="no action head serves it") as caught:
            make_head(space)
        assert repr(space) in str(caught.value)


def test_a_floor_is_added_to_the_learnt_deviation() -> None:
    """Sigma = e^-2 + e^rho: for rho = -2, ln 2 above; for rho = -30, the floor; and a slope of its share everywhere."""
    head = BoxHead(3, min_log_std=-2)
    with torch.no_grad():
        head.log_std.copy_(torch.tensor([-2.0, -30.0, 3.0]))
    expected = [-2 + math.log(2), -2.0, 3 + math.log1p(math.exp(-5))]
    assert head.log_scale.tolist() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(head.log_scale.sum(), head.log_std)
    assert slope.tolist() == pytest.approx([0.5, math.exp(-28), 1 / (1 + math.exp(-5))], rel=1e-4)
    assert head(torch.zeros(3)).variance.sqrt().tolist() == pytest.approx([math.exp(x) for x in expected])


def test_the_density_of_a_point_is_bounded_by_the_floor() -> None:
    for floor, bounded in ((-4.0, True), (None, False)):
        head = BoxHead(2, initial_log_std=-60, min_log_std=floor)
        highest = float(head(torch.zeros(2)).log_prob(torch.zeros(2)).detach())
        assert (highest <= 2 * (4 - 0.5 * math.log(2 * math.pi)) + 1e-5) is bounded


def test_policies_hand_start_and_floor_on() -> None:
    spaces_ = (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)))
    for policy in (
        EpisodePolicy(*spaces_, initial_log_std=-1, min_log_std=-4),
        ChunkPolicy(*spaces_, initial_log_std=-1, min_log_std=-4),
    ):
        assert scale_floors(policy) == [-4.0]
        head = next(each for each in policy.modules() if isinstance(each, BoxHead))
        assert head.log_std.tolist() == [-1.0, -1.0]
    other = make_head(spaces.Discrete(3))
    set_scale(other, initial_log_std=-1, min_log_std=-4)  # there is nothing to set
    assert scale_floors(other) == []


def test_a_floor_that_is_none_is_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(OptionError, match="`min_log_std`"):
            BoxHead(2, min_log_std=value)
        with pytest.raises(OptionError, match="`min_log_std`"):
            set_scale(BoxHead(2), min_log_std=value)
