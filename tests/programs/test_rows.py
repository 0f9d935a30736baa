"""Rows: tensors and spans are counted, sliced and repeated in one way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentpg.errors import ShapeError
from latentpg.programs import Span, num_rows, repeat_rows, take_rows

sizes = st.integers(1, 4)


def span(rows: int, steps: int) -> Span:
    obs = torch.arange(rows * steps * 2, dtype=torch.float32).reshape(rows, steps, 2)
    return Span(obs, torch.arange(rows * steps).reshape(rows, steps) % 3 != 1)


@settings(max_examples=30)
@given(particles=sizes, rows=sizes, steps=sizes)
def test_repeated_rows_fold_back_into_particles_first(particles: int, rows: int, steps: int) -> None:
    """What ``flatten_particles`` stands on: row k * B + b of the repeated batch is row b."""
    batch = span(rows, steps)
    repeated = repeat_rows(batch, particles)
    assert isinstance(repeated, Span) and num_rows(repeated) == particles * rows
    for leaf, original in zip(repeated, batch, strict=True):
        folded = leaf.unflatten(0, (particles, rows))
        assert all(torch.equal(folded[k], original) for k in range(particles))


@settings(max_examples=30)
@given(rows=sizes, steps=sizes, start=st.integers(0, 3), length=st.integers(1, 4))
def test_rows_are_taken_from_every_part(rows: int, steps: int, start: int, length: int) -> None:
    batch = span(rows, steps)
    taken = take_rows(batch, slice(start, start + length))
    assert isinstance(taken, Span)
    assert torch.equal(taken.obs, batch.obs[start : start + length])
    assert torch.equal(taken.mask, batch.mask[start : start + length])
    order = torch.arange(rows).flip(0)
    assert torch.equal(take_rows(batch, order).obs, batch.obs.flip(0))


def test_rows_are_taken_at_another_dimension_and_from_mappings() -> None:
    latents = {"z": torch.arange(6).reshape(2, 3), "style": torch.zeros(2, 3, 4)}
    taken = take_rows(latents, slice(1, 3), dim=1)
    assert taken["z"].tolist() == [[1, 2], [4, 5]]
    assert taken["style"].shape == (2, 2, 4)
    pair = take_rows((torch.arange(3), torch.arange(3)), torch.tensor([2, 0]))
    assert [part.tolist() for part in pair] == [[2, 0], [2, 0]]


def test_rows_without_entries_are_repeated() -> None:
    """Observations of a policy that looks at nothing; the number of rows cannot be told from that of their entries."""
    assert repeat_rows(torch.zeros(3, 0), 4).shape == (12, 0)
    assert repeat_rows(torch.zeros(0, 5), 4).shape == (0, 5)
    blind = repeat_rows(Span(torch.zeros(3, 2, 0), torch.ones(3, 2, dtype=torch.bool)), 4)
    assert blind.obs.shape == (12, 2, 0) and blind.mask.shape == (12, 2)


def test_the_first_step_of_a_span() -> None:
    batch = span(3, 4)
    assert torch.equal(batch.first, batch.obs[:, 0])


@pytest.mark.production
@pytest.mark.parametrize(
    "obs",
    [
        torch.tensor(1.0),
        Span(torch.zeros(3, 2, 1), torch.ones(2, 2, dtype=torch.bool)),
        (),
        "obs",
        [torch.zeros(3)],
    ],
)
def test_what_does_not_lead_with_rows_is_refused(obs: torch.Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        num_rows(obs)
    assert "expected:" in str(caught.value) and "got:" in str(caught.value)
