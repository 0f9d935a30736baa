"""Normalisation: plain numbers, there and back, and the Jacobian that makes densities comparable."""

import json
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from latentpg.data import DataError, Demonstrations, Normalization
from latentpg.errors import OptionError

DEMOS = Demonstrations.from_episodes(
    [[[0.0, 7.0], [4.0, 7.0]], [[8.0, 7.0]]], [[[1.0], [2.0]], [[6.0]]], dtype=torch.float64
)


def test_statistics_are_of_all_rows() -> None:
    normalization = Normalization.of(DEMOS, floor=0.01)
    assert normalization.obs_mean == (4.0, 7.0)
    assert normalization.obs_std == pytest.approx((math.sqrt(32 / 3), 0.01), rel=1e-15)
    assert normalization.action_mean == (3.0,)
    assert normalization.action_std == pytest.approx((math.sqrt(14 / 3),), rel=1e-15)
    assert normalization.floored == ("obs 1",)


def test_normalised_rows_have_mean_zero_and_deviation_one() -> None:
    applied = Normalization.of(DEMOS).apply(DEMOS)
    assert torch.allclose(applied.obs[:, 0].mean(), torch.zeros((), dtype=torch.float64), atol=1e-15)
    assert torch.allclose(applied.action.square().mean(), torch.ones((), dtype=torch.float64), rtol=1e-14)
    assert applied.obs[:, 1].tolist() == [0, 0, 0]
    assert torch.equal(applied.episode, DEMOS.episode)


def test_the_jacobian_makes_the_density_that_of_the_raw_actions() -> None:
    normalization = Normalization.of(DEMOS)
    mean, std = normalization.action_mean[0], normalization.action_std[0]
    standard = Normal(torch.zeros((), dtype=torch.float64), 1.0).log_prob(normalization.normalize_action(DEMOS.action))
    raw = Normal(torch.tensor(mean, dtype=torch.float64), std).log_prob(DEMOS.action)
    assert torch.allclose(standard + normalization.log_jacobian, raw, rtol=1e-14)
    # the other way round it would be twice the logarithm off
    assert not torch.allclose(standard - normalization.log_jacobian, raw, rtol=1e-3)


def test_there_and_back() -> None:
    normalization = Normalization.of(DEMOS)
    back = normalization.denormalize_action(normalization.normalize_action(DEMOS.action))
    assert torch.allclose(back, DEMOS.action, rtol=1e-15)


def test_numbers_survive_json_exactly() -> None:
    normalization = Normalization.of(DEMOS)
    assert Normalization.from_dict(json.loads(json.dumps(normalization.as_dict()))) == normalization


def test_integer_actions_stay_as_they_are() -> None:
    counted = Demonstrations.from_episodes([[[0.0], [2.0]]], [np.array([1, 0])])
    normalization = Normalization.of(counted)
    assert normalization.action_std == () and normalization.log_jacobian == 0
    assert normalization.apply(counted).action.tolist() == [1, 0]
    assert normalization.denormalize_action(counted.action).tolist() == [1, 0]


@pytest.mark.parametrize("floor", [1e-4, 1e-6])
def test_the_encoder_does_what_the_statistics_do(floor: float) -> None:
    normalization = Normalization.of(DEMOS, floor=floor)
    encoder = normalization.encoder()
    assert torch.allclose(encoder(DEMOS.obs), normalization.normalize_obs(DEMOS.obs), rtol=1e-12)
    off = torch.tensor([[4.0, 7.0 + 3 * floor]], dtype=torch.float64)
    assert encoder(off)[0, 1].item() == pytest.approx(3.0, rel=1e-3)
    assert set(encoder.state_dict()) == {"count", "mean", "variance"}


def test_other_sizes_are_refused() -> None:
    normalization = Normalization.of(DEMOS)
    with pytest.raises(DataError, match=r"`obs` of another size[\s\S]*\[\.\.\., 2\]"):
        normalization.normalize_obs(torch.zeros(5, 1))
    with pytest.raises(DataError, match=r"`action` of another size"):
        normalization.normalize_action(torch.zeros(5, 3))


def test_what_a_file_could_hold_is_checked() -> None:
    whole = Normalization.of(DEMOS).as_dict()
    with pytest.raises(DataError, match=r"no obs_std, floor"):
        Normalization.from_dict({name: value for name, value in whole.items() if name not in ("obs_std", "floor")})
    with pytest.raises(DataError, match=r"deviations >= floor"):
        Normalization.from_dict(whole | {"action_std": [0.0]})
    with pytest.raises(DataError, match=r"as many in both"):
        Normalization.from_dict(whole | {"obs_mean": [0.0]})
    with pytest.raises(DataError, match=r"finite numbers"):
        Normalization.from_dict(whole | {"obs_mean": [0.0, math.nan]})
    with pytest.raises(OptionError, match=r"`floor`"):
        Normalization.of(DEMOS, floor=0.0)
