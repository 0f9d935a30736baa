"""Chunks and whole episodes as rows: every step once, padding masked, nothing across an episode's end."""

import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from latentpg import MixturePolicy, seeded
from latentpg.data import Demonstrations, chunk_rows, episode_rows
from latentpg.errors import OptionError
from latentpg.estimators import Exact
from tests.data.files import ACTION, OBS

DEMOS = Demonstrations.from_episodes(OBS, ACTION)


def test_episodes_as_rows() -> None:
    rows = episode_rows(DEMOS)
    assert rows.obs.obs.tolist() == [OBS[0].tolist(), [*OBS[1].tolist(), [0, 0]]]
    assert rows.action[..., 0].tolist() == [[0.5, 1.5, 2.5], [3.5, 4.5, 0]]
    assert rows.obs.mask.tolist() == rows.executed.tolist() == [[True] * 3, [True, True, False]]
    assert rows.episode.tolist() == [0, 1] and rows.step.tolist() == [0, 0]


def test_chunks_written_out() -> None:
    rows = chunk_rows(DEMOS, horizon=3, execute=2)
    assert rows.episode.tolist() == [0, 0, 1] and rows.step.tolist() == [0, 2, 0]
    assert rows.action[..., 0].tolist() == [[0.5, 1.5, 2.5], [2.5, 0, 0], [3.5, 4.5, 0]]
    assert rows.obs.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert rows.executed.tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert rows.obs.first[:, 0].tolist() == [0, 4, 10]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    horizon=st.integers(1, 7),
    execute=st.integers(1, 7),
)
def test_every_step_is_executed_in_exactly_one_chunk(lengths: list[int], horizon: int, execute: int) -> None:
    execute = min(execute, horizon)
    numbers = torch.arange(1.0, sum(lengths) + 1).unsqueeze(1)
    pieces = list(numbers.split(lengths))
    rows = chunk_rows(Demonstrations.from_episodes(pieces, pieces), horizon=horizon, execute=execute)
    assert rows.action[rows.executed].flatten().tolist() == numbers.flatten().tolist()
    assert torch.equal(rows.obs.obs[rows.executed], rows.action[rows.executed])
    assert not rows.action[~rows.obs.mask].any()
    overlapping = chunk_rows(Demonstrations.from_episodes(pieces, pieces), horizon=horizon, stride=1)
    assert overlapping.obs.first.flatten().tolist() == numbers.flatten().tolist()


def test_a_minibatch_of_rows() -> None:
    rows = chunk_rows(DEMOS, horizon=2, stride=1)
    some = rows.take(torch.tensor([4, 0]))
    assert some.action[..., 0].tolist() == [[4.5, 0.0], [0.5, 1.5]]
    assert some.obs.mask.tolist() == some.executed.tolist() == [[True, False], [True, True]]
    assert some.episode.tolist() == [1, 0] and some.step.tolist() == [1, 0]


def test_only_executed_steps_are_scored() -> None:
    with seeded(0):
        policy = MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-10, 10, (1,)))
    rows = chunk_rows(DEMOS, horizon=3, execute=2)
    changed = rows.action.masked_fill(~rows.executed.unsqueeze(-1), 123.0)

    def score(action: torch.Tensor) -> torch.Tensor:
        exact = Exact()
        particles = exact.propose(policy, rows.scored, action)
        return exact.estimate(policy, rows.scored, action, particles).log_prob

    assert torch.equal(score(rows.action), score(changed))
    assert not torch.equal(score(rows.action), score(rows.action + 1))


@pytest.mark.parametrize(("horizon", "execute", "stride"), [(0, None, None), (4, 5, None), (4, 0, None), (4, 2, 0)])
def test_chunk_options_are_checked(horizon: int, execute: int | None, stride: int | None) -> None:
    with pytest.raises(OptionError, match=r"1 <= execute <= horizon, and stride >= 1"):
        chunk_rows(DEMOS, horizon=horizon, execute=execute, stride=stride)
