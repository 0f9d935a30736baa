"""Tabular oracles: solved Bellman equations, the softmax policy with a latent, and the grid world."""

import dataclasses
import itertools

import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.oracles.grid_world import ACTIONS, grid_world
from latentpg.oracles.mdp import TabularMDP, finite_horizon
from latentpg.oracles.softmax import TabularLatentPolicy, exact_gradient

EXACT = 1e-10


def double(values: object) -> Tensor:
    """Make a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def off_by(value: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest entry where that exceeds 1."""
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()


@st.composite
def tables(draw: st.DrawFn, *shape: int, bound: float = 4.0) -> Tensor:
    """Logits or rewards within ``bound``."""
    return torch.from_numpy(draw(hnp.arrays("float64", shape, elements=st.floats(-bound, bound))))


@st.composite
def mdps(draw: st.DrawFn, *, with_terminals: bool = True) -> TabularMDP:
    """Draw up to three states and actions, with impossible transitions and terminal states among them."""
    states, actions = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    possible = torch.from_numpy(draw(hnp.arrays(bool, (states, actions, states))))
    possible[..., 0] |= ~possible.any(-1)
    terminal = torch.from_numpy(draw(hnp.arrays(bool, (states,)))) if with_terminals else None
    return TabularMDP(
        transition=draw(tables(states, actions, states)).masked_fill(~possible, -torch.inf).softmax(-1),
        reward=draw(tables(states, actions, bound=2.0)),
        initial=draw(tables(states)).softmax(-1),
        discount=draw(st.floats(0.0, 0.9)),
        terminal=terminal,
    )


@st.composite
def mdps_and_logits(draw: st.DrawFn) -> tuple[TabularMDP, Tensor]:
    """Draw a process and the logits of a Markov policy in it."""
    mdp = draw(mdps())
    return mdp, draw(tables(mdp.num_states, mdp.num_actions))


@st.composite
def mdps_and_policies(draw: st.DrawFn) -> tuple[TabularMDP, TabularLatentPolicy]:
    """Draw a process and a latent policy in it."""
    mdp, latents = draw(mdps()), draw(st.integers(1, 3))
    states, actions = mdp.num_states, mdp.num_actions
    return mdp, TabularLatentPolicy(draw(tables(states, latents)), draw(tables(states, latents, actions)))


# --- the Bellman equations --------------------------------------------------------------------------------------------


def two_states(*, terminal: Tensor | None = None) -> TabularMDP:
    """In state 0 stay for nothing or go to 1 for 1; from state 1 every action returns and pays 2. Discount 1/2."""
    return TabularMDP(
        transition=double([[[1, 0], [0, 1]], [[1, 0], [1, 0]]]),
        reward=double([[0, 1], [2, 2]]),
        initial=double([1, 0]),
        discount=0.5,
        terminal=terminal,
    )


def test_two_states_golden() -> None:
    """Worked out for the uniform policy.

    V1 = 2 + V0/2 and V0 = (V0/2)/2 + (1 + V1/2)/2 = V0/4 + 1/2 + 1/2 + V0/8, so V0 = 8/5 and V1 = 14/5.
    Q(0,·) = (V0/2, 1 + V1/2) = (4/5, 12/5). d0 = 1 + (d0/2 + d1)/2 and d1 = d0/4, so d0 = 8/5 and d1 = 2/5.
    J = 8/5, which is d0·1/2 + d1·2 too. In the logits of state 0: d0 π A = 8/5 · 1/2 · ∓4/5 = ∓16/25; in state 1, 0.
    """
    mdp, logits = two_states(), torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    pi = logits.softmax(-1)
    assert off_by(mdp.state_values(pi), double([1.6, 2.8])) < 1e-14
    assert off_by(mdp.action_values(pi), double([[0.8, 2.4], [2.8, 2.8]])) < 1e-14
    assert off_by(mdp.advantages(pi), double([[-0.8, 0.8], [0.0, 0.0]])) < 1e-14
    assert off_by(mdp.visitation(pi), double([1.6, 0.4])) < 1e-14
    (gradient,) = torch.autograd.grad(mdp.objective(pi), logits)
    assert mdp.objective(pi).item() == pytest.approx(1.6, abs=1e-14)
    assert off_by(gradient, double([[-0.64, 0.64], [0.0, 0.0]])) < 1e-14


