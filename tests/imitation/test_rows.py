"""Rows to fit: what each kind of them is, and that their parts agree."""

import pytest
import torch
from torch import Tensor

from latentpg.data import chunk_rows, episode_rows
from latentpg.errors import ShapeError
from latentpg.estimators import Exact
from latentpg.imitation import FitRows, executed_rows, mean_log_prob, point_rows, span_rows, step_rows
from latentpg.imitation import rows as module
from latentpg.programs import LatentPolicy, Latents, Observations, Span
from latentpg.programs.blocks import scoring_with
from latentpg.programs.run import score_in_one_piece
from tests.imitation.small import made_policy, two_ways, whole_episodes


def test_each_kind_of_rows_is_what_it_says() -> None:
    data = two_ways(episodes=3)  # 3, 4 and 5 steps of one number each
    steps = step_rows(data)
    assert (steps.size, steps.dimensions) == (12, 1.0)
    assert torch.equal(steps.episode, data.episode)
    whole = span_rows(episode_rows(data))
    assert isinstance(whole.obs, Span)
    assert (whole.size, whole.dimensions) == (3, 4.0)
    chunks = chunk_rows(data, horizon=4, execute=2)
    every, done = span_rows(chunks), executed_rows(chunks)
    assert every.size == done.size == 2 + 2 + 3
    assert done.dimensions * done.size == 12  # each step is executed in exactly one row
    assert every.dimensions * every.size == (3 + 1) + (4 + 2) + (4 + 3 + 1)
    assert done.episode.tolist() == [0, 0, 1, 1, 2, 2, 2]
    points = point_rows(torch.zeros(5, 3))
    assert (points.size, points.dimensions, points.episode.tolist()) == (5, 3.0, [0, 1, 2, 3, 4])


def test_a_minibatch_takes_all_three() -> None:
    rows = span_rows(episode_rows(two_ways(episodes=3)))
    some = rows.take(torch.tensor([2, 0]))
    assert isinstance(some.obs, Span) and isinstance(rows.obs, Span)
    assert torch.equal(some.obs.mask, rows.obs.mask[[2, 0]])
    assert torch.equal(some.action, rows.action[[2, 0]])
    assert some.episode.tolist() == [2, 0]


def test_long_rows_are_scored_in_blocks_of_fewer_and_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 5 particles of 5 steps in a piece: one row of three at a time, and nothing else changes."""
    policy, rows = made_policy("mixture"), whole_episodes(episodes=3)
    whole = mean_log_prob(policy, rows, Exact())
    sizes: list[int] = []

    def counting(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Tensor:
        sizes.append(action.shape[0])
        return score_in_one_piece(policy, obs, action, latents)

    monkeypatch.setattr(module, "PIECE", 5 * rows.longest)
    with scoring_with(counting):
        found = mean_log_prob(policy, rows, Exact())
    assert rows.longest == 5 and sizes == [1, 1, 1]  # of three particles each
    assert torch.allclose(found, whole)


@pytest.mark.production
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ((torch.zeros(0, 2), torch.zeros(0, 1), torch.zeros(0)), "an empty split"),
        ((torch.zeros(3, 2), torch.zeros(2, 1), torch.zeros(3)), "`obs`, `action` and `episode`"),
        ((torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 1)), "`obs`, `action` and `episode`"),
    ],
)
def test_parts_that_do_not_agree_are_refused(rows: tuple[torch.Tensor, ...], told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        FitRows(*rows)
