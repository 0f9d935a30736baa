"""Gradient fits: to the least-squares solution, to exact values round by round, and refusals that leave parameters."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.rng import seeded
from latentpg.oracles.grid_world import grid_world
from latentpg.values import (
    TD0,
    Experience,
    Fourier,
    LinearCritic,
    MonteCarlo,
    NetworkCritic,
    Ranges,
    TDLambda,
    explained_variance,
    fit_critic,
    fit_to_targets,
    solve_least_squares,
)
from tests.values.tabular import double, ending, sampled, table


def noisy_rows() -> tuple[LinearCritic, Tensor, Tensor]:
    """Rows that no line fits, and a critic of four cosines."""
    obs = torch.rand(60, 1, dtype=torch.float64)
    target = (7.0 * obs[:, 0]).sin() + 0.3 * torch.randn(60, dtype=torch.float64)
    return LinearCritic(Fourier(Ranges((0.0,), (1.0,)), order=3), dtype=torch.float64), obs, target


def test_gradient_monte_carlo_reaches_the_least_squares_solution() -> None:
    """Plain gradient steps shrink every error by at most 1 - step · (smallest eigenvalue of the mean of φφ')."""
    critic, obs, target = noisy_rows()
    solved = LinearCritic(critic.features, dtype=torch.float64)
    solve_least_squares(solved, obs, target)
    phi = critic.features(obs)
    curvature = torch.linalg.eigvalsh(phi.T @ phi / len(obs))
    step = 1.0 / curvature[-1].item()
    sweeps = math.ceil(math.log(1e-10) / math.log1p(-step * curvature[0].item()))
    assert sweeps < 1000
    fit_critic(
        critic, obs, target, epochs=sweeps, batch_size=len(obs), optimizer=torch.optim.SGD([critic.weight], lr=step)
    )
    assert (critic.weight - solved.weight).norm() <= 1e-9 * solved.weight.norm()


def test_adam_on_minibatches_comes_near_it() -> None:
    """Within a thousandth of the least loss, after 60 epochs each at three falling rates."""
    critic, obs, target = noisy_rows()
    solved = LinearCritic(critic.features, dtype=torch.float64)
    solve_least_squares(solved, obs, target)
    optimizer = torch.optim.Adam(critic.parameters())
    fits = []
    for learning_rate in (0.1, 0.01, 0.001):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        fits.append(fit_critic(critic, obs, target, epochs=60, batch_size=20, optimizer=optimizer))
    least, reached = (0.5 * (each(obs) - target).square().mean().item() for each in (solved, critic))
    assert least <= reached < 1.001 * least
    assert fits[-1].explained_variance == pytest.approx(1.0 - (target - critic(obs)).var().item() / target.var().item())


def test_losses_are_means_over_an_epoch_and_fall() -> None:
    """One batch an epoch: the first loss is that of the critic as it came, half the mean square of the targets."""
    critic, obs, target = noisy_rows()
    fit = fit_critic(critic, obs, target, epochs=3, batch_size=60, learning_rate=0.05)
    assert fit.losses[0] == pytest.approx(0.5 * target.square().mean().item())
    assert fit.losses[0] > fit.losses[1] > fit.losses[2]


def every_action_once() -> tuple[Experience, Tensor]:
    """Take every action of the grid world once in every state, as cut steps, and the values of choosing evenly.

    The moves are certain, so that a mean over these rows is the expectation exactly.
    """
    mdp = grid_world()
    pi = torch.full((9, 5), 0.2, dtype=torch.float64)
    hot = torch.eye(9, dtype=torch.float64)
    cut = torch.ones(1, 45, dtype=torch.bool)
    following = mdp.transition.argmax(-1).flatten()
    obs, next_obs = hot.repeat_interleave(5, 0)[None], hot[following][None]
    return Experience(obs, mdp.reward.reshape(1, 45), next_obs, ~cut, cut), mdp.state_values(pi)


def test_rounds_of_tabular_td0_reach_the_exact_values() -> None:
    """With a step that sets every state to its mean target, a round is the Bellman operator: 0.9^300 < 2e-14."""
    steps, exact = every_action_once()
    critic = table(9)
    fit_to_targets(
        critic, steps, TD0(discount=0.9), rounds=300, batch_size=45, optimizer=torch.optim.SGD([critic.weight], lr=9.0)
    )
    assert (critic.weight - exact).abs().max() < 1e-11


def test_a_round_keeps_its_targets_constant() -> None:
    """One round, many epochs from 0: the critic becomes the mean reward, and not a step further towards V."""
    steps, _ = every_action_once()
    critic = table(9)
    optimizer = torch.optim.SGD([critic.weight], lr=9.0)
    fit_to_targets(critic, steps, TD0(discount=0.9), rounds=1, epochs=20, batch_size=45, optimizer=optimizer)
    assert torch.allclose(critic.weight, steps.reward.reshape(9, 5).mean(1), atol=1e-13)


def test_a_network_fitted_by_td0_comes_near_the_exact_values() -> None:
    """Values lie in [-3.51, -2.63]; the fit is stopped by patience: within 2 % of that span in every state."""
    steps, exact = every_action_once()
    with seeded(0):
        critic = NetworkCritic(9, hidden=(32,), init="orthogonal").double()
        fit_to_targets(critic, steps, TD0(discount=0.9), rounds=400, epochs=4, batch_size=45, learning_rate=1e-2)
    with torch.no_grad():
        worst = (critic(torch.eye(9, dtype=torch.float64)) - exact).abs().max()
    assert worst < 0.02 * (exact.max() - exact.min())


@pytest.mark.parametrize("target", [MonteCarlo(discount=0.8), TDLambda(discount=0.8, trace_decay=0.5)], ids=repr)
def test_every_target_can_be_fitted(target: MonteCarlo | TDLambda) -> None:
    """Linear least squares on the same targets, computed once from the critic as it came, is the answer of a round."""
    mdp, pi = ending()
    steps, critic, solved = sampled(mdp, pi, steps=30, copies=1), table(4), table(4)
    solve_least_squares(solved, steps.obs.flatten(0, 1), target(critic, steps).flatten())
    optimizer = torch.optim.SGD([critic.weight], lr=3.0)  # each live state is a third of the rows
    fits = fit_to_targets(critic, steps, target, epochs=2, batch_size=90, optimizer=optimizer)
    assert len(fits) == 1 and len(fits[0].losses) == 2
    assert torch.allclose(critic.weight, solved.weight, atol=1e-12)


def test_clipping_stops_a_fit_at_the_edge_of_its_range() -> None:
    """From 0 towards 3 in steps of 0.1: the value stops moving where it has passed 0.5."""
    critic, one = table(1), torch.ones(4, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD([critic.weight], lr=0.1 / 3.0)
    fit_critic(critic, one, 3.0 * one[:, 0], epochs=50, clip_range=0.5, optimizer=optimizer)
    value = critic.weight.item()
    assert 0.5 <= value < 0.6
    fit_critic(critic, one, 3.0 * one[:, 0], epochs=50, clip_range=0.5, optimizer=optimizer)
    assert value + 0.5 <= critic.weight.item() < value + 0.6  # a new fit starts from where it is


def test_long_gradients_are_scaled_to_their_greatest_length() -> None:
    """Gradients of (-300, -400) and of (-0.3, -0.4), each with one step of size 1 and length 2 at most."""
    for target, expected in (([600.0, 800.0], [1.2, 1.6]), ([0.6, 0.8], [0.3, 0.4])):
        critic = table(2)
        optimizer = torch.optim.SGD([critic.weight], lr=1.0)
        fit_critic(critic, torch.eye(2).double(), double(target), epochs=1, optimizer=optimizer, max_grad_norm=2.0)
        assert critic.weight.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_same_stream_gives_the_same_fit_and_another_gives_another() -> None:
    fitted = []
    for seed in (1, 1, 2):
        with seeded(9):
            critic, obs, target = noisy_rows()
        with seeded(seed):
            fit_critic(critic, obs, target, epochs=2, batch_size=7, learning_rate=0.1)
        fitted.append(critic.weight.detach())
    assert torch.equal(fitted[0], fitted[1]) and not torch.equal(fitted[0], fitted[2])


def test_frozen_parameters_stay() -> None:
    critic = NetworkCritic(2, hidden=(4,))
    first = next(critic.parameters())
    first.requires_grad_(False)
    before = first.clone()
    fit_critic(critic, torch.randn(8, 2), torch.randn(8), epochs=2, learning_rate=0.1)
    assert torch.equal(first, before)


def test_explained_variance_golden() -> None:
    """Targets 1, 2, 3 of variance 2/3. A constant offset does not count; a constant explains nothing."""
    target = double([1.0, 2.0, 3.0])
    assert explained_variance(target + 5.0, target) == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(target), target) == pytest.approx(0.0)
    assert explained_variance(-target, target) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(target, torch.full_like(target, 1000000.1)))