def test_terminal_state_golden() -> None:
    """State 1 now ends the episode: its tables are void. V0 = (V0/2)/2 + 1/2 = 2/3; d0 = 1 + d0/4 = 4/3."""
    mdp, pi = two_states(terminal=torch.tensor([False, True])), torch.full((2, 2), 0.5, dtype=torch.float64)
    assert off_by(mdp.state_values(pi), double([2 / 3, 0.0])) < 1e-14
    assert off_by(mdp.action_values(pi), double([[1 / 3, 1.0], [0.0, 0.0]])) < 1e-14
    assert off_by(mdp.visitation(pi), double([4 / 3, 0.0])) < 1e-14
    assert mdp.live.tolist() == [True, False]


@settings(max_examples=100, deadline=None)
@given(mdps_and_logits())
def test_values_are_the_sums_they_stand_for(case: tuple[TabularMDP, Tensor]) -> None:
    """The linear solves agree with 512 terms of the series (0.9^512 < 1e-23), summed by doubling, and together."""
    mdp, logits = case
    pi = logits.softmax(-1)
    live = mdp.live.double()
    step = mdp.discount * torch.einsum("sa,sap->sp", pi, mdp.transition) * live[:, None] * live
    values, visits = (pi * mdp.reward).sum(-1) * live, mdp.initial * live
    for _ in range(9):
        values, visits, step = values + step @ values, visits + step.T @ visits, step @ step
    assert off_by(mdp.state_values(pi), values) < EXACT
    assert off_by(mdp.visitation(pi), visits) < EXACT
    assert off_by(mdp.objective(pi), mdp.initial @ values) < EXACT
    assert off_by(mdp.objective(pi), visits @ (pi * mdp.reward).sum(-1)) < EXACT
    assert off_by((pi * mdp.action_values(pi)).sum(-1), values) < EXACT
    assert (pi * mdp.advantages(pi)).sum(-1).abs().max() < EXACT
    assert off_by(mdp.advantages(pi), mdp.action_values(pi) - values[:, None]) < EXACT


@settings(max_examples=50, deadline=None)
@given(mdps(with_terminals=False))
def test_visits_sum_to_the_horizon(mdp: TabularMDP) -> None:
    """Without terminal states every step is a visit, so the visits sum to 1/(1-γ)."""
    pi = torch.full_like(mdp.reward, 1.0 / mdp.num_actions)
    assert mdp.visitation(pi).sum().item() == pytest.approx(1.0 / (1.0 - mdp.discount), rel=EXACT)


@settings(max_examples=100, deadline=None)
@given(mdps_and_logits())
def test_policy_gradient_theorem(case: tuple[TabularMDP, Tensor]) -> None:
    """Autograd through the solve is Σ_s d(s) Σ_a ∇π(a|s) Q(s,a), which for a softmax is d(s) π(a|s) A(s,a)."""
    mdp, logits = case
    logits = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(mdp.objective(logits.softmax(-1)), logits)
    pi = logits.detach().softmax(-1)
    assert off_by(gradient, mdp.visitation(pi)[:, None] * pi * mdp.advantages(pi)) < EXACT


