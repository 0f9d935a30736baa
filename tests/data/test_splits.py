"""Splits: disjoint, complete, by whole episodes, stratified, repeatable."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentpg.data import DataError, Demonstrations, largest_remainders, split_episodes
from latentpg.errors import OptionError

FRACTIONS = ((0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.34, 0.33, 0.33))


def demos(modes: list[int] | int) -> Demonstrations:
    """Episodes of one to three steps in which every number is the episode's own."""
    number = modes if isinstance(modes, int) else len(modes)
    values = [np.full((1 + e % 3, 1), float(e)) for e in range(number)]
    return Demonstrations.from_episodes(values, values, mode=None if isinstance(modes, int) else modes)


@pytest.mark.parametrize(
    ("number", "fractions", "shares"),
    [
        (96, (0.8, 0.1, 0.1), [77, 10, 9]),  # 76.8, 9.6, 9.6: two more to give, the first of equals takes one
        (210, (0.8, 0.1, 0.1), [168, 21, 21]),
        (10, (0.7, 0.2, 0.1), [7, 2, 1]),  # 0.7 * 10 is less than 7 in floating point
        (30, (0.1, 0.8, 0.1), [3, 24, 3]),  # and 0.1 * 30 more than 3
        (3, (0.34, 0.33, 0.33), [1, 1, 1]),
    ],
)
def test_largest_remainders(number: int, fractions: tuple[float, ...], shares: list[int]) -> None:
    assert largest_remainders(number, fractions) == shares


@given(
    modes=st.lists(st.integers(0, 5), min_size=10, max_size=80),
    fractions=st.sampled_from(FRACTIONS),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_a_partition_with_each_modes_share(
    modes: list[int], fractions: tuple[float, ...], seed: int
) -> None:
    split = split_episodes(demos(modes), seed=seed, fractions=fractions)
    assert sorted(torch.cat(split.episodes).tolist()) == list(range(len(modes)))
    assert list(split.sizes) == largest_remainders(len(modes), fractions)
    for part, episodes, fraction in zip(
        (split.train, split.validation, split.test), split.episodes, fractions, strict=True
    ):
        own = torch.repeat_interleave(episodes, 1 + episodes % 3).float()
        assert torch.equal(part.obs[:, 0], own) and torch.equal(part.action[:, 0], own)
        assert part.mode is not None and part.mode.tolist() == [modes[e] for e in episodes]
        for mode in set(modes):
            quota = modes.count(mode) * fraction
            assert -1 < int((part.mode == mode).sum()) - quota < 1 + 1e-9


def test_avoiding_and_lasa_sizes() -> None:
    avoiding = split_episodes(demos([m for m in range(24) for _ in range(4)]), seed=0)
    assert avoiding.sizes == (77, 10, 9)
    assert avoiding.train.mode is not None and avoiding.train.mode.bincount().min() == 3
    lasa = split_episodes(demos([m for m in range(30) for _ in range(7)]), seed=0)
    assert lasa.sizes == (168, 21, 21)
    assert lasa.train.mode is not None and set(lasa.train.mode.bincount().tolist()) == {5, 6}


def test_one_seed_gives_one_split_and_leaves_the_stream_alone() -> None:
    ten = demos(10)
    before = torch.get_rng_state()
    first, again, other = (split_episodes(ten, seed=s, fractions=(0.6, 0.2, 0.2)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.episodes, again.episodes, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.episodes, other.episodes, strict=True))


def test_every_episode_can_land_in_every_part() -> None:
    ten = demos([0] * 5 + [1] * 5)
    tests = [set(split_episodes(ten, seed=s).episodes[2].tolist()) for s in range(200)]
    assert set.union(*tests) == set(range(10))


def test_an_empty_part_is_refused() -> None:
    with pytest.raises(DataError, match=r"the test part would be empty[\s\S]*5 episodes in fractions of 0.8, 0.1, 0.1"):
        split_episodes(demos(5), seed=0)


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.8, 0.2, 0.0), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_are_checked(fractions: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match=r"three numbers > 0 that add up to 1"):
        split_episodes(demos(10), seed=0, fractions=fractions)
