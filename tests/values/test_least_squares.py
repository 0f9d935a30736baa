"""Closed forms against exact values: projections of V, its fixed point under features, and tables."""

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.returns import reward_to_go
from latentpg.oracles.grid_world import grid_world
from latentpg.oracles.mdp import TabularMDP, finite_horizon
from latentpg.oracles.trajectories import enumerate_trajectories
from latentpg.values import (
    GridCells,
    Identity,
    LinearCritic,
    Polynomial,
    Ranges,
    TileCoding,
    solve_least_squares,
    solve_lstd,
)
from tests.values.tabular import double, ending, flag, sampled, table, transitions


def clocked() -> tuple[TabularMDP, Tensor]:
    """Take the process with an end over three steps with the clock part of the state; 12 live states and two ends."""
    mdp, pi = ending()
    return finite_horizon(mdp, horizon=3), torch.cat([pi.repeat(3, 1), pi[:1]])


def line(num_states: int) -> LinearCritic:
    """Three features for many states: 1, u and u², of the state's number."""
    return LinearCritic(Polynomial(Ranges((0.0,), (float(num_states - 1),)), degree=2), dtype=torch.float64)


def test_linear_monte_carlo_is_the_projection_of_the_exact_values() -> None:
    """Returns of *all* trajectories, weighted by probability; V weighted by expected visits, from the oracle."""
    mdp, pi = clocked()
    all_of_them = enumerate_trajectories(mdp, horizon=3)
    probability = all_of_them.log_prob(pi.log()).exp()
    returns = reward_to_go(all_of_them.rewards, discount=mdp.discount, done=all_of_them.done)
    acted = all_of_them.mask
    fitted = line(mdp.num_states)
    solve_least_squares(
        fitted,
        all_of_them.states[acted].double()[:, None],
        returns[acted],
        weight=probability.expand_as(returns)[acted],
    )

    undiscounted = TabularMDP(
        transition=mdp.transition, reward=mdp.reward, initial=mdp.initial, discount=1.0, terminal=mdp.terminal
    )
    visits = undiscounted.visitation(pi)
    phi = fitted.features(torch.arange(mdp.num_states).double()[:, None])
    projection = torch.linalg.solve(phi.T @ (visits[:, None] * phi), phi.T @ (visits * mdp.state_values(pi)))
    assert probability.sum().item() == pytest.approx(1.0)
    assert (fitted.weight - projection).abs().max() < 1e-10
    assert (
        fitted(torch.arange(12).double()[:, None]) - mdp.state_values(pi)[:12]
    ).abs().max() > 0.1  # a real projection


def test_lstd_on_a_table_is_exact() -> None:
    mdp, pi = ending()
    rows, critic = transitions(mdp, pi), table(4)
    for visits in (
        double([1.0, 1.0, 1.0, 1.0]),
        double([0.1, 5.0, 2.0, 1.0]),
    ):  # on a table any weighting of states will do
        solve_lstd(
            critic, rows.obs, rows.reward, rows.next_obs, rows.terminated, discount=0.8,
            weight=rows.weight * visits[rows.state],
        )  # fmt: skip
        assert (critic.weight - mdp.state_values(pi)).abs().max() < 1e-10


def test_lstd_on_the_grid_world_is_exact() -> None:
    mdp = grid_world()
    pi = torch.full((9, 5), 0.2, dtype=torch.float64)
    rows, critic = transitions(mdp, pi), table(9)
    solve_lstd(critic, rows.obs, rows.reward, rows.next_obs, rows.terminated, discount=0.9, weight=rows.weight)
    assert (critic.weight - mdp.state_values(pi)).abs().max() < 1e-10


@pytest.mark.parametrize("always", [True, False])
def test_confusing_the_two_ends_is_found_out_by_the_exact_values(always: bool) -> None:
    """The planted bugs: every cut row taken for terminated, and every terminated one for cut."""
    mdp, pi = ending()
    rows, critic = transitions(mdp, pi), table(4)
    ended = torch.full_like(rows.terminated, always)
    solve_lstd(critic, rows.obs, rows.reward, rows.next_obs, ended, discount=0.8, weight=rows.weight)
    assert (critic.weight - mdp.state_values(pi)).abs().max() > 0.1


def test_lstd_tells_the_two_ends_apart_where_features_are_shared() -> None:
    """One feature for both states: w = r + 0.5 w is 2 when the step goes on (or is cut), 1 when it terminates."""
    for terminated, expected in ((False, 2.0), (True, 1.0)):
        critic = LinearCritic(Identity(1), dtype=torch.float64)
        solve_lstd(critic, double([[1.0]]), double([1.0]), double([[1.0]]), flag(terminated), discount=0.5)
        assert critic.weight.item() == pytest.approx(expected)


def test_lstd_with_few_features_is_the_fixed_point_of_the_projected_bellman_operator() -> None:
    mdp, pi = ending()
    rows = transitions(mdp, pi)
    number = torch.arange(4).double()[:, None]
    critic = LinearCritic(Polynomial(Ranges((0.0,), (3.0,)), degree=1), dtype=torch.float64)
    visits = double([3.0, 1.0, 2.0, 0.0])
    solve_lstd(
        critic, rows.obs @ number, rows.reward, rows.next_obs @ number, rows.terminated, discount=0.8,
        weight=rows.weight * visits[rows.state],
    )  # fmt: skip
    live = mdp.live.double()
    value = critic(number).detach() * live
    backed_up = (pi * mdp.action_values(pi)).sum(-1)  # r + γ P V, then with our values for V
    backed_up = backed_up + 0.8 * torch.einsum("sa,sap,p->s", pi, mdp.transition, value - mdp.state_values(pi)) * live
    again = LinearCritic(critic.features, dtype=torch.float64)
    solve_least_squares(again, number, backed_up, weight=visits)
    assert (again.weight - critic.weight).abs().max() < 1e-10
    assert (value - mdp.state_values(pi)).abs().max() > 0.1  # and not V


