"""The guard between acting and learning."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from latentpg.errors import RecordedLatentError
from latentpg.policies import GaussianPolicy, MixturePolicy, PlainPolicy
from latentpg.programs import Acted, LatentPolicy, act
from latentpg.rollout import ObservationNormalizer, check_record

SEEN, ACTS = spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,))
OBS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
CHANGED = r"log p\(z, a \| s\) is no longer what it was when the policy acted"


def policy_of(kind: str, encoder: nn.Module | None = None) -> LatentPolicy:
    makers = {"mixture": MixturePolicy, "gaussian": GaussianPolicy, "plain": PlainPolicy}
    return makers[kind](SEEN, ACTS, hidden=(8,), encoder=encoder)


def check(policy: LatentPolicy, acted: Acted, obs: torch.Tensor = OBS) -> float:
    return check_record(policy, obs, acted.action, acted.latents, acted.log_joint)


@pytest.mark.parametrize("kind", ["mixture", "gaussian", "plain"])
def test_what_was_recorded_is_let_through(kind: str) -> None:
    policy = policy_of(kind)
    assert check(policy, act(policy, OBS)) < 1e-5


@pytest.mark.parametrize("kind", ["mixture", "gaussian", "plain"])
def test_a_policy_that_moved_is_refused(kind: str) -> None:
    policy = policy_of(kind)
    acted = act(policy, OBS)
    with torch.no_grad():
        policy.decoder_parameters()[0].add_(0.01)
    with pytest.raises(RecordedLatentError, match=CHANGED):
        check(policy, acted)


@pytest.mark.parametrize("kind", ["mixture", "gaussian", "plain"])
def test_rows_out_of_order_are_refused(kind: str) -> None:
    policy = policy_of(kind)
    acted = act(policy, OBS)
    with pytest.raises(RecordedLatentError, match=r"rows out of order"):
        check(policy, acted, OBS.roll(1, 0))


def test_one_changed_row_is_named() -> None:
    policy = policy_of("mixture")
    acted = act(policy, OBS)
    recorded = acted.log_joint.clone()
    recorded[17] += 0.5
    with pytest.raises(RecordedLatentError, match=r"0\.5 nats in row 17"):
        check_record(policy, OBS, acted.action, acted.latents, recorded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_record_that_is_no_number_is_refused(value: float) -> None:
    policy = policy_of("mixture")
    acted = act(policy, OBS)
    recorded = acted.log_joint.clone()
    recorded[5] = value
    with pytest.raises(RecordedLatentError, match=r"in row 5"):
        check_record(policy, OBS, acted.action, acted.latents, recorded)


def test_a_normaliser_that_moved_is_refused() -> None:
    normalizer = ObservationNormalizer(3)
    policy = policy_of("mixture", normalizer)
    acted = act(policy, OBS)
    assert check(policy, acted) < 1e-5
    normalizer.update(OBS)
    with pytest.raises(RecordedLatentError, match=CHANGED):
        check(policy, acted)


def test_a_latent_policy_without_its_latents_is_refused() -> None:
    policy = policy_of("mixture")
    acted = act(policy, OBS)
    with pytest.raises(RecordedLatentError, match=r"no latents were recorded(.|\n)*MixturePolicy"):
        check_record(policy, OBS, acted.action, {}, acted.log_joint)