@settings(max_examples=50, deadline=None)
@given(mdps_and_logits())
def test_gradient_by_finite_differences(case: tuple[TabularMDP, Tensor]) -> None:
    """Five-point differences in every logit.

    h = 1e-3 leaves a truncation error of h⁴/30 times a fifth derivative. A softmax entry's first derivative moves at
    most 1/2 of a state's probability, so each order of dV = (I-γP)⁻¹ (dr + γ dP V) brings at most γ · 1/2 · 1/(1-γ) =
    4.5 and its share of 5!; 5! · 4.5⁵ · |V| with |V| <= 20 is 4.4e6, the terms with higher derivatives of the softmax
    add a fifth of that, and dr a tenth: below 1e7, an error below 3.4e-7. Rounding (1e-15 · 20 · 10 / h = 2e-10) is far
    below.
    """
    mdp, logits = case
    logits = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(mdp.objective(logits.softmax(-1)), logits)
    h, numeric = 1e-3, torch.zeros_like(gradient)
    for entry in itertools.product(*map(range, logits.shape)):
        bump = torch.zeros_like(gradient)
        bump[entry] = h
        ahead, back, far, far_back = (
            mdp.objective((logits.detach() + k * bump).softmax(-1)) for k in (1.0, -1.0, 2.0, -2.0)
        )
        numeric[entry] = (8.0 * (ahead - back) - (far - far_back)) / (12.0 * h)
    assert (numeric - gradient).abs().max() < 3.5e-7


def test_objective_is_differentiable_in_the_table_itself() -> None:
    """∂J/∂π(a|s) = d(s) Q(s,a), with the table's entries as free variables; a float32 table is taken too."""
    mdp, pi = two_states(), torch.full((2, 2), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(mdp.objective(pi), pi)
    assert off_by(gradient.double(), double([[1.28, 3.84], [1.12, 1.12]])) < 1e-6


# --- optimal values ---------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(mdps())
def test_policy_iteration_agrees_with_value_iteration(mdp: TabularMDP) -> None:
    """300 sweeps of the Bellman optimality operator reach the same values: 0.9^300 · 20 < 1e-12."""
    transition, values = mdp.discount * mdp.transition, torch.zeros(mdp.num_states, dtype=torch.float64)
    live = mdp.live.double()
    for _ in range(300):
        values = (mdp.reward + transition @ values).amax(-1) * live
    optimal = mdp.optimal()
    assert off_by(optimal.state_values, values) < EXACT
    assert off_by(optimal.action_values.amax(-1), values) < EXACT
    chosen = torch.nn.functional.one_hot(optimal.policy, mdp.num_actions).double()
    assert off_by(mdp.state_values(chosen), values) < EXACT


@settings(max_examples=50, deadline=None)
@given(mdps())
def test_no_deterministic_policy_is_better(mdp: TabularMDP) -> None:
    """Among all A^S deterministic policies the best is reached in every state at once."""
    best = torch.full_like(mdp.initial, -torch.inf)
    for actions in itertools.product(range(mdp.num_actions), repeat=mdp.num_states):
        pi = torch.nn.functional.one_hot(torch.tensor(actions), mdp.num_actions).double()
        best = torch.maximum(best, mdp.state_values(pi))
    assert off_by(mdp.optimal().state_values, best) < EXACT


def test_policy_iteration_ends_where_all_actions_tie() -> None:
    """Where actions differ by rounding alone none counts as better: 0.1/(1 - 0.99) = 10 in both states."""
    mdp = dataclasses.replace(two_states(), reward=torch.full((2, 2), 0.1, dtype=torch.float64), discount=0.99)
    assert off_by(mdp.optimal().state_values, double([10.0, 10.0])) < EXACT


# --- horizons and refusals --------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(mdps_and_logits(), st.integers(1, 4), st.floats(0, 1))
def test_finite_horizon_is_backward_induction(case: tuple[TabularMDP, Tensor], horizon: int, discount: float) -> None:
    """Values at time t are those of horizon - t steps to go, and the discount may be 1."""
    mdp, logits = case
    pi = logits.softmax(-1)
    clocked = finite_horizon(mdp, horizon=horizon, discount=discount)
    table = torch.cat([pi.repeat(horizon, 1), pi[:1]])
    values = clocked.state_values(table)
    expected = torch.zeros(mdp.num_states, dtype=torch.float64)
    for t in reversed(range(horizon)):
        expected = (pi * (mdp.reward + discount * mdp.transition @ expected)).sum(-1) * mdp.live
        assert off_by(values[t * mdp.num_states : (t + 1) * mdp.num_states], expected) < EXACT
    assert off_by(clocked.objective(table), mdp.initial @ expected) < EXACT
    assert values[-1] == 0.0
    assert finite_horizon(mdp, horizon=horizon).discount == mdp.discount


def test_undiscounted_episodes() -> None:
    """Discount 1: a coin decides whether to go on or end, each go paying 1; the mean number of goes is 1/(1/2) = 2."""
    coin = TabularMDP(
        transition=double([[[0.5, 0.5]], [[0.0, 1.0]]]),
        reward=double([[1.0], [0.0]]),
        initial=double([1, 0]),
        discount=1.0,
        terminal=torch.tensor([False, True]),
    )
    assert coin.objective(torch.ones(2, 1, dtype=torch.float64)).item() == pytest.approx(2.0, abs=1e-14)


def test_undiscounted_needs_every_policy_to_end() -> None:
    """Staying in state 0 for ever is possible, also where another action would end the episode."""
    with pytest.raises(OptionError, match=r"never reaches[\s\S]*\[0\][\s\S]*finite_horizon"):
        dataclasses.replace(two_states(terminal=torch.tensor([False, True])), discount=1.0)
    with pytest.raises(OptionError, match=r"\[0, 1\]"):
        dataclasses.replace(two_states(), discount=1.0)


@pytest.mark.production
def test_tables_of_wrong_shape_are_refused() -> None:
    """Every table's shape follows from the reward's; so does the policy's."""
    mdp = two_states()
    for name, table in {
        "transition": mdp.transition[:, :1],
        "initial": mdp.initial[:, None],
        "terminal": torch.tensor([True]),
        "reward": mdp.reward[0],
    }.items():
        with pytest.raises(ShapeError, match=f"`{name}`"):
            dataclasses.replace(mdp, **{name: table})  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"`pi`[\s\S]*S=2, A=2[\s\S]*\[2\]"):
        mdp.objective(double([0.5, 0.5]))
    with pytest.raises(OptionError, match=r"mask"):
        dataclasses.replace(mdp, terminal=torch.tensor([0, 1]))


