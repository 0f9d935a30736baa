"""What the benchmarks of exploration and of ratios measure, by written-out arithmetic; nothing is trained here."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.learning import exploration, ratios
from latentpg.envs.corridor import EPISODE_STEPS, HALF_LENGTH, chance_of_reward
from latentpg.learners import GRPOOptions, Rows
from latentpg.learners.scoring import store
from latentpg.numerics.rng import seeded
from latentpg.policies import GaussianPolicy, MixturePolicy, PlainPolicy
from latentpg.programs import act
from latentpg.rollout import make_envs


@pytest.fixture(scope="module")
def spaces() -> tuple[Any, Any]:
    envs = make_envs(exploration.ENV, 1, vectorization_mode="native")
    return envs.single_observation_space, envs.single_action_space


# exploration: the walk


@pytest.mark.parametrize("right", [0.5, 0.9])
def test_the_chance_of_payment_is_the_environments_where_every_position_has_one(right: float) -> None:
    found = exploration.chance_of_payment(np.full(2 * HALF_LENGTH + 1, right))
    assert float(found) == pytest.approx(chance_of_reward(right), rel=1e-12)


def test_the_chance_of_payment_by_hand() -> None:
    # five positions, ends paid: in two steps RR or LL; from +1 right with .8, from -1 left with 1 - .3
    right = np.array([[0.0, 0.3, 0.6, 0.8, 0.0], [0.5, 0.5, 0.5, 0.5, 0.5]])
    found = exploration.chance_of_payment(right, num_steps=2)
    np.testing.assert_allclose(found, [0.6 * 0.8 + 0.4 * 0.7, 0.5])
    # in four steps also those who came back to the middle, .6 * .2 + .4 * .3 of them
    four = exploration.chance_of_payment(right[0], num_steps=4)
    assert float(four) == pytest.approx(0.76 + 0.24 * 0.76)


def linear(layers: nn.ModuleList, place: int = -1) -> nn.Linear:
    found = layers[place]
    assert isinstance(found, nn.Linear)
    return found


def set_logits(policy: nn.Module, last: nn.Linear) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        last.bias.copy_(torch.tensor([0.0, math.log(9.0)]))  # right with .9


def test_a_policy_that_goes_right_with_nine_tenths_has_that_walks_chance(spaces: tuple[Any, Any]) -> None:
    plain, gaussian = PlainPolicy(*spaces, hidden=(4,)), GaussianPolicy(*spaces, prior="standard", hidden=(4,))
    set_logits(plain, linear(plain.network.layers))
    set_logits(gaussian, linear(gaussian.decoder.network.rest.layers))
    for policy, held in ((plain, False), (gaussian, False), (gaussian, True)):
        assert exploration.initial_chance(policy, held=held) == pytest.approx(chance_of_reward(0.9), rel=1e-5)


def test_a_held_latent_walks_one_way_and_one_that_is_drawn_anew_goes_to_and_fro(spaces: tuple[Any, Any]) -> None:
    policy = MixturePolicy(*spaces, num_components=2, hidden=(1,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        linear(policy.decoder.network.latents).weight.copy_(torch.tensor([[-20.0, 20.0]]))  # tanh of these is -1 and 1
        linear(policy.decoder.network.rest.layers).weight.copy_(torch.tensor([[0.0], [math.log(9.0)]]))  # .1 and .9
        linear(policy.prior.layers).bias.copy_(torch.tensor([0.0, math.log(3.0)]))  # 1/4 and 3/4
    assert exploration.initial_chance(policy, held=True) == pytest.approx(chance_of_reward(0.9), rel=1e-5)
    marginal = 0.25 * 0.1 + 0.75 * 0.9
    assert exploration.initial_chance(policy, held=False) == pytest.approx(chance_of_reward(marginal), rel=1e-5)


def test_another_gain_multiplies_the_last_layer_alone(spaces: tuple[Any, Any]) -> None:
    policy = PlainPolicy(*spaces, hidden=(4,))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    exploration.with_gain(policy, 0.04)
    after = policy.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["network.layers.2.weight"]
    torch.testing.assert_close(after["network.layers.2.weight"], 4 * before["network.layers.2.weight"])


def test_the_chance_of_finding_counts_whole_episodes() -> None:
    assert exploration.chance_of_finding(0.1, 3 * EPISODE_STEPS) == pytest.approx(1 - 0.9**3)
    assert exploration.chance_of_finding(1.0, 1.0) == 1.0


def explored(found: list[int | None], chances: list[float]) -> dict[int, dict[str, Any]]:
    return {
        seed: {"found_at": at, "mean_return": float(at is not None), "other_chances": chances, "curve": [(480, 0.0)]}
        for seed, at in enumerate(found)
    }


def test_the_table_of_exploration_counts_seeds_and_averages_chances() -> None:
    rows = exploration.table({"step-gain-4": explored([480, None, 2400], [0.0, 1.0, 1.0, 1.0])})
    assert rows[2:] == [
        "| Gaussian latent, every step | 4 | 2 of 3 | 480, never, 2,400 | 0.75 | 0.67 (0.00 to 1.00) |",
    ]


# ratios: gradients and ratios


def test_measures_of_gradients_by_hand() -> None:
    exact = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    gradient = torch.tensor([[2.0, 1.0], [4.0, -1.0]])
    assert ratios.gradient_measures(gradient, exact) == pytest.approx(
        {
            "variance": 2.0 + 2.0,
            "exact_variance": 2.0,
            "added": 2.0,  # differences (1, 1) and (1, -1)
            "bias_squared": 1.0 - 2.0 / 2,  # their mean (1, 0), less half their variance 0 + 2
            "signal_squared": 4.0 - 2.0 / 2,
        }
    )


def test_measures_of_ratios_by_hand() -> None:
    ratio, exact = torch.tensor([0.5, 1.0, 1.5, 1.0]), torch.tensor([1.0, 1.0, 1.5, 0.5])
    assert ratios.ratio_measures(ratio, exact, clip=0.2) == pytest.approx(
        {
            "ratio_mean": 1.0,
            "ratio_variance": 0.5 / 3,
            "exact_ratio_variance": 0.5 / 3,
            "ratio_error": 0.5 / 4,
            "clipped": 0.5,
        }
    )


def test_points_are_averaged_by_logarithms_within_a_training() -> None:
    def run(*variances: float) -> dict[str, Any]:
        return {"points": [{"elbo": {"first": {"variance": v, "exact_variance": 2.0}}} for v in variances]}

    found = ratios.times_exact({0: run(2.0, 8.0), 1: run(8.0, 8.0)}, "elbo", "first")  # 2 and 4
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 2.0, 4.0))


@pytest.fixture(scope="module")
def mixture() -> tuple[MixturePolicy, Rows]:
    with seeded(3):
        envs = make_envs(ratios.ENV, 1, vectorization_mode="native")
        policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(8,))
        exploration.with_gain(policy, 0.02)  # components twice as far apart
        obs = torch.zeros(40, 1)
        acted = act(policy, obs)
    return policy, Rows(obs, acted.action.clone(), {"z": acted.latents["z"].clone()})


def test_only_a_ratio_with_own_particles_is_not_one_where_nothing_has_moved(
    mixture: tuple[MixturePolicy, Rows],
) -> None:
    policy, rows = mixture
    for name, estimator in ratios.ESTIMATORS.items():
        with seeded(4):
            scored = store(policy, estimator, rows).score(policy, torch.arange(rows.size))
        away = float((scored.log_ratio.detach().exp() - 1).abs().max())
        assert (away > 1e-3) == (name == "fresh"), (name, away)


def test_a_moved_policy_keeps_the_old_guide(mixture: tuple[MixturePolicy, Rows]) -> None:
    old, _ = mixture
    with seeded(5):
        envs = make_envs(ratios.ENV, 1, vectorization_mode="native")
        new = MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(8,))
    moved = ratios.with_guide_of(old, new)

    def same(first: Sequence[nn.Parameter], second: Sequence[nn.Parameter]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    assert same(moved.guide_parameters(), old.guide_parameters())
    assert same(moved.decoder_parameters(), new.decoder_parameters())
    assert not same(new.guide_parameters(), old.guide_parameters())


def test_the_gradient_of_the_surrogate_is_that_of_weighted_log_probabilities(
    mixture: tuple[MixturePolicy, Rows],
) -> None:
    policy, _ = mixture
    envs = make_envs(ratios.ENV, 4, vectorization_mode="native")
    grpo = GRPOOptions(num_groups=1, group_size=4, credit="pooled-to-go", gamma=0.5)
    with seeded(6):
        batch = ratios.rollout(envs, policy, grpo, seed=7)
        scored = store(policy, ratios.ESTIMATORS["exact"], batch.rows).score(policy, torch.arange(128))
    assert bool(batch.advantage.any())
    found = ratios.surrogate_gradient(policy, scored, batch, grpo)
    # where nothing has moved: the mean over the 4 * 32 steps of advantage times grad log pi
    exact = ratios.ESTIMATORS["exact"]
    particles = exact.propose(policy, batch.rows.obs, batch.rows.action)
    value = exact.estimate(policy, batch.rows.obs, batch.rows.action, particles).log_prob
    mean: Tensor = (batch.advantage * value).sum() / 128
    parameters = [*policy.prior_parameters(), *policy.decoder_parameters()]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(mean, parameters)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_measuring_leaves_the_stream_outside_as_it_was_and_the_exact_ratio_adds_nothing(
    mixture: tuple[MixturePolicy, Rows],
) -> None:
    policy, _ = mixture
    envs = make_envs(ratios.ENV, 4, vectorization_mode="native")
    grpo = GRPOOptions(num_groups=1, group_size=4, credit="pooled-to-go", gamma=0.5)
    before = torch.random.get_rng_state()
    found = ratios.measure(envs, policy, policy, ("joint",), grpo, seed=0, num_replicates=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert sorted(found) == ["exact", "joint"]
    exact = found["exact"]["first"]
    assert exact["added"] == exact["ratio_variance"] == exact["ratio_error"] == 0.0 < exact["variance"]
    assert found["joint"]["first"]["added"] > 0.0


def test_a_moving_mean_is_shorter_at_the_ends() -> None:
    assert ratios.smooth([0.0, 2.0, 4.0, 12.0], width=3) == [1.0, 2.0, 6.0, 8.0]


def test_the_table_of_ratios_says_which_seeds_are_missing() -> None:
    runs = {seed: {"mean_return": value} for seed, value in enumerate((4.0, 4.0))}
    whole = {seed: {"mean_return": 7.0} for seed in range(5)}
    rows = ratios.table({"gain-1-elbo": runs, "gain-0.01-elbo": whole})
    assert rows[2 + list(ratios.NAMES).index("elbo")] == "| ELBO | 4 (4 to 4), 2 of 5 seeds | 7 (7 to 7) |"
