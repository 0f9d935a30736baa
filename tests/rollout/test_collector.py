"""Step rollouts go on where the last one ended, and mask what nothing was decided in."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import Acted, LatentPolicy, act, log_joint, model_parameters
from latentpg.programs.rows import Observations
from latentpg.rollout import CollectorState, EnvironmentFault, Rollout, StepCollector, make_envs, resume_collector
from tests.rollout.scripted import Scripted, members, scripted, vectorize

AnyEnvs = VectorEnv[Any, Any, Any]


def policy_of(envs: AnyEnvs, seed: int = 0) -> MixturePolicy:
    with seeded(seed):
        return MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(8,))


def collect(envs: AnyEnvs, *, lengths: tuple[int, ...], seed: int = 0) -> list[Rollout]:
    """Collect several rollouts in a row with one policy and one stream."""
    policy = policy_of(envs)
    collector = StepCollector(envs, seed=seed)
    with seeded(1):
        return [collector.collect(policy, num_steps=length) for length in lengths]


def join(rollouts: list[Rollout], name: str) -> torch.Tensor:
    return torch.cat([getattr(rollout.transitions, name) for rollout in rollouts])


def test_two_rollouts_are_one_cut_in_two() -> None:
    whole, parts = (collect(scripted(3), lengths=lengths) for lengths in ((30,), (7, 1, 22)))
    for name in ("obs", "action", "log_joint", "reward", "terminated", "truncated", "next_obs"):
        assert torch.equal(join(whole, name), join(parts, name)), name
    assert torch.equal(whole[0].episode_returns, torch.cat([part.episode_returns for part in parts]))
    assert torch.equal(whole[0].episode_lengths, torch.cat([part.episode_lengths for part in parts]))


def test_rows_follow_each_other_and_show_the_true_end() -> None:
    (rollout,) = collect(scripted(3), lengths=(40,))
    rows, shape = rollout.transitions, rollout.time_major
    obs, following, done = shape(rows.obs), shape(rows.next_obs), shape(rows.done)
    assert rollout.mask.all() and rollout.num_transitions == 120
    assert torch.equal(following[..., 1], obs[..., 1] + 1)
    assert torch.equal(following[..., 0], obs[..., 0])  # of the same episode
    goes_on = ~done[:-1]
    assert torch.equal(following[:-1][goes_on], obs[1:][goes_on])
    assert (obs[1:][~goes_on][:, 1] == 0).all() and (~goes_on).sum() > 20


def test_episodes_count_with_all_their_steps() -> None:
    """Lengths 3 and 4 side by side; the reward of step t is t."""
    envs = vectorize([lambda: Scripted(length=3), lambda: Scripted(length=4, truncates=True)])
    first, second = collect(envs, lengths=(5, 7))
    assert first.episode_lengths.tolist() == [3, 4]
    assert first.episode_returns.tolist() == [6.0, 10.0]
    assert second.episode_lengths.tolist() == [3, 4, 3, 3, 4]  # at steps 6, 8, 9, 12 and 12
    assert second.episode_returns.tolist() == [6.0, 10.0, 6.0, 6.0, 10.0]
    assert second.episode_returns.dtype == torch.float64
    assert first.transitions.truncated.sum() == 1 and first.transitions.terminated.sum() == 1


def test_resets_have_seeds_of_their_own_that_hang_on_the_seed_alone() -> None:
    told = []
    for _ in range(2):
        envs = scripted(3)
        collect(envs, lengths=(9, 9), seed=4)
        told.append([env.seeds for env in members(envs)])
    assert told[0] == told[1]
    seeds = [seed for member in told[0] for seed in member]
    assert len(set(seeds)) == len(seeds) and all(type(seed) is int for seed in seeds)
    envs = scripted(3)
    collect(envs, lengths=(9,), seed=5)
    assert not set(seeds) & {seed for env in members(envs) for seed in env.seeds}


def test_reshapes_are_inverse_and_checked() -> None:
    (rollout,) = collect(scripted(3), lengths=(4,))
    reward = rollout.transitions.reward
    assert rollout.time_major(reward)[2, 1] == reward[2 * 3 + 1]
    assert torch.equal(rollout.flat(rollout.time_major(reward)), reward)
    with pytest.raises(ShapeError, match=r"M=12"):
        rollout.time_major(reward[:-1])
    with pytest.raises(ShapeError, match=r"T=4, N=3"):
        rollout.flat(reward.reshape(3, 4))


def test_what_is_recorded_can_be_learnt_from() -> None:
    """It is acted under inference mode, whose tensors no gradient may pass."""
    envs = make_envs("CartPole-v1", 2)
    policy = policy_of(envs)
    rows = StepCollector(envs, seed=0).collect(policy, num_steps=6).transitions
    again = log_joint(policy, rows.obs, rows.action, {name: z.unsqueeze(0) for name, z in rows.latents.items()})[0]
    torch.testing.assert_close(again.detach(), rows.log_joint)
    again.sum().backward()
    assert any(parameter.grad is not None for parameter in model_parameters(policy))
    assert not any(
        t.is_inference() for t in (rows.obs, rows.action, rows.reward, rows.log_joint, *rows.latents.values())
    )


def test_a_way_of_acting_can_be_given() -> None:
    envs = scripted(2)

    def stubborn(policy: LatentPolicy, obs: Observations) -> Acted:
        return dataclasses.replace(act(policy, obs), action=torch.ones(2, dtype=torch.int64))

    rollout = StepCollector(envs, seed=0).collect(policy_of(envs), num_steps=5, acting=stubborn)
    assert rollout.transitions.action.tolist() == [1] * 10


def test_box_actions_are_stored_raw_and_scaled_and_clipped_at_the_edge() -> None:
    told: list[Any] = []

    class Told(Scripted):
        def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            told.append(action)
            return super().step(action)

    space = spaces.Box(np.array([0.0], np.float32), np.array([0.5], np.float32))
    envs = vectorize([lambda: Told(action_space=space)])
    rows = StepCollector(envs, seed=0).collect(policy_of(envs), num_steps=40).transitions
    assert (rows.action.abs() > 1).any()
    np.testing.assert_allclose(np.stack(told), (0.25 + 0.25 * rows.action.numpy()).clip(0, 0.5), atol=1e-7)


# environments that reset themselves


def test_the_resetting_step_of_a_native_environment_is_masked() -> None:
    envs = make_envs("CartPole-v1", 4, vectorization_mode="native")
    first, second = collect(envs, lengths=(40, 30))
    obs, following, done, mask = (
        torch.cat([rollout.time_major(values) for rollout, values in pairs])
        for pairs in (
            [(r, r.transitions.obs) for r in (first, second)],
            [(r, r.transitions.next_obs) for r in (first, second)],
            [(r, r.transitions.done) for r in (first, second)],
            [(r, r.mask) for r in (first, second)],
        )
    )
    assert torch.equal(~mask[1:], done[:-1]) and mask[0].all() and (~mask).sum() > 8
    assert torch.equal(obs[1:], following[:-1])
    assert (obs[~mask][:, 2].abs() > 0.2).any()  # where the pole fell: the true last observation
    assert (following[~mask].abs() <= 0.05).all()  # where the next episode starts
    reward = torch.cat([r.time_major(r.transitions.reward) for r in (first, second)])
    assert torch.equal(reward, mask.float())
    assert first.num_transitions == int(first.mask.sum()) < 160
    # an episode's steps are those between two masked rows
    lengths = torch.cat([r.episode_lengths for r in (first, second)])
    assert sorted(lengths.tolist()) == sorted(
        gap for column in done.T for gap in np.diff([-2, *column.nonzero().flatten().tolist()]) - 1
    )
    assert torch.equal(torch.cat([r.episode_returns for r in (first, second)]), lengths.double())


def test_our_native_environments_need_no_mask() -> None:
    envs = make_envs("latentpg/ArmsBandit-v0", 4, vectorization_mode="native")
    (rollout,) = collect(envs, lengths=(5,))
    assert rollout.mask.all() and rollout.transitions.terminated.all()


def test_resets_within_the_step_are_refused() -> None:
    envs = SyncVectorEnv([Scripted], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(OptionError, match="reset themselves"):
        StepCollector(envs, seed=0)


# what is wrong is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_numbers_that_are_none_are_refused_by_member(what: str, value: float) -> None:
    bad = {"bad_obs": value} if what == "observation" else {"bad_reward": value}
    envs = vectorize([lambda: Scripted(length=4), lambda: Scripted(length=4, **bad)])  # type: ignore[arg-type]
    collector = StepCollector(envs, seed=0)
    with pytest.raises(EnvironmentFault, match=f"member 1 gave a {what} that is not finite"):
        collector.collect(policy_of(envs), num_steps=3)


class IgnoresMasks(gymnasium.vector.VectorWrapper[Any, Any, Any]):
    """Resets every member whatever the mask, and says nothing; ``takes`` lets it take the mask out all the same."""

    def __init__(self, envs: AnyEnvs, *, takes: bool) -> None:
        super().__init__(envs)
        self.takes = takes

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self.takes and options is not None:
            options.pop("reset_mask")
        return self.env.reset(seed=seed)  # type: ignore[arg-type]  # Gymnasium types one seed


@pytest.mark.parametrize(("takes", "sign"), [(True, "another observation of member"), (False, "left unread")])
def test_an_environment_that_ignores_masks_is_found_out(takes: bool, sign: str) -> None:
    class Constant(Scripted):
        def _look(self) -> object:
            return np.zeros(3, dtype=np.float32)

    envs = IgnoresMasks(scripted(3) if takes else vectorize([Constant] * 3), takes=takes)
    collector = StepCollector(envs, seed=0)
    with pytest.raises(EnvironmentFault, match="ignores `reset_mask`") as caught:
        collector.collect(policy_of(envs), num_steps=20)
    assert sign in str(caught.value)


def test_numbers_out_of_range_are_refused() -> None:
    envs = scripted(1)
    with pytest.raises(OptionError, match="`seed`"):
        StepCollector(envs, seed=-1)
    with pytest.raises(OptionError, match="`num_steps`"):
        StepCollector(envs, seed=0).collect(policy_of(envs), num_steps=0)


# going on in another process


def continue_after(state: CollectorState, envs: AnyEnvs, policy: MixturePolicy) -> Rollout:
    with seeded(3):
        return resume_collector(envs, state).collect(policy, num_steps=25)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "latentpg/Corridor-v0"])
@pytest.mark.parametrize("steps", [0, 1, 37])
def test_a_collector_goes_on_bit_for_bit(env_id: str, steps: int) -> None:
    envs = make_envs(env_id, 3)
    policy, collector = policy_of(envs), StepCollector(envs, seed=2)
    if steps:
        with seeded(1):
            collector.collect(policy, num_steps=steps)
    state = collector.state()
    assert all(isinstance(getattr(state, f.name), int | torch.Tensor) for f in dataclasses.fields(state))
    with seeded(3):
        expected = collector.collect(policy, num_steps=25)
    found = continue_after(state, make_envs(env_id, 3), policy)
    for name in ("obs", "action", "reward", "terminated", "truncated", "next_obs"):
        assert torch.equal(getattr(found.transitions, name), getattr(expected.transitions, name)), name
    assert torch.equal(found.episode_returns, expected.episode_returns)
    assert torch.equal(found.episode_lengths, expected.episode_lengths)


def test_a_state_taken_after_a_resumption_is_good_too() -> None:
    envs = make_envs("CartPole-v1", 3)
    policy, collector = policy_of(envs), StepCollector(envs, seed=2)
    with seeded(1):
        collector.collect(policy, num_steps=30)
    resumed = resume_collector(make_envs("CartPole-v1", 3), collector.state())
    with seeded(5):
        collector.collect(policy, num_steps=4)
    with seeded(5):
        resumed.collect(policy, num_steps=4)
    found = continue_after(resumed.state(), make_envs("CartPole-v1", 3), policy)
    with seeded(3):
        expected = collector.collect(policy, num_steps=25)
    assert torch.equal(found.transitions.next_obs, expected.transitions.next_obs)


def test_what_cannot_be_brought_back_is_refused() -> None:
    class Forgetful(Scripted):
        def step(self, action: object) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.np_random = np.random.default_rng()  # its noise hangs on no seed
            return super().step(action)

    makers = [lambda: Forgetful(length=9), lambda: Scripted(length=9)]
    envs = vectorize(makers)
    collector = StepCollector(envs, seed=0)
    collector.collect(policy_of(envs), num_steps=4)
    with pytest.raises(EnvironmentFault, match="member 0 cannot be brought back"):
        resume_collector(vectorize(makers), collector.state())
    with pytest.raises(EnvironmentFault, match="member 1 cannot be brought back"):  # it ends too early
        state = dataclasses.replace(collector.state(), waiting=torch.tensor([True, False]))
        resume_collector(vectorize([Scripted, lambda: Scripted(length=2)]), state)
    with pytest.raises(OptionError, match="2 members"):
        resume_collector(scripted(3), collector.state())
    native = make_envs("CartPole-v1", 2, vectorization_mode="native")
    with pytest.raises(OptionError, match="reset themselves"):
        StepCollector(native, seed=0).state()
    with pytest.raises(OptionError, match="reset themselves"):
        resume_collector(native, collector.state())
