"""Scoped streams: repeatable inside, and as if nothing had happened outside."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpg.errors import OptionError
from latentpg.numerics.rng import named_seeds, seeded


def test_a_seed_repeats_what_is_drawn() -> None:
    def values(seed: int) -> list[float]:
        with seeded(seed):
            return torch.rand(4).tolist()

    assert values(7) == values(7) != values(8)


def test_the_stream_outside_goes_on_as_if_nothing_had_been_drawn() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)[1]
    torch.manual_seed(1)
    torch.rand(1)
    with seeded(0):
        torch.rand(100)
    assert torch.equal(torch.rand(1)[0], expected)


def test_the_stream_outside_is_given_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(0):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_scopes_nest() -> None:
    with seeded(1):
        expected = torch.rand(2)[1]
    with seeded(1):
        torch.rand(1)
        with seeded(2):
            torch.rand(5)
        assert torch.equal(torch.rand(1)[0], expected)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(OptionError, match="`seed`"), seeded(-1):
        pass


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.text(max_size=3), unique=True, max_size=5))
def test_named_seeds(seed: int, names: list[str]) -> None:
    split = named_seeds(seed, names)
    assert list(split) == names
    assert all(0 <= value < 2**63 for value in split.values())
    assert len(set(split.values())) == len(names)
    assert named_seeds(seed, names) == split
    longer = named_seeds(seed, [*names, "one more"])
    assert {name: longer[name] for name in names} == split
    assert not names or named_seeds(seed + 1, names) != split
