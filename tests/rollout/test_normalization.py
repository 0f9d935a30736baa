"""Running statistics are NumPy's of all rows in one pile; what is normalised is what they say."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import act, log_joint
from latentpg.rollout import EnvironmentFault, ObservationNormalizer, RewardScaler, RunningMoments, StepCollector
from tests.rollout.scripted import scripted


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_those_of_all_rows(offset: float) -> None:
    rows = np.random.default_rng(0).normal(offset, [1.0, 100.0, 1e-3], size=(1000, 3))
    moments = RunningMoments.of_size(3)
    for part in np.split(rows, [1, 2, 50, 700]):
        moments = moments.update(torch.from_numpy(part))
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-12, atol=1e-12)
    # float64 rounds values about 1e6 to 1e-10, and so a variance of 1e-6 to a part in 1e7
    np.testing.assert_allclose(moments.variance.numpy(), rows.var(0), rtol=1e-12 if offset == 0 else 1e-6)


def test_moments_of_float32_rows_are_taken_in_float64() -> None:
    """In float32 the mean of 100,000 numbers about 4096 is off in its sixth digit, and the variance in its first."""
    rows = np.float32(4096) + np.random.default_rng(0).random((100_000, 1), dtype=np.float32)
    moments = RunningMoments.of_size(1)
    for part in np.split(rows, 100):
        moments = moments.update(torch.from_numpy(part))
    np.testing.assert_allclose(moments.mean.numpy(), rows.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.variance.numpy(), rows.astype(np.float64).var(0), rtol=1e-8)


def test_no_rows_change_nothing_and_updates_leave_the_old_state_alone() -> None:
    before = RunningMoments.of_size(2)
    assert before.update(torch.zeros(0, 2)) is before
    before.update(torch.ones(5, 2))
    assert (before.count, before.mean.tolist(), before.variance.tolist()) == (0, [0, 0], [1, 1])


def test_a_normalizer_does_what_its_formula_says() -> None:
    rows = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    normalizer = ObservationNormalizer(2, clip=1.2)
    assert normalizer(rows[:1]).tolist() == [[1.0, pytest.approx(1.2)]]  # nothing seen: the clip alone
    normalizer.update(rows)
    array = rows.double().numpy()
    expected = ((array - array.mean(0)) / np.sqrt(array.var(0) + 1e-8)).clip(-1.2, 1.2)
    np.testing.assert_allclose(normalizer(rows).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert normalizer(rows).dtype == torch.float32
    masked = ObservationNormalizer(2)
    masked.update(rows, mask=torch.tensor([True, False, True]))
    assert masked.moments.mean.tolist() == [4.5, 5.0] and masked.moments.count == 2


def test_a_normalizer_is_part_of_the_policy_and_still_while_it_learns() -> None:
    envs = scripted(2)
    with seeded(0):
        normalizer = ObservationNormalizer(3)
        policy = MixturePolicy(
            envs.single_observation_space, spaces.Discrete(2), encoder=nn.Sequential(normalizer, nn.Linear(3, 4))
        )
    collector = StepCollector(envs, seed=0)
    first = collector.collect(policy, num_steps=10).transitions
    assert not list(normalizer.parameters())
    normalizer.update(first.obs)
    frozen = copy.deepcopy(normalizer.state_dict())
    rows = collector.collect(policy, num_steps=10).transitions
    assert first.obs[:, 0].max() > 1000 and rows.obs[:, 0].max() > 1000  # rollouts are raw
    again = log_joint(policy, rows.obs, rows.action, {name: z.unsqueeze(0) for name, z in rows.latents.items()})[0]
    torch.testing.assert_close(again.detach(), rows.log_joint)
    assert all(torch.equal(frozen[name], value) for name, value in normalizer.state_dict().items())
    restored = ObservationNormalizer(3)
    restored.load_state_dict(frozen)
    assert torch.equal(restored(rows.obs), normalizer(rows.obs))
    assert act(policy, rows.obs).log_joint.isfinite().all()


def returns_by_hand(reward: np.ndarray, done: np.ndarray, discount: float) -> np.ndarray:
    found, carried = np.zeros_like(reward), np.zeros(reward.shape[1])
    for t in range(len(reward)):
        carried = discount * carried + reward[t]
        found[t] = carried
        carried = np.where(done[t], 0.0, carried)
    return found


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return() -> None:
    rng = np.random.default_rng(0)
    reward, done = rng.normal(2.0, 3.0, size=(60, 4)).astype(np.float32), rng.random((60, 4)) < 0.1
    scaler = RewardScaler.of_size(4, discount=0.9)
    for part in (slice(0, 1), slice(1, 25), slice(25, 60)):  # episodes go on from one rollout to the next
        scaler = scaler.update(torch.from_numpy(reward[part]), torch.from_numpy(done[part]))
    expected = returns_by_hand(reward.astype(np.float64), done, 0.9).var()
    assert scaler.moments.variance.item() == pytest.approx(expected, rel=1e-12)
    scaled = scaler.scale(torch.from_numpy(reward))
    np.testing.assert_allclose(scaled.numpy(), reward / np.sqrt(expected + 1e-8), rtol=1e-6)
    assert scaler.scale(torch.tensor([1e9, -1e9])).tolist() == [10.0, -10.0]


def test_masked_steps_are_no_steps() -> None:
    """A resetting step between two episodes changes nothing, wherever it falls."""
    reward, done = torch.tensor([[1.0], [2.0], [0.0], [4.0]]), torch.tensor([[False], [True], [False], [False]])
    mask = torch.tensor([[True], [True], [False], [True]])
    with_dummy = RewardScaler.of_size(1, discount=0.5).update(reward, done, mask=mask)
    without = RewardScaler.of_size(1, discount=0.5).update(reward[mask].unsqueeze(1), done[mask].unsqueeze(1))
    assert torch.equal(with_dummy.moments.variance, without.moments.variance)
    assert torch.equal(with_dummy.carried, without.carried) and with_dummy.moments.count == 3
    assert with_dummy.moments.variance.item() == pytest.approx(np.var([1.0, 2.5, 4.0]))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RewardScaler.of_size(1, discount=1.1), "`discount`"),
        (lambda: RewardScaler.of_size(1, discount=1, clip=0), "`clip`"),
        (lambda: ObservationNormalizer(2, clip=-1), "`clip`"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(OptionError, match=told):
        make()


def test_what_is_not_finite_is_refused_and_changes_nothing() -> None:
    normalizer = ObservationNormalizer(2)
    with pytest.raises(EnvironmentFault, match="not finite in row 1"):
        normalizer.update(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))
    assert normalizer.moments.count == 0
    with pytest.raises(EnvironmentFault, match="`reward` is not finite in row 0"):
        RewardScaler.of_size(1, discount=0.5).update(torch.tensor([[float("inf")]]), torch.tensor([[False]]))


@pytest.mark.production
def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="S=2"):
        RunningMoments.of_size(2).update(torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="N=2"):
        RewardScaler.of_size(2, discount=0.5).update(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.bool))
