"""Demonstrations against spaces and policies."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Normal

from latentpg import MixturePolicy, seeded
from latentpg.data import (
    DataError,
    Demonstrations,
    action_log_jacobian,
    check_policy,
    chunk_rows,
    encode_for_spaces,
    episode_rows,
)
from latentpg.errors import SpaceError
from latentpg.policies import ChunkPolicy, EpisodePolicy
from tests.data.files import ACTION, OBS

SEEN = spaces.Box(-np.inf, np.inf, (2,))
DONE = spaces.Box(np.array([0.0]), np.array([5.0]), dtype=np.float64)


def demos(action: list[np.ndarray]) -> Demonstrations:
    return Demonstrations.from_episodes(OBS, action)


def test_actions_come_in_policy_coordinates() -> None:
    encoded = encode_for_spaces(demos(ACTION), SEEN, DONE)
    assert encoded.action[:, 0].tolist() == pytest.approx([-0.8, -0.4, 0.0, 0.4, 0.8])
    assert encoded.obs.tolist() == demos(ACTION).obs.tolist()


def test_the_jacobian_of_bounds() -> None:
    space = spaces.Box(np.array([0.0, -np.inf]), np.array([4.0, np.inf]), dtype=np.float64)
    assert action_log_jacobian(space) == pytest.approx(-math.log(2))
    assert action_log_jacobian(spaces.Discrete(3)) == 0
    raw = torch.tensor([1.0])
    encoded = encode_for_spaces(
        Demonstrations.from_episodes([[[0.0]]], [[[1.0]]]), spaces.Box(-1, 1, (1,)), spaces.Box(0, 4, (1,))
    ).action[0]
    # a Gaussian about 2 with deviation 2 is a standard one in policy coordinates
    assert torch.allclose(Normal(0.0, 1.0).log_prob(encoded) - math.log(2), Normal(2.0, 2.0).log_prob(raw))


def test_integers_are_counted_from_zero() -> None:
    counted = demos([np.array([5, 6, 7]), np.array([5, 5])])
    assert encode_for_spaces(counted, SEEN, spaces.Discrete(3, start=5)).action.tolist() == [0, 1, 2, 0, 0]
    digits = demos([np.array([[0, 1], [1, 2], [0, 0]]), np.array([[1, 1], [1, 0]])])
    assert encode_for_spaces(digits, SEEN, spaces.MultiDiscrete([2, 3])).action.tolist()[1] == [1, 2]
    assert encode_for_spaces(digits.take(torch.tensor([1])), SEEN, spaces.MultiBinary(2)).action.tolist() == [
        [1, 1],
        [1, 0],
    ]


def test_an_action_on_the_bound_is_inside_whatever_its_type() -> None:
    """0.015 in float64 is more than 0.015 in float32, which is what the bound is."""
    edge = Demonstrations.from_episodes([[[0.0]]], [[[0.015]]], dtype=torch.float64)
    encoded = encode_for_spaces(edge, spaces.Box(-1, 1, (1,)), spaces.Box(-0.015, 0.015, (1,)))
    assert encoded.action.item() == pytest.approx(1.0) and encoded.action.dtype == torch.float64


@pytest.mark.parametrize(
    ("action", "space", "message"),
    [
        (ACTION, spaces.Box(0, 4, (1,)), r"outside Box[\s\S]*\[4\.5\] in episode 1, step 1"),
        ([np.array([0, 3, 1]), np.array([-1, 0])], spaces.Discrete(3), r"3 in episode 0, step 1 \(2 such steps\)"),
        ([np.array([[0, 3]] * 3), np.array([[0, 0]] * 2)], spaces.MultiDiscrete([2, 3]), r"\[0, 3\] in episode 0"),
        ([np.array([[0, 2]] * 3), np.array([[0, 0]] * 2)], spaces.MultiBinary(2), r"\[0, 2\] in episode 0"),
        (ACTION, spaces.Discrete(3), r"integers \['M'\][\s\S]*float32[\s\S]*squeeze"),
        (ACTION, spaces.Box(0, 9, (2,)), r"\['M', 2\][\s\S]*\['M', 1\]"),
        ([each.astype(int) for each in ACTION], spaces.Box(0, 9, (1,)), r"floating-point numbers[\s\S]*int64"),
    ],
)
def test_actions_outside_the_space_are_named(action: list[np.ndarray], space: spaces.Space, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_for_spaces(demos(action), SEEN, space)


def test_other_observations_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[M, S=3\][\s\S]*\[5, 2\]"):
        encode_for_spaces(demos(ACTION), spaces.Box(-1, 1, (3,)), DONE)


def test_a_space_without_a_head_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"no action head serves it"):
        encode_for_spaces(demos(ACTION), SEEN, spaces.Text(3))


def policy(seen: int = 2, done: int = 1) -> MixturePolicy:
    with seeded(0):
        return MixturePolicy(spaces.Box(-1, 1, (seen,)), spaces.Box(-9, 9, (done,)))


def test_a_policy_that_fits_is_let_through_and_the_stream_left_alone() -> None:
    before = torch.get_rng_state()
    check_policy(demos(ACTION), policy())
    assert torch.equal(torch.get_rng_state(), before)


def test_another_floating_point_type_is_refused() -> None:
    with pytest.raises(DataError, match=r"torch.float32[\s\S]*torch.float64[\s\S]*demonstrations.to\(torch.float32\)"):
        check_policy(demos(ACTION).to(torch.float64), policy())


@pytest.mark.production
@pytest.mark.parametrize(("seen", "done"), [(3, 1), (2, 2)])
def test_other_dimensions_than_the_policys_are_refused(seen: int, done: int) -> None:
    with pytest.raises(DataError, match=r"does not run on observations \[M, 2\] and actions \[M, 1\]"):
        check_policy(demos(ACTION), policy(seen, done))


def test_chunks_and_episodes_are_asked_about_as_they_will_be_learnt() -> None:
    data, box = demos(ACTION), spaces.Box(-1, 1, (1,))
    with seeded(0):
        chunks = ChunkPolicy(spaces.Box(-1, 1, (2,)), box, horizon=2, hidden=(4,))
        episodes = EpisodePolicy(spaces.Box(-1, 1, (2,)), box, hidden=(4,))
    check_policy(data, chunks, rows=chunk_rows(data, horizon=2))
    check_policy(data, episodes, rows=episode_rows(data))
    with pytest.raises(DataError, match=r"observations \[M, 2\][\s\S]*likely: *a policy over chunks"):
        check_policy(data, chunks)
    with pytest.raises(DataError, match=r"observations \[B, T=3, 2\] and actions \[B, T=3, 1\]"):
        check_policy(data, chunks, rows=chunk_rows(data, horizon=3))


def test_actions_that_a_policy_cannot_produce_are_refused() -> None:
    with seeded(0):
        counting = MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(3))
    check_policy(demos([np.array([0, 1, 2]), np.array([0, 1])]), counting)
    with pytest.raises(DataError, match=r"the policy|cannot produce"):
        check_policy(demos([np.array([7, 7, 7]), np.array([7, 7])]), counting)
