"""Minibatches are a partition, and means count what was told."""

import pytest
import torch

from latentpg.learners.batches import Means, minibatches
from latentpg.numerics.rng import seeded


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 11, 12, 31])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 64])
def test_every_row_comes_once(size: int, batch_size: int) -> None:
    index = 3 * torch.arange(size) + 1
    parts = list(minibatches(index, batch_size))
    assert torch.equal(torch.cat(parts).sort().values, index)
    assert all(len(part) == batch_size for part in parts[:-1])
    if len(parts) > 1:
        assert batch_size / 2 <= len(parts[-1]) < 1.5 * batch_size


def test_a_handful_left_over_joins_the_part_before() -> None:
    lengths = [[len(part) for part in minibatches(torch.arange(size), 4)] for size in (3, 5, 6, 9, 10)]
    assert lengths == [[3], [5], [4, 2], [4, 5], [4, 4, 2]]


def test_rows_are_shuffled_by_the_ambient_stream() -> None:
    def drawn(seed: int) -> list[int]:
        with seeded(seed):
            return torch.cat(list(minibatches(torch.arange(50), 8))).tolist()

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != list(range(50))


def test_means_are_over_as_many_as_were_told() -> None:
    means = Means()
    assert means.values() == {}
    means.add({"always": 1.0, "once": 8.0})
    means.add({"always": 3.0})
    means.add({"always": 8.0, "later": -1.0})
    assert means.values() == {"always": 4.0, "once": 8.0, "later": -1.0}
