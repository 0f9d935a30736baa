"""Spaces as tensors: what an environment gives and takes, and back, for every space there is a head or encoding for."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentpg.errors import LatentPGError, ShapeError, SpaceError, SupportError
from latentpg.policies import (
    MixturePolicy,
    decode_actions,
    encode_actions,
    encode_observations,
    observation_size,
)
from latentpg.programs import act

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
seeds = st.integers(0, 2**20)


def boxes(*, infinite: bool = True) -> st.SearchStrategy[spaces.Box]:
    """Boxes of any shape and float type, with some bounds infinite, on one side or on both."""

    def build(shape: tuple[int, ...], seed: int, dtype: type) -> spaces.Box:
        numbers = np.random.default_rng(seed)
        low = numbers.normal(size=shape)
        high = low + numbers.uniform(0.1, 5.0, size=shape)
        if infinite:
            low = np.where(numbers.random(shape) < 0.3, -np.inf, low)
            high = np.where(numbers.random(shape) < 0.3, np.inf, high)
        return spaces.Box(np.asarray(low, dtype), np.asarray(high, dtype), dtype=dtype)

    return st.builds(build, shapes, seeds, st.sampled_from([np.float32, np.float64]))


discretes = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-7, 7))
multi_discretes = st.builds(
    lambda n, start: spaces.MultiDiscrete(n, start=[start + i for i in range(len(n))]), sizes, st.integers(-3, 3)
) | st.just(spaces.MultiDiscrete(np.array([[2, 3, 1], [4, 1, 2]]), start=np.array([[0, 5, -1], [2, 0, 1]])))
multi_binaries = st.builds(spaces.MultiBinary, st.integers(1, 4) | st.just([2, 3]))

leaves: st.SearchStrategy[spaces.Space[Any]] = boxes() | discretes | multi_discretes | multi_binaries
observation_spaces: st.SearchStrategy[spaces.Space[Any]] = st.recursive(
    leaves,
    lambda inner: (
        st.builds(spaces.Tuple, st.lists(inner, min_size=1, max_size=3))
        | st.builds(spaces.Dict, st.dictionaries(st.sampled_from("dbac"), inner, min_size=1, max_size=3))
    ),
    max_leaves=5,
)
action_spaces: st.SearchStrategy[spaces.Space[Any]] = boxes() | discretes | multi_discretes | multi_binaries


def takes(space: spaces.Space[Any], rows: NDArray[Any]) -> bool:
    return all(space.contains(np.asarray(row) if isinstance(space, spaces.Box) else row) for row in rows)


@pytest.mark.filterwarnings("ignore")  # Gymnasium finds them odd too
@pytest.mark.parametrize(
    "space",
    [spaces.Box(0, 1, (0,)), spaces.Box(0, 1, (2, 0)), spaces.Tuple(()), spaces.Dict({"a": spaces.Dict({})})],
    ids=str,
)
def test_spaces_without_entries_are_refused(space: spaces.Space[Any]) -> None:
    whole = spaces.Box(0, 1, (2,))
    with pytest.raises(SpaceError, match=r"observation space: it has no entries[\s\S]*a constant"):
        MixturePolicy(space, whole)
    if isinstance(space, spaces.Box):
        with pytest.raises(SpaceError, match="action space: it has no entries"):
            MixturePolicy(whole, space)


# ---------------------------------------------------------------------------------------------------- observations


@settings(max_examples=60)
@given(space=observation_spaces, rows=st.integers(1, 4), seed=seeds)
def test_observations_are_flattened_as_gymnasium_does_row_by_row(
    space: spaces.Space[Any], rows: int, seed: int
) -> None:
    space.seed(seed)
    members = [space.sample() for _ in range(rows)]
    # what a vector environment of these members gives
    batch: Any = concatenate(space, members, cast(Any, create_empty_array(space, rows)))
    encoded = encode_observations(space, batch)
    assert encoded.dtype == torch.float32
    assert encoded.shape == (rows, observation_size(space))
    reference = np.stack([np.asarray(spaces.utils.flatten(space, member), dtype=np.float64) for member in members])
    assert np.array_equal(encoded.numpy(), reference.astype(np.float32))


def test_a_dictionary_is_read_by_name_and_not_by_the_order_of_the_batch() -> None:
    space = spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(-9, 9, (1, 2))})
    box, discrete = np.array([[[3.0, 4.0]]], dtype=np.float32), np.array([1])
    wanted = [[3.0, 4.0, 0.0, 1.0]]
    assert encode_observations(space, {"a": box, "b": discrete}).tolist() == wanted
    assert encode_observations(space, {"b": discrete, "a": box}).tolist() == wanted


def test_observations_are_a_copy_of_what_the_environment_may_overwrite() -> None:
    space = spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(2)])
    seen = np.zeros((1, 2), dtype=np.float32)
    encoded = encode_observations(space, (seen, np.array([0])))
    seen[:] = 9.0
    assert encoded.tolist() == [[0.0, 0.0, 1.0, 0.0]]
    box = spaces.Box(0, 1, (2,))
    for encode in (encode_observations, encode_actions):
        batch = np.full((1, 2), 0.5, dtype=np.float32)
        encoded = encode(box, batch)
        before = encoded.clone()
        batch[:] = 9.0
        assert torch.equal(encoded, before)


@settings(max_examples=20)
@given(space=leaves)
def test_the_vectorised_space_is_not_mistaken_for_the_single_one(space: spaces.Space[Any]) -> None:
    """One row too deep: sixteen flattened rows where there are four would go unnoticed downstream."""
    batch = batch_space(space, 4)
    batch.seed(0)
    stacked = np.asarray(batch.sample())[None]
    with pytest.raises(ShapeError):
        encode_observations(space, stacked)


@pytest.mark.parametrize(
    ("space", "batch"),
    [
        (spaces.Box(0, 1, (2,)), np.zeros(2)),
        (spaces.Box(0, 1, (2,)), np.zeros((3, 1))),
        (spaces.Box(0, 1, ()), np.zeros((3, 1))),
        (spaces.Box(0, 1, ()), np.zeros(())),
        (spaces.Discrete(2), np.zeros((3, 1), dtype=np.int64)),
        (spaces.Discrete(2), np.array(1)),
        (spaces.MultiDiscrete([2, 2]), np.zeros(2, dtype=np.int64)),
        (spaces.MultiBinary(2), np.zeros((3, 1), dtype=np.int8)),
    ],
)
def test_batches_of_another_shape_are_refused_both_ways(space: spaces.Space[Any], batch: Any) -> None:  # noqa: ANN401
    for where, encode in (("encode_observations()", encode_observations), ("encode_actions()", encode_actions)):
        with pytest.raises(ShapeError) as caught:
            encode(space, batch)
        assert_teaches(caught.value, where, repr(space), "[N", str(list(np.shape(batch))), "value[None]")


@pytest.mark.parametrize(
    ("space", "batch"),
    [
        (spaces.Discrete(3, start=5), [5, 4]),
        (spaces.Discrete(3, start=5), [5, 8]),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [0, -1]]),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), [[1, 3], [2, 1]]),
    ],
)
def test_categories_outside_their_space_are_not_read_from_the_other_end(space: spaces.Space[Any], batch: Any) -> None:  # noqa: ANN401
    for encode in (encode_observations, encode_actions):
        with pytest.raises(SupportError) as caught:
            encode(space, np.array(batch))
        assert_teaches(caught.value, repr(space), "in row 1 (1 such rows)", str(batch[1]))


# --------------------------------------------------------------------------------------------------------- actions


@settings(max_examples=80)
@given(space=action_spaces, rows=st.integers(1, 4), seed=seeds)
def test_actions_survive_the_round_trip_through_policy_coordinates(
    space: spaces.Space[Any], rows: int, seed: int
) -> None:
    space.seed(seed)
    batch = np.stack([np.asarray(space.sample()) for _ in range(rows)])
    encoded = encode_actions(space, batch)
    back = decode_actions(space, encoded)
    assert back.shape == batch.shape and back.dtype == space.dtype
    if isinstance(space, spaces.Box):
        # policy coordinates are float32, so a number of size x comes back to within x times its rounding
        width = np.abs(batch) + np.abs(np.where(np.isfinite(space.low), space.low, 0.0)) + 10.0
        assert (np.abs(back - batch) <= 4 * np.finfo(np.float32).eps * width).all()
    else:
        assert np.array_equal(back, batch)
        assert torch.equal(encode_actions(space, back), encoded)
    assert takes(space, back)


@settings(max_examples=60)
@given(space=action_spaces, rows=st.integers(1, 4), seed=seeds)
def test_what_a_policy_draws_has_the_coordinates_and_the_environment_takes_it(
    space: spaces.Space[Any], rows: int, seed: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = MixturePolicy(spaces.Box(-1, 1, (2,)), space, hidden=(3,))
        drawn = act(policy, torch.zeros(rows, 2)).action
    told = decode_actions(space, drawn)
    assert told.shape == (rows, *(space.shape or ()))
    assert takes(space, told)
    again = encode_actions(space, told)
    assert again.shape == drawn.shape and again.dtype == drawn.dtype
    if not isinstance(space, spaces.Box):
        assert torch.equal(again, drawn)


@settings(max_examples=30)
@given(space=boxes(infinite=False))
def test_the_bounds_of_a_box_are_minus_one_and_one(space: spaces.Box) -> None:
    ends = encode_actions(space, np.stack([space.low, space.high]))
    assert torch.allclose(ends[0], torch.tensor(-1.0), atol=1e-5)
    assert torch.allclose(ends[1], torch.tensor(1.0), atol=1e-5)
    far = torch.full((1, ends.shape[1]), 1e6)
    assert np.array_equal(decode_actions(space, far)[0], space.high)
    assert np.array_equal(decode_actions(space, -far)[0], space.low)


def test_half_open_and_unbounded_coordinates_keep_their_units() -> None:
    low = np.array([-np.inf, 2.0, -np.inf, -3.0], dtype=np.float32)
    high = np.array([np.inf, np.inf, 5.0, 1.0], dtype=np.float32)
    space = spaces.Box(low, high)
    raw = torch.tensor([[7.0, 3.0, -4.0, 0.5], [-700.0, -3.0, 40.0, 2.0]])
    # only the last one has two ends to be scaled between; the others are clipped where they end
    assert decode_actions(space, raw).tolist() == [[7.0, 3.0, -4.0, 0.0], [-700.0, 2.0, 5.0, 1.0]]
    assert encode_actions(space, np.array([[7.0, 3.0, -4.0, 0.0]])).tolist() == [[7.0, 3.0, -4.0, 0.5]]


def test_a_box_of_no_width_and_one_of_all_numbers() -> None:
    point = spaces.Box(2.0, 2.0, (1,))
    assert decode_actions(point, torch.tensor([[5.0]])).tolist() == [[2.0]]
    assert encode_actions(point, np.array([[2.0]])).tolist() == [[0.0]]
    top = float(np.finfo(np.float64).max)
    everything = spaces.Box(-top, top, (1,), dtype=np.float64)  # high - low is more than a float64 holds
    assert decode_actions(everything, torch.tensor([[0.5]])).tolist() == [[0.5 * top]]
    assert encode_actions(everything, np.array([[0.5 * top]])).tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("space", "coordinates"),
    [
        (spaces.Discrete(3, start=-2), [0, 2]),
        (spaces.MultiDiscrete([2, 3], start=[4, -1]), [[0, 2], [1, 0]]),
        (spaces.MultiBinary(2), [[0.0, 1.0], [1.0, 1.0]]),
    ],
)
def test_discrete_coordinates_count_from_zero(space: spaces.Space[Any], coordinates: list[Any]) -> None:
    told = decode_actions(space, torch.tensor(coordinates))
    start = getattr(space, "start", 0)
    assert np.array_equal(told, np.array(coordinates) + start)
    assert encode_actions(space, told).tolist() == coordinates
    wanted = torch.float32 if isinstance(space, spaces.MultiBinary) else torch.int64
    assert encode_actions(space, told).dtype == wanted


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        (spaces.Box(0, 1, (2,)), (3, 4)),
        (spaces.Box(0, 1, (2,)), (2,)),
        (spaces.Box(0, 1, (2, 2)), (3, 2, 2)),
        (spaces.Discrete(2), (3, 1)),
        (spaces.MultiDiscrete([2, 2]), (4,)),
        (spaces.MultiBinary(2), (3, 4)),
    ],
)
def test_coordinates_of_another_size_do_not_become_other_rows(space: spaces.Space[Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        decode_actions(space, torch.zeros(shape, dtype=torch.int64))
    assert_teaches(caught.value, "`action`", repr(space), str(list(shape)))


def test_decoding_takes_an_action_with_a_gradient() -> None:
    action = torch.zeros(1, 1, requires_grad=True)
    assert decode_actions(spaces.Box(-1, 1, (1,)), action + 0.5).tolist() == [[0.5]]


# -------------------------------------------------------------------------------------------------------- refusals


def assert_teaches(error: BaseException, *phrases: str) -> None:
    text = str(error)
    for phrase in ("expected:", "got:", "fix:", *phrases):
        assert phrase in text, f"`{phrase}` not in:\n{text}"


UNSUITED: list[spaces.Space[Any]] = [
    spaces.Text(5),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Box(0, 1, (1,)), None),
    spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
]


@pytest.mark.parametrize("inner", UNSUITED, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda space: space,
        lambda space: spaces.Tuple([spaces.Discrete(2), space]),
        lambda space: spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": space})}),
    ],
    ids=["bare", "tuple", "nested"],
)
def test_observation_spaces_of_no_fixed_size_are_refused(
    inner: spaces.Space[Any], wrap: Callable[[spaces.Space[Any]], spaces.Space[Any]]
) -> None:
    space = wrap(inner)
    attempts: list[Callable[[], object]] = [
        lambda: observation_size(space),
        lambda: encode_observations(space, None),
        lambda: MixturePolicy(space, spaces.Discrete(2)),
    ]
    for attempt in attempts:
        with pytest.raises(SpaceError) as caught:
            attempt()
        # the part at fault is named, not the whole
        assert_teaches(caught.value, "observation space", f"got:      {inner!r}", "Dict and Tuple", "TransformObs")


@pytest.mark.parametrize(
    "space", [*UNSUITED, spaces.Tuple([spaces.Discrete(2)]), spaces.Dict({"a": spaces.Discrete(2)})], ids=repr
)
def test_action_spaces_without_a_head_are_refused(space: spaces.Space[Any]) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: encode_actions(space, np.zeros((1, 1))),
        lambda: decode_actions(space, torch.zeros(1, 1)),
        lambda: MixturePolicy(spaces.Box(0, 1, (2,)), space),
    ]
    for attempt in attempts:
        with pytest.raises(SpaceError) as caught:
            attempt()
        assert_teaches(caught.value, "action space", f"got:      {space!r}", "MultiBinary", "TransformAction")
        assert isinstance(caught.value, LatentPGError) and isinstance(caught.value, TypeError)


def test_an_integer_box_has_no_head() -> None:
    with pytest.raises(SpaceError) as caught:
        MixturePolicy(spaces.Box(0, 1, (2,)), spaces.Box(0, 255, (2,), dtype=np.uint8))
    assert_teaches(caught.value, "floating-point Box", "uint8")