def test_tables_of_wrong_content_are_refused() -> None:
    """Probabilities, rewards and discounts out of range; single precision."""
    mdp = two_states()
    with pytest.raises(OptionError, match=r"`transition`[\s\S]*sums"):
        dataclasses.replace(mdp, transition=mdp.transition * 0.9)
    with pytest.raises(OptionError, match=r"`initial`"):
        dataclasses.replace(mdp, initial=double([2, -1]))
    with pytest.raises(OptionError, match=r"`initial`"):
        dataclasses.replace(mdp, initial=double([torch.nan, 1]))
    with pytest.raises(OptionError, match=r"`reward`"):
        dataclasses.replace(mdp, reward=mdp.reward / 0.0)
    with pytest.raises(OptionError, match=r"`reward`[\s\S]*float64"):
        dataclasses.replace(mdp, reward=mdp.reward.float())
    for discount in (-0.1, 1.5, float("nan")):
        with pytest.raises(OptionError, match=r"`discount`"):
            dataclasses.replace(mdp, discount=discount)
    with pytest.raises(OptionError, match=r"`horizon`"):
        finite_horizon(mdp, horizon=0)


# --- the grid world ---------------------------------------------------------------------------------------------------

UP, RIGHT, DOWN, LEFT, STAY = range(5)


def test_grid_world_layout() -> None:
    """Rewards and arrivals of telling places: a corner, the neighbours of the forbidden cell, the target."""
    mdp = grid_world()
    assert ACTIONS == ("up", "right", "down", "left", "stay")
    assert (mdp.num_states, mdp.num_actions, mdp.discount) == (9, 5, 0.9)
    arrivals = mdp.transition.argmax(-1)
    assert torch.equal(mdp.transition.amax(-1), torch.ones(9, 5, dtype=torch.float64))
    assert arrivals[0].tolist() == [0, 1, 3, 0, 0]
    assert mdp.reward[0].tolist() == [-1.0, 0.0, 0.0, -1.0, 0.0]
    assert arrivals[4].tolist() == [1, 5, 7, 3, 4]
    assert mdp.reward[4].tolist() == [0.0, 0.0, 0.0, 0.0, -1.0]
    assert arrivals[8].tolist() == [5, 8, 8, 7, 8]
    assert mdp.reward[8].tolist() == [0.0, -1.0, -1.0, 0.0, 1.0]
    assert [mdp.reward[state, action].item() for state, action in ((1, DOWN), (3, RIGHT), (5, LEFT), (7, UP))] == [
        -1.0
    ] * 4
    assert [mdp.reward[state, action].item() for state, action in ((5, DOWN), (7, RIGHT))] == [1.0, 1.0]
    assert (mdp.reward != 0.0).sum().item() == 12 + 4 + 1 + 2 + 1  # edges, ways into F, staying in F, ways into T, T


