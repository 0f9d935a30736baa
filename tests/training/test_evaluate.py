"""Evaluation: whole episodes with seeds of their own, acted as a name says."""

import pytest
import torch
from gymnasium import spaces
from torch.distributions import Distribution, Exponential

from latentpg.errors import OptionError, SpaceError
from latentpg.numerics.statistics import mean_interval
from latentpg.policies import GaussianPolicy, MixturePolicy, PlainPolicy, TwoLevelPolicy
from latentpg.programs import act, conditionals
from latentpg.programs.distributions import Categorical, DiagNormal, MultiBernoulli, MultiCategorical
from latentpg.rollout import make_envs
from latentpg.training.evaluate import act_by_decoder_mean, center_of, evaluate

OBS = spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    ("distribution", "center"),
    [
        (DiagNormal(torch.tensor([[1.0, -2.0]]), torch.zeros(2)), [[1.0, -2.0]]),
        (Categorical(torch.tensor([[0.0, 3.0, 1.0]])), [1]),
        (MultiCategorical(torch.tensor([[0.0, 3.0, 1.0, 0.0, 2.0]]), (2, 3)), [[1, 2]]),
        (MultiBernoulli(torch.tensor([[0.5, -0.5]])), [[1.0, 0.0]]),
    ],
)
def test_the_center_of_a_distribution(distribution: Distribution, center: list[object]) -> None:
    assert center_of(distribution).tolist() == center


def test_a_distribution_without_a_known_center_is_refused() -> None:
    with pytest.raises(SpaceError, match="no mean is known"):
        center_of(Exponential(torch.ones(2)))


@pytest.mark.parametrize("make", [MixturePolicy, GaussianPolicy, TwoLevelPolicy])
@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]
)
def test_the_decoders_mean_at_a_sampled_latent(make: type, space: spaces.Space) -> None:
    policy, obs = make(OBS, space), torch.randn(5, 3)
    state = torch.get_rng_state()
    acted = act_by_decoder_mean(policy, obs)
    torch.set_rng_state(state)
    drawn = act(policy, obs)
    assert all(torch.equal(acted.latents[name], drawn.latents[name]) for name in drawn.latents)
    latents = {name: value.unsqueeze(0) for name, value in drawn.latents.items()}
    assert torch.equal(acted.action, center_of(conditionals(policy, obs, latents)["action"])[0])
    assert acted.action.shape == drawn.action.shape and acted.action.dtype == drawn.action.dtype


def test_a_plain_policy_acts_by_its_own_mean() -> None:
    policy, obs = PlainPolicy(OBS, spaces.Box(-1, 1, (2,))), torch.randn(5, 3)
    acted = act_by_decoder_mean(policy, obs)
    assert torch.equal(acted.action, policy.network(obs)) and acted.latents == {}
    assert torch.equal(acted.log_joint, policy.log_pi(obs, acted.action))


def test_an_evaluation_hangs_on_its_seed_alone() -> None:
    envs = make_envs("CartPole-v1", 2)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    before = torch.get_rng_state()
    first = evaluate(envs, policy, num_episodes=6, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = evaluate(envs, policy, num_episodes=6, seed=1), evaluate(envs, policy, num_episodes=6, seed=2)
    assert torch.equal(first.returns, again.returns) and not torch.equal(first.returns, other.returns)
    assert torch.equal(first.returns, first.lengths.double())  # a reward of one a step
    mean = mean_interval(first.returns)
    assert first.metrics() == {
        "eval/mean_reward": mean.value,
        "eval/mean_reward_low": mean.low,
        "eval/mean_reward_high": mean.high,
        "eval/mean_ep_length": mean.value,
        "eval/episodes": 6.0,
    }


def test_an_unknown_way_of_acting_is_refused() -> None:
    envs = make_envs("CartPole-v1", 1)
    policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    with pytest.raises(OptionError, match="did you mean decoder-mean"):
        evaluate(envs, policy, num_episodes=4, seed=0, acting="decodermean")


def test_a_policy_without_latent_and_distribution_has_no_decoder_mean() -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PlainPolicy(OBS, spaces.Discrete(2))
            self.model, self.guide = self.inner.model, self.inner.guide
            self.prior_parameters = self.guide_parameters = self.inner.prior_parameters
            self.decoder_parameters = self.inner.decoder_parameters

    with pytest.raises(OptionError, match="no distribution of its own"):
        act_by_decoder_mean(Bare(), torch.zeros(2, 3))
