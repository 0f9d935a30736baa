"""Ranges: read off a Box, replaced where it has none, and refused where they would be made up."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from latentpg.errors import OptionError, ShapeError, SpaceError
from latentpg.values import Ranges, ranges_of


def test_each_interval_goes_to_the_unit_one_and_what_lies_outside_to_its_end() -> None:
    obs = torch.tensor([[-1.0, 20.0], [0.0, 15.0], [3.0, 7.0], [-9.0, 99.0]], dtype=torch.float64)
    unit = Ranges((-1.0, 10.0), (3.0, 20.0)).unit(obs)
    assert unit.dtype == torch.float64
    assert unit.tolist() == [[0.0, 1.0], [0.25, 0.5], [1.0, 0.0], [0.0, 1.0]]


def test_a_box_is_flattened() -> None:
    assert ranges_of(spaces.Box(0, 255, (2, 2), dtype=np.uint8)) == Ranges((0.0,) * 4, (255.0,) * 4)


def test_unbounded_dimensions_are_named_and_can_be_given() -> None:
    space = gymnasium.make("CartPole-v1").observation_space
    with pytest.raises(OptionError, match=r"dimensions \[1, 3\] of the space have no finite range") as caught:
        ranges_of(space)
    assert "[-inf, inf], [-inf, inf]" in str(caught.value) and "low=(...), high=(...)" in str(caught.value)
    given = ranges_of(space, low=(-2.4, -3, None, -3.5), high=(2.4, 3, None, 3.5))
    assert given.low[:2] == (-2.4, -3) and given.high[2] == pytest.approx(0.41887903)


def test_half_a_bound_is_none_and_so_is_the_largest_float() -> None:
    largest = np.finfo(np.float32).max
    space = spaces.Box(np.array([0.0, -largest], np.float32), np.array([np.inf, largest], np.float32))
    with pytest.raises(OptionError, match=r"dimensions \[0, 1\]"):
        ranges_of(space)
    with pytest.raises(OptionError, match=r"dimensions \[1\]"):
        ranges_of(space, high=(1.0, None))


def test_a_bound_for_each_dimension() -> None:
    with pytest.raises(OptionError, match=r"`high`\n  expected: 2 bounds, one a dimension\n  got:      1"):
        ranges_of(spaces.Box(-1.0, 1.0, (2,)), high=(3.0,))


def test_only_a_box_has_ranges() -> None:
    with pytest.raises(SpaceError, match=r"a Discrete has no ranges[\s\S]*Identity"):
        ranges_of(spaces.Discrete(3))


@pytest.mark.parametrize("low,high", [((0.0,), (0.0,)), ((1.0,), (0.0,)), ((0.0,), (float("inf"),))])
def test_an_interval_has_an_inside(low: tuple[float], high: tuple[float]) -> None:
    with pytest.raises(OptionError, match=r"the interval of dimension 0\n  expected: finite bounds, low < high"):
        Ranges(low, high)


@pytest.mark.parametrize("low,high", [((), ()), ((0.0,), (1.0, 2.0))])
def test_as_many_bounds_above_as_below(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="one bound a dimension in each, at least one"):
        Ranges(low, high)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_observations_that_are_not_finite_are_named_by_their_row(bad: float) -> None:
    with pytest.raises(OptionError, match=r"`obs` holds NaN or infinity[\s\S]*in row 1"):
        Ranges((0.0,), (1.0,)).unit(torch.tensor([[0.5], [bad]]))


@pytest.mark.production
@pytest.mark.parametrize("shape,fix", [((2,), "unsqueeze"), ((5, 4, 2), "flatten"), ((5, 3), "encode_observations")])
def test_observations_are_flat_rows(shape: tuple[int, ...], fix: str) -> None:
    with pytest.raises(ShapeError, match=rf"`obs`\n  expected: \[B, S=2\][\s\S]*{fix}"):
        Ranges((0.0, 0.0), (1.0, 1.0)).unit(torch.zeros(shape))