def test_grid_world_optimal_values() -> None:
    """At the target 1/(1 - 0.9) = 10 for ever; n moves away 0.9^(n-1) · 10, as the first +1 comes with the last move.

    That is 10, 10, 9, 8.1, 7.29 for n = 0, 1, 2, 3, 4; no shortest way but those through the centre is barred.
    """
    expected = double([7.29, 8.1, 9.0, 8.1, 9.0, 10.0, 9.0, 10.0, 10.0])
    assert off_by(grid_world().optimal().state_values, expected) < 1e-13


def test_grid_world_enters_the_forbidden_cell_when_it_pays() -> None:
    """Both ways to the target barred: four moves with -1 at the third (0.9² of it) give 7.29 - 0.81 = 6.48 > 0."""
    walled = grid_world(forbidden=[(1, 2), (2, 1)])
    values = walled.optimal().state_values
    assert values[0].item() == pytest.approx(6.48, abs=1e-12)
    assert values[4].item() == pytest.approx(9.0 - 1.0, abs=1e-12)


def test_grid_world_of_a_policy_that_stays() -> None:
    """V = r/(1 - γ): 0 elsewhere, -10 in the forbidden cell, 10 at the target; the mean over nine cells is 0."""
    mdp, stay = grid_world(), torch.zeros(9, 5, dtype=torch.float64)
    stay[:, STAY] = 1.0
    assert off_by(mdp.state_values(stay), double([0, 0, 0, 0, -10, 0, 0, 0, 10])) < 1e-13
    assert mdp.objective(stay).abs().item() < 1e-13
    from_forbidden = grid_world(start=(1, 1))
    assert from_forbidden.objective(stay).item() == pytest.approx(-10.0, abs=1e-12)


def test_grid_world_options() -> None:
    """Another size, other rewards, another discount."""
    mdp = grid_world(
        size=2, target=(0, 1), forbidden=(), discount=0.5, boundary_reward=-3.0, target_reward=2.0, start=(1, 0)
    )
    assert mdp.reward.tolist() == [[-3, 2, 0, -3, 0], [-3, -3, 0, 0, 2], [0, 0, -3, -3, 0], [2, -3, -3, 0, 0]]
    assert mdp.initial.tolist() == [0, 0, 1, 0]
    assert mdp.optimal().state_values[2].item() == pytest.approx(0.5 * 4.0)
    assert grid_world(forbidden_reward=-7.0).reward.min().item() == -7.0


def test_grid_world_refuses_cells_outside() -> None:
    """Cells are (row, column) within the grid, and the target is not forbidden."""
    for options in ({"target": (3, 0)}, {"forbidden": [(0, -1)]}, {"start": (0, 3)}, {"size": 2}, {"size": 0}):
        with pytest.raises(OptionError, match="outside the grid"):
            grid_world(**options)
    with pytest.raises(OptionError, match="also forbidden"):
        grid_world(forbidden=[(2, 2)])


# --- the softmax policy with a latent ---------------------------------------------------------------------------------


