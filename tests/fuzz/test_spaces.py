"""Every kind of space that Gymnasium has, in odd shapes too: a policy acts in it, or says that it does not serve it."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given
from hypothesis import strategies as st

from latentpg.errors import LatentPGError
from latentpg.numerics.rng import seeded
from latentpg.policies import (
    GaussianPolicy,
    MixturePolicy,
    PlainPolicy,
    TwoLevelPolicy,
    decode_actions,
    encode_observations,
)
from latentpg.programs import act
from tests.fuzz.values import examples

pytestmark = pytest.mark.production  # what is fed here is of the wrong type on purpose

shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
types = st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int8, np.int32, np.int64, np.bool_])


def box(shape: tuple[int, ...], kind: Any, low: float, high: float) -> spaces.Box | None:  # noqa: ANN401 (a dtype)
    try:
        return spaces.Box(low, high, shape, kind)
    except (ValueError, AssertionError, OverflowError, TypeError):  # Gymnasium has no such box
        return None


bounds = st.sampled_from([-np.inf, -1e38, -2.0, 0.0, 0.5, 1.0, 255.0, 1e38, np.inf])
boxes = st.builds(box, shapes, types, bounds, bounds).filter(lambda found: found is not None)
leaves: st.SearchStrategy[Any] = st.one_of(
    boxes,
    st.builds(
        lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.sampled_from([-(2**40), -1, 0, 7])
    ),
    st.just(spaces.Discrete(5000)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 4), min_size=1, max_size=3)),
    st.just(spaces.MultiDiscrete(np.ones((2, 1, 2), np.int64))),
    st.builds(spaces.MultiBinary, st.integers(1, 4) | st.lists(st.integers(1, 2), min_size=1, max_size=3)),
    st.builds(spaces.Text, st.integers(1, 3)),
    st.just(spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(2))),
    st.just(spaces.Sequence(spaces.Discrete(2))),
)
everything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(spaces.Tuple),
        st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=2).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=2).map(spaces.OneOf),
    ),
    max_leaves=3,
)
POLICIES = {"mixture": MixturePolicy, "gaussian": GaussianPolicy, "two-level": TwoLevelPolicy, "plain": PlainPolicy}


@pytest.mark.filterwarnings("ignore")  # Gymnasium's own, of boxes that it finds odd
@pytest.mark.parametrize("name", POLICIES)
@examples(20)
@given(observation=everything, action=everything, seed=st.integers(0, 2**20))
def test_a_policy_acts_in_them_or_says_that_it_cannot(name: str, observation: Any, action: Any, seed: int) -> None:  # noqa: ANN401 (any space)
    try:
        with seeded(seed):
            policy = POLICIES[name](observation, action, hidden=(3,))
    except LatentPGError:
        return
    observation.seed(seed)
    empty: Any = create_empty_array(observation, 2)
    batch: Any = concatenate(observation, [observation.sample() for _ in range(2)], empty)
    try:
        obs = encode_observations(observation, batch)
        if not bool(obs.isfinite().all()):  # which a rollout refuses
            return
        with seeded(seed):
            acted = act(policy, obs)
    except LatentPGError:
        return
    env_action = decode_actions(action, acted.action)
    rows = [np.asarray(row) if isinstance(action, spaces.Box) else row for row in env_action]
    assert len(rows) == 2 and all(action.contains(row) for row in rows)
    assert bool(acted.log_joint.isfinite().all())
