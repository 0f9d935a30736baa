"""Recorded transitions are what happened: true next observations, endings, seeds, actions in policy coordinates."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import log_joint
from latentpg.rollout import Transitions, make_envs, record_transitions


class Counter(gymnasium.Env[Any, Any]):
    """Counts its steps up from 100 times the first digit that its seed draws, and writes down what it is told."""

    def __init__(self, action_space: spaces.Space[Any], *, length: int, truncates: bool) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-np.inf, np.inf, (1, 2), dtype=np.float64)
        self.length, self.truncates = length, truncates
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.steps, self.start = 0, int(self.np_random.integers(10**6))
        return self._look(), {}

    def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.actions.append(action)
        self.steps += 1
        ended = self.steps == self.length
        return self._look(), float(self.steps), ended and not self.truncates, ended and self.truncates, {}

    def _look(self) -> object:
        return np.array([[self.start, self.steps]], dtype=np.float64)


def vectorize(*makers: Callable[[], gymnasium.Env[Any, Any]]) -> SyncVectorEnv:
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)


def counters(space: spaces.Space[Any], *, num_steps: int, seed: int = 0) -> tuple[SyncVectorEnv, Transitions]:
    """Record two counters: one that terminates after two steps, one that is truncated after three."""
    envs = vectorize(
        lambda: Counter(space, length=2, truncates=False), lambda: Counter(space, length=3, truncates=True)
    )
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(8,))
    with seeded(seed):
        return envs, record_transitions(envs, policy, num_steps=num_steps, seed=seed)


def of_member(rows: Transitions, member: int) -> Transitions:
    return rows.rows(slice(member, None, 2))


def test_rows_are_time_major_and_whole() -> None:
    _, rows = counters(spaces.Discrete(3), num_steps=6)
    assert rows.num_rows == 12
    assert of_member(rows, 0).obs[:, 1].tolist() == [0, 1, 0, 1, 0, 1]
    assert of_member(rows, 1).obs[:, 1].tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.obs.dtype == rows.next_obs.dtype == rows.reward.dtype == torch.float32
    assert rows.latents["z"].shape == rows.log_joint.shape == (12,)


def test_the_next_observation_is_the_true_one_at_an_episodes_end() -> None:
    _, rows = counters(spaces.Discrete(3), num_steps=6)
    assert torch.equal(rows.next_obs[:, 1], rows.obs[:, 1] + 1)
    assert torch.equal(rows.next_obs[:, 0], rows.obs[:, 0])  # of the same episode
    assert torch.equal(rows.reward, rows.next_obs[:, 1])
    for member in (0, 1):
        one = of_member(rows, member)
        goes_on = ~one.done[:-1]
        assert torch.equal(one.next_obs[:-1][goes_on], one.obs[1:][goes_on])
        assert (one.next_obs[:-1][~goes_on] != one.obs[1:][~goes_on]).any(1).all()


def test_termination_and_truncation_are_told_apart() -> None:
    _, rows = counters(spaces.Discrete(3), num_steps=6)
    first, second = of_member(rows, 0), of_member(rows, 1)
    assert first.terminated.tolist() == [False, True] * 3
    assert not first.truncated.any()
    assert second.truncated.tolist() == [False, False, True] * 2
    assert not second.terminated.any()
    assert torch.equal(rows.done, rows.terminated | rows.truncated)


def test_every_reset_has_a_seed_of_its_own() -> None:
    envs, _ = counters(spaces.Discrete(3), num_steps=9)
    seeds = [seed for env in envs.envs for seed in env.unwrapped.seeds]  # type: ignore[attr-defined]
    assert len(seeds) == 5 + 3  # the first reset, and one after each episode that was followed by a step
    assert all(type(seed) is int for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_the_same_seeds_record_the_same_rows() -> None:
    same = [counters(spaces.Discrete(3), num_steps=7, seed=4)[1] for _ in range(2)]
    # the policies differ in their weights only through the stream of the test, which the second one continues
    assert torch.equal(same[0].obs, same[1].obs)
    other = counters(spaces.Discrete(3), num_steps=7, seed=5)[1]
    assert not torch.equal(same[0].obs, other.obs)


def test_the_same_seeds_and_policy_record_the_same_everything() -> None:
    envs = make_envs("CartPole-v1", 3)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    found = []
    for _ in range(2):
        with seeded(2):
            found.append(record_transitions(envs, policy, num_steps=40, seed=9))
    assert found[0].terminated.any()
    for name in ("obs", "action", "log_joint", "reward", "terminated", "truncated", "next_obs"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    assert torch.equal(found[0].latents["z"], found[1].latents["z"])


def test_discrete_actions_that_do_not_start_at_zero() -> None:
    envs, rows = counters(spaces.Discrete(3, start=-4), num_steps=20)
    told = np.array([env.unwrapped.actions for env in envs.envs]).T.flatten()  # type: ignore[attr-defined]
    assert set(rows.action.tolist()) <= {0, 1, 2}
    assert len(set(rows.action.tolist())) > 1
    assert (rows.action.numpy() - 4 == told).all()


def test_box_actions_are_stored_raw_and_clipped_at_the_edge() -> None:
    envs, rows = counters(spaces.Box(np.array([0.0, -1.0]), np.array([0.5, 1.0]), dtype=np.float64), num_steps=40)
    told = np.stack([env.unwrapped.actions for env in envs.envs], 1).reshape(-1, 2)  # type: ignore[attr-defined]
    assert rows.action.shape == (80, 2)
    assert (rows.action.abs() > 1).any()  # beyond the bounds, as the policy drew it
    scaled = np.array([0.25, 0.0]) + np.array([0.25, 1.0]) * rows.action.double().numpy()
    assert told == pytest.approx(np.clip(scaled, [0.0, -1.0], [0.5, 1.0]))


def test_the_recorded_joint_is_that_of_the_recorded_rows() -> None:
    envs = make_envs("CartPole-v1", 2)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    rows = record_transitions(envs, policy, num_steps=5, seed=0)
    latents = {name: value.unsqueeze(0) for name, value in rows.latents.items()}
    torch.testing.assert_close(log_joint(policy, rows.obs, rows.action, latents)[0].detach(), rows.log_joint)


def test_dictionary_observations_are_flattened() -> None:
    class Keyed(Counter):
        def __init__(self) -> None:
            super().__init__(spaces.Discrete(2), length=2, truncates=False)
            self.observation_space = spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(-9, 9, (2,))})

        def _look(self) -> object:
            return {"b": np.int64(self.steps), "a": np.zeros(2, dtype=np.float32)}

    envs = vectorize(Keyed, Keyed)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    rows = record_transitions(envs, policy, num_steps=3, seed=0)
    assert rows.obs.shape == (6, 5)
    assert rows.next_obs[2].tolist() == [0, 0, 0, 0, 1]


def test_environments_that_reset_themselves_are_refused() -> None:
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    with pytest.raises(OptionError, match="reset themselves"):
        record_transitions(envs, policy, num_steps=3, seed=0)


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("CartPole-v77", "did you mean CartPole-v1"),
        ("no such thing", "pprint_registry"),
        ("not_a_module:CartPole-v1", "CartPole-v1"),
    ],
)
def test_unknown_environments_are_named(env_id: str, hint: str) -> None:
    with pytest.raises(OptionError, match=hint) as caught:
        make_envs(env_id, 2)
    assert repr(env_id) in str(caught.value)


@pytest.mark.parametrize("options", [{"num_steps": 0, "seed": 0}, {"num_steps": 1, "seed": -1}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    envs = make_envs("CartPole-v1", 1)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    with pytest.raises(OptionError):
        record_transitions(envs, policy, **options)
    with pytest.raises(OptionError):
        make_envs("CartPole-v1", 0)


@pytest.mark.production
def test_transitions_of_unequal_length_are_refused() -> None:
    def rows(size: int) -> Tensor:
        return torch.zeros(size)

    flags = rows(3).bool()
    with pytest.raises(ShapeError, match="`z`"):
        Transitions(torch.zeros(3, 1), rows(3), {"z": rows(2)}, rows(3), rows(3), flags, flags, torch.zeros(3, 1))
    with pytest.raises(ShapeError, match="`reward`"):
        Transitions(torch.zeros(3, 1), rows(3), {}, rows(3), rows(2), flags, flags, torch.zeros(3, 1))


def test_acting_needs_no_gradient() -> None:
    envs = make_envs("CartPole-v1", 1)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    rows = record_transitions(envs, policy, num_steps=2, seed=0)
    assert isinstance(policy, nn.Module)
    assert not any(value.requires_grad for value in (rows.obs, rows.action, rows.log_joint, rows.latents["z"]))