def test_exact_gradient_golden() -> None:
    """One state, one step, prior (1/2, 1/2), decoders (1/2, 1/2) and (1/5, 4/5), rewards (0, 1).

    Mean rewards of the latents 1/2 and 4/5, J = 13/20. In phi: 1/2 (1/2 - 13/20) = -3/40 and 1/2 (4/5 - 13/20) = 3/40.
    In theta: 1/2 · 1/2 · (0 - 1/2) = -1/8, +1/8; 1/2 · 1/5 · (0 - 4/5) = -2/25, 1/2 · 4/5 · (1 - 4/5) = +2/25.
    """
    policy = TabularLatentPolicy(double([[0, 0]]), double([[[1, 1], [1, 4]]]).log())
    bandit = TabularMDP(
        transition=torch.ones(1, 2, 1, dtype=torch.float64), reward=double([[0, 1]]), initial=double([1]), discount=0.0
    )
    gradient = exact_gradient(bandit, policy)
    assert bandit.objective(policy.log_pi().exp()).item() == pytest.approx(0.65, abs=1e-15)
    assert off_by(gradient.prior, double([[-0.075, 0.075]])) < 1e-15
    assert off_by(gradient.decoder, double([[[-0.125, 0.125], [-0.08, 0.08]]])) < 1e-15
    assert off_by(gradient.flat(), double([-0.075, 0.075, -0.125, 0.125, -0.08, 0.08])) < 1e-15


@settings(max_examples=100, deadline=None)
@given(mdps_and_policies())
def test_exact_gradient_has_a_closed_form(case: tuple[TabularMDP, TabularLatentPolicy]) -> None:
    """With the latent's own value Q̄(s,z) = Σ_a p(a|s,z) Q(s,a), both blocks are d(s) times a softmax's gradient.

    In phi d(s) p(z|s) (Q̄(s,z) - V(s)); in theta d(s) p(z|s) p(a|s,z) (Q(s,a) - Q̄(s,z)).
    """
    mdp, policy = case
    gradient = exact_gradient(mdp, policy)
    with torch.no_grad():
        pi, prior, decoder = policy.log_pi().exp(), policy.log_prior().exp(), policy.log_decoder().exp()
        visits, values, q = mdp.visitation(pi), mdp.state_values(pi), mdp.action_values(pi)
        latent_value = (decoder * q[:, None, :]).sum(-1)
        in_prior = visits[:, None] * prior * (latent_value - values[:, None])
        in_decoder = (visits[:, None] * prior)[..., None] * decoder * (q[:, None, :] - latent_value[..., None])
    assert off_by(gradient.prior, in_prior) < EXACT
    assert off_by(gradient.decoder, in_decoder) < EXACT


@settings(max_examples=50, deadline=None)
@given(mdps_and_policies())
def test_tables_belong_together(case: tuple[TabularMDP, TabularLatentPolicy]) -> None:
    """Probabilities sum to 1, Bayes' rule holds, and ∇log π(a|s) is the posterior mean of ∇log p(z,a|s)."""
    _, policy = case
    joint, posterior = policy.log_joint(), policy.log_posterior()
    ones = torch.ones((), dtype=torch.float64)
    for table, dims in (
        (policy.log_pi(), -1),
        (policy.log_prior(), -1),
        (policy.log_decoder(), -1),
        (posterior, -1),
        (policy.log_guide(), -1),
        (joint, (1, 2)),
    ):
        assert off_by(table.exp().sum(dims), ones) < EXACT
    assert off_by(posterior + policy.log_pi()[..., None], joint.transpose(1, 2)) < EXACT
    parameters = policy.prior_parameters() + policy.decoder_parameters()
    score = torch.autograd.grad(policy.log_pi().sum(), parameters)
    identity = torch.autograd.grad((posterior.detach().exp() * policy.log_joint().transpose(1, 2)).sum(), parameters)
    for first, second in zip(score, identity, strict=True):
        assert off_by(second, first) < EXACT


