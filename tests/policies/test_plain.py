"""The plain policy on every action space: steps and spans, against a distribution written by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from latentpg.estimators import ClosedForm
from latentpg.policies import PlainPolicy
from latentpg.policies.heads import BoxHead
from latentpg.programs import Span, act, log_joint, model_parameters
from tests.policies.ready_made import ACTIONS, SEEN, actions_for, observations


def make(actions: str, *, encoder: nn.Module | None = None) -> PlainPolicy:
    return PlainPolicy(SEEN, ACTIONS[actions], hidden=(5, 4), encoder=encoder).double()


def by_hand(actions: str, parameters: Tensor, action: Tensor, policy: PlainPolicy) -> Tensor:
    """Score one action a row from the network's output, each formula written out."""
    if actions == "discrete":
        return parameters.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    if actions == "multi-discrete":
        first, second = parameters[..., :2].log_softmax(-1), parameters[..., 2:].log_softmax(-1)
        return first.gather(-1, action[..., :1]).squeeze(-1) + second.gather(-1, action[..., 1:]).squeeze(-1)
    if actions == "multi-binary":
        one = parameters.sigmoid()
        return (action * one.log() + (1 - action) * (1 - one).log()).sum(-1)
    assert isinstance(policy.head, BoxHead)
    scale = policy.head.log_std.exp()
    rows = -0.5 * ((action - parameters) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return rows.sum(-1)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("kind", ["step", "span"])
def test_log_pi_is_that_of_its_distribution(actions: str, kind: str) -> None:
    policy, obs = make(actions), observations(kind)
    action = actions_for(actions, obs)
    steps = obs.obs if isinstance(obs, Span) else obs
    expected = by_hand(actions, policy.network(steps), action, policy)
    if isinstance(obs, Span):
        expected = (expected * obs.mask).sum(1)
    torch.testing.assert_close(policy.log_pi(obs, action), expected)
    torch.testing.assert_close(log_joint(policy, obs, action, {})[0], expected)
    estimator = ClosedForm()
    torch.testing.assert_close(
        estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action)).log_prob, expected
    )


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("kind", ["step", "span"])
def test_acting_records_what_log_pi_says(actions: str, kind: str) -> None:
    policy, obs = make(actions), observations(kind)
    acted = act(policy, obs)
    assert not acted.latents
    assert acted.action.shape == actions_for(actions, obs).shape
    assert torch.equal(acted.log_joint, policy.log_pi(obs, acted.action))


@pytest.mark.parametrize("actions", ACTIONS)
def test_what_lies_outside_the_mask_is_never_looked_at(actions: str) -> None:
    policy, obs = make(actions), observations("span")
    assert isinstance(obs, Span)
    action = actions_for(actions, obs)
    expected = torch.autograd.grad(policy.log_pi(obs, action).sum() + policy.entropy(obs).sum(), policy_parts(policy))
    spoilt = action.clone()
    spoilt[~obs.mask] = torch.nan if action.is_floating_point() else 77
    dark = Span(obs.obs.masked_fill(~obs.mask.unsqueeze(-1), torch.nan), obs.mask)
    torch.testing.assert_close(policy.log_pi(dark, spoilt), policy.log_pi(obs, action), rtol=0, atol=0)
    torch.testing.assert_close(policy.entropy(dark), policy.entropy(obs), rtol=0, atol=0)
    found = torch.autograd.grad(policy.log_pi(dark, spoilt).sum() + policy.entropy(dark).sum(), policy_parts(policy))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(log_joint(policy, dark, spoilt, {})[0], policy.log_pi(obs, action))


def policy_parts(policy: PlainPolicy) -> list[nn.Parameter]:
    return list(policy.parameters())


def test_entropy_is_minus_the_mean_of_log_pi() -> None:
    """Summed over every action where they are few, and by its formula for a Gaussian."""
    obs = observations("step")
    every = {
        "discrete": torch.arange(4),
        "multi-discrete": torch.cartesian_prod(torch.arange(2), torch.arange(3)),
        "multi-binary": torch.cartesian_prod(*[torch.arange(2.0).double()] * 3),
    }
    for actions, support in every.items():
        policy = make(actions)
        log_pi = torch.stack([policy.log_pi(obs, action.expand(len(obs), *action.shape)) for action in support])
        torch.testing.assert_close(log_pi.exp().sum(0), torch.ones(3).double())
        torch.testing.assert_close(policy.entropy(obs), -(log_pi.exp() * log_pi).sum(0))
    policy = make("box")
    assert isinstance(policy.head, BoxHead)
    with torch.no_grad():
        policy.head.log_std.copy_(torch.tensor([0.3, -1.0]))
    expected = (0.3 - 1.0) + 0.5 * 2 * math.log(2 * math.pi * math.e)
    torch.testing.assert_close(policy.entropy(obs), torch.full((3,), expected).double())


def test_a_spans_entropy_is_the_sum_over_its_steps() -> None:
    policy, obs = make("discrete"), observations("span")
    assert isinstance(obs, Span)
    steps = torch.stack([policy.entropy(obs.obs[:, t]) for t in range(3)], 1)
    torch.testing.assert_close(policy.entropy(obs), (steps * obs.mask).sum(1))


def test_all_parameters_are_thetas() -> None:
    policy = make("box", encoder=nn.Linear(3, 2))
    assert not policy.prior_parameters() and not policy.guide_parameters()
    assert {id(p) for p in model_parameters(policy)} == {id(p) for p in policy.parameters()}
    assert any(p is policy.trunk.encoder.weight for p in policy.decoder_parameters())  # the encoder's too
    assert policy.guide(observations("step"), None) is None  # type: ignore[func-returns-value]