def test_lstd_on_samples_is_the_value_of_the_process_they_estimate() -> None:
    """The rows' own frequencies as a process of one action, solved by the oracle: equal whatever the sample."""
    mdp, pi = ending()
    steps = sampled(mdp, pi, steps=20, copies=2)
    obs, next_obs = steps.obs.flatten(0, 1), steps.next_obs.flatten(0, 1)
    count = obs.sum(0)
    frequency = obs.T @ next_obs / count.clamp(min=1.0)[:, None]
    frequency[3, 3] = 1.0
    estimated = TabularMDP(
        transition=frequency[:, None],
        reward=(obs.T @ steps.reward.flatten() / count.clamp(min=1.0))[:, None],
        initial=mdp.initial,
        discount=0.8,
        terminal=mdp.terminal,
    )
    critic = table(4)
    solve_lstd(critic, obs, steps.reward.flatten(), next_obs, steps.terminated.flatten(), discount=0.8)
    assert (critic.weight - estimated.state_values(torch.ones(4, 1).double())).abs().max() < 1e-10


def test_dependent_features_get_the_solution_of_least_norm() -> None:
    """Two tilings that see one cell each: the value 3 is shared between them, and unvisited tiles stay at 0."""
    tiles = TileCoding(Ranges((0.0,), (1.0,)), tilings=2, tiles=2)
    critic, obs = LinearCritic(tiles), torch.full((5, 1), 0.1)
    solve_least_squares(critic, obs, torch.full((5,), 3.0))
    assert critic.weight.tolist() == pytest.approx([1.5, 0.0, 0.0, 1.5, 0.0, 0.0], abs=1e-6)
    solve_lstd(critic, obs, torch.full((5,), 3.0), obs, torch.zeros(5, dtype=torch.bool), discount=0.5)
    assert critic.weight.tolist() == pytest.approx([3.0, 0.0, 0.0, 3.0, 0.0, 0.0], abs=1e-6)


def test_cells_hold_the_mean_of_their_targets() -> None:
    critic = LinearCritic(GridCells(Ranges((0.0,), (1.0,)), cells=2))
    solve_least_squares(critic, torch.tensor([[0.1], [0.2], [0.9]]), torch.tensor([1.0, 2.0, 7.0]))
    assert critic.weight.tolist() == pytest.approx([1.5, 7.0])


def test_ridge_shrinks_by_its_formula() -> None:
    """Four rows of feature 1 and target 3: w = 12 / (4 + κ); LSTD with discount 1/2: w = 12 / (4/2 + κ)."""
    critic, one = LinearCritic(Identity(1), dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    solve_least_squares(critic, one, 3.0 * one[:, 0], ridge=2.0)
    assert critic.weight.item() == pytest.approx(2.0)
    go_on = flag(False, False, False, False)
    solve_lstd(critic, one, 3.0 * one[:, 0], one, go_on, discount=0.5, ridge=2.0)
    assert critic.weight.item() == pytest.approx(3.0)


def test_weights_count_rows() -> None:
    critic, one = LinearCritic(Identity(1), dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    solve_least_squares(critic, one, double([0.0, 4.0]), weight=double([3.0, 1.0]))
    assert critic.weight.item() == pytest.approx(1.0)


# --- refused, with the weights as they were ---------------------------------------------------------------------------


def test_equations_without_a_solution_are_refused() -> None:
    """A state that pays 1 for ever without discount."""
    critic, one = table(1, double([7.0])), torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(OptionError, match=r"no solution on these rows[\s\S]*discount 1[\s\S]*ridge"):
        solve_lstd(critic, one, double([1.0]), one, flag(False), discount=1.0)
    assert critic.weight.item() == 7.0


def test_bad_rows_are_refused() -> None:
    critic, obs, row = table(2), torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    nan = double([0.0, float("nan")])
    with pytest.raises(OptionError, match=r"solve_least_squares\(\): `target` holds NaN or infinity"):
        solve_least_squares(critic, obs, nan)
    with pytest.raises(OptionError, match=r"solve_lstd\(\): `reward` holds NaN or infinity"):
        solve_lstd(critic, obs, nan, obs, flag(False, False), discount=0.9)
    with pytest.raises(OptionError, match=r"`discount`\n  expected: a number in \[0, 1\]"):
        solve_lstd(critic, obs, row, obs, flag(False, False), discount=-0.1)
    with pytest.raises(OptionError, match="`ridge`\n  expected: a finite number, 0 or above"):
        solve_least_squares(critic, obs, row, ridge=-1.0)
    with pytest.raises(OptionError, match=r"`weight`\n  expected: non-negative numbers, \[M=2\]"):
        solve_least_squares(critic, obs, row, weight=double([1.0, -1.0]))


@pytest.mark.production
def test_rows_of_other_shapes_are_refused() -> None:
    critic, obs, row = table(2), torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"`target`\n  expected: \[2\][\s\S]*target\.flatten\(\)"):
        solve_least_squares(critic, obs, row[:, None])
    with pytest.raises(ShapeError, match=r"`next_obs`\n  expected: \[2, 2\]"):
        solve_lstd(critic, obs, row, obs[:1], flag(False, False), discount=0.9)
    with pytest.raises(ShapeError, match="`terminated`"):
        solve_lstd(critic, obs, row, obs, flag(False), discount=0.9)