@pytest.mark.parametrize(("particles", "rows"), [(3, 5), (4, 4), (1, 1)])
def test_pyro_programs_score_as_the_tables_do(particles: int, rows: int) -> None:
    """Sites "z" and "action" of the programs have the tables' log-probabilities, with z [B] and with z [K, B]."""
    torch.manual_seed(0)
    policy = TabularLatentPolicy.random(num_states=4, num_latents=3, num_actions=2)
    obs, action = torch.randint(4, (rows,)), torch.randint(2, (rows,))
    for shape in ((rows,), (particles, rows)):
        z = torch.randint(3, shape)
        trace = poutine.trace(poutine.condition(policy.model, data={"z": z})).get_trace(obs, action)
        trace.compute_log_prob()
        assert trace.nodes["z"]["fn"].batch_shape == (rows,)  # type: ignore[attr-defined]
        # the prior runs on B rows whatever z carries
        assert torch.allclose(trace.nodes["z"]["log_prob"], policy.log_prior()[obs, z])
        assert torch.allclose(trace.nodes["action"]["log_prob"], policy.log_decoder()[obs, z, action])
        assert trace.nodes["action"]["log_prob"].shape == shape
        guide = poutine.trace(poutine.condition(policy.guide, data={"z": z})).get_trace(obs, action)
        guide.compute_log_prob()
        assert torch.allclose(guide.nodes["z"]["log_prob"], policy.log_guide()[obs, action, z])


def test_pyro_programs_sample() -> None:
    """Run bare, the model draws one action a row and the guide one latent a row; an impossible one never comes."""
    policy = TabularLatentPolicy(
        double([[0, -1e9], [-1e9, 0]]),
        double([[[0, -1e9], [0, 0]], [[0, 0], [-1e9, 0]]]),
        double([[[0, -1e9]] * 2] * 2),
    )
    obs = torch.tensor([0, 1, 0, 1, 1])
    assert torch.equal(policy.model(obs), obs)
    assert torch.equal(policy.guide(obs, obs), torch.zeros_like(obs))


def test_parameters_are_three_disjoint_sets() -> None:
    """Prior, decoder and guide share nothing and leave nothing out; they are float64 copies of what was given."""
    prior = torch.zeros(2, 3, dtype=torch.float64)
    policy = TabularLatentPolicy(prior, torch.zeros(2, 3, 4, dtype=torch.float32))
    blocks = [policy.prior_parameters(), policy.decoder_parameters(), policy.guide_parameters()]
    names = [[tuple(parameter.shape) for parameter in block] for block in blocks]
    assert names == [[(2, 3)], [(2, 3, 4)], [(2, 4, 3)]]
    assert {id(p) for block in blocks for p in block} == {id(p) for p in policy.parameters()}
    assert all(parameter.dtype == torch.float64 for parameter in policy.parameters())
    assert policy.prior_parameters()[0].data_ptr() != prior.data_ptr()
    assert torch.equal(policy.log_guide().exp(), torch.full((2, 4, 3), 1 / 3, dtype=torch.float64))


def test_random_policies_come_from_the_ambient_stream() -> None:
    """Same stream, same policy; ``scale`` scales the logits."""
    shape = {"num_states": 2, "num_latents": 3, "num_actions": 4}
    logits = []
    for scale in (1.0, 2.0):
        torch.manual_seed(3)
        logits.append(torch.cat([p.flatten() for p in TabularLatentPolicy.random(**shape, scale=scale).parameters()]))
    assert torch.equal(2.0 * logits[0], logits[1])
    assert len(logits[0]) == 6 + 24 + 24


@pytest.mark.production
def test_policy_tables_of_wrong_shape_are_refused() -> None:
    """The decoder's table [S, C, A] settles the others."""
    decoder = torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError, match=r"`prior_logits`[\s\S]*S=2, C=3"):
        TabularLatentPolicy(torch.zeros(3, 2), decoder)
    with pytest.raises(ShapeError, match=r"`guide_logits`[\s\S]*S=2, A=4, C=3"):
        TabularLatentPolicy(torch.zeros(2, 3), decoder, torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError, match=r"`decoder_logits`[\s\S]*\[S, C, A\]"):
        TabularLatentPolicy(torch.zeros(2, 3), decoder[0])
    with pytest.raises(ShapeError, match=r"guide[\s\S]*`action`[\s\S]*None"):
        TabularLatentPolicy(torch.zeros(2, 3), decoder).guide(torch.tensor([0]), None)