# --- refused, with the parameters as they were ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["obs", "target"])
def test_rows_that_are_not_finite_are_refused(name: str) -> None:
    rows = {"obs": torch.ones(3, 1), "target": torch.ones(3)}
    rows[name] = rows[name] * float("nan")
    critic = NetworkCritic(1)
    before = [parameter.clone() for parameter in critic.parameters()]
    with pytest.raises(OptionError, match=rf"fit_critic\(\): `{name}` holds NaN or infinity"):
        fit_critic(critic, rows["obs"], rows["target"])
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    """The square of 1e30 does not fit a float32."""
    critic = NetworkCritic(1, hidden=())
    before = [parameter.clone() for parameter in critic.parameters()]
    with pytest.raises(OptionError, match="the loss or its gradient is NaN or infinite; this step was not taken"):
        fit_critic(critic, torch.ones(3, 1), torch.full((3,), 1e30))
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"epochs": 0}, "`epochs`\n  expected: an integer >= 1"),
        ({"batch_size": 0}, "`batch_size`\n  expected: an integer >= 1"),
        ({"learning_rate": 0.0}, "`learning_rate`\n  expected: a positive number"),
        ({"max_grad_norm": -1.0}, "`max_grad_norm`\n  expected: a positive number"),
        ({"clip_range": 0.0}, "`clip_range`\n  expected: a positive number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fit_critic(table(1), torch.ones(2, 1).double(), torch.ones(2).double(), **options)


def test_at_least_one_round() -> None:
    steps, _ = every_action_once()
    with pytest.raises(OptionError, match=r"fit_to_targets\(\): `rounds`"):
        fit_to_targets(table(9), steps, TD0(discount=0.9), rounds=0)


@pytest.mark.production
def test_rows_of_other_shapes_are_refused() -> None:
    for obs, target in (((3, 1), (3, 1)), ((3, 2, 1), (3, 2)), ((0, 1), (0,)), ((3, 1), (2,))):
        with pytest.raises(ShapeError, match=r"`obs` and `target`\n  expected: \[M, S\] and \[M\]"):
            fit_critic(NetworkCritic(1), torch.zeros(obs), torch.zeros(target))
    with pytest.raises(ShapeError, match=r"explained_variance\(\): `value`"):
        explained_variance(torch.zeros(3, 1), torch.zeros(3))
