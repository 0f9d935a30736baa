"""Policy-gradient identities as exact sums over all trajectories, and by how much the popular shortcuts miss them.

An identity is held on models that Hypothesis draws, to 1e-10. A shortcut is measured on a model small enough for pencil
and paper: its docstring derives the number, and the test asserts that number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.returns import discount_factors, discounted_return, discounted_reward_to_go, reward_to_go
from latentpg.numerics.surrogates import (
    importance_weighted,
    per_decision_ratio,
    ppo_clip,
    reinforce,
    step_ratio,
    trajectory_ratio,
)
from latentpg.oracles.mdp import TabularMDP, finite_horizon
from latentpg.oracles.trajectories import (
    Trajectories,
    enumerate_groups,
    enumerate_trajectories,
    expectation,
    expected_surrogate,
)

EXACT = 1e-10


def double(values: object) -> Tensor:
    """Make a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def off_by(value: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest entry where that exceeds 1."""
    return ((value - expected).abs().max() / expected.abs().max().clamp(min=1.0)).item()


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Length of the deviation by the length of what was expected."""
    return ((value - expected).norm() / expected.norm()).item()


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two gradients."""
    return torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0).item()


def gradient(value: Tensor, *parameters: Tensor) -> Tensor:
    """Differentiate and flatten."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


@st.composite
def tables(draw: st.DrawFn, *shape: int, bound: float = 4.0) -> Tensor:
    """Logits or rewards within ``bound``."""
    return torch.from_numpy(draw(hnp.arrays("float64", shape, elements=st.floats(-bound, bound))))


@dataclass(frozen=True, eq=False)
class Case:
    """A finite-horizon task with its trajectories, and two sets of parameters of a policy with a latent."""

    mdp: TabularMDP
    horizon: int
    discount: float
    logits: Tensor
    old_logits: Tensor
    prior_logits: Tensor
    decoder_logits: Tensor

    @cached_property
    def trajectories(self) -> Trajectories:
        """Enumerate them, in the test and not while drawing: checked annotations consult ``random``."""
        return enumerate_trajectories(self.mdp, horizon=self.horizon)

    @property
    def log_pi(self) -> Tensor:
        """A Markov policy [S, A]."""
        return self.logits.log_softmax(-1)

    @property
    def log_old(self) -> Tensor:
        """Another, that of the behaviour."""
        return self.old_logits.log_softmax(-1)

    @property
    def latent_policy(self) -> tuple[Tensor, Tensor]:
        """Log-prior [S, C] and log-decoder [S, C, A]."""
        return self.prior_logits.log_softmax(-1), self.decoder_logits.log_softmax(-1)

    @property
    def returns(self) -> Tensor:
        """R = Σ γ^t r_t of each trajectory."""
        return discounted_return(self.trajectories.rewards, discount=self.discount, done=self.trajectories.done)

    @property
    def to_go(self) -> Tensor:
        """γ^t G_t of each step."""
        return discounted_reward_to_go(self.trajectories.rewards, discount=self.discount, done=self.trajectories.done)

    @property
    def factors(self) -> Tensor:
        """γ^t of each step."""
        steps = torch.zeros_like(self.trajectories.mask)
        return discount_factors(steps, discount=self.discount, dtype=torch.float64)

    def clocked(self, log_pi: Tensor) -> tuple[TabularMDP, Tensor]:
        """Put time into the state: an answer by linear algebra, without any trajectory."""
        task = finite_horizon(self.mdp, horizon=self.horizon, discount=self.discount)
        return task, torch.cat([log_pi.repeat(self.horizon, 1), log_pi[:1]]).exp()

    def exact_gradient(self) -> Tensor:
        """∇J of the Markov policy, from the Bellman equations."""
        return gradient(TabularMDP.objective(*self.clocked(self.log_pi)), self.logits)

    def step_values(self, log_pi: Tensor) -> Tensor:
        """Q_t(s_t, a_t) of each step of each trajectory [T, N], from the Bellman equations."""
        task, table = self.clocked(log_pi.detach())
        clock = torch.arange(self.horizon)[:, None] * self.mdp.num_states
        return task.action_values(table)[self.trajectories.states + clock, self.trajectories.actions]


@st.composite
def cases(draw: st.DrawFn, *, max_states: int = 3, max_horizon: int = 3, max_actions: int = 3) -> Case:
    """Draw up to 3 states, actions and steps, 2 latents; some transitions are impossible, some states terminal."""
    states, horizon = draw(st.integers(1, max_states)), draw(st.integers(1, max_horizon))
    actions = draw(st.integers(1, max_actions if states * horizon < 9 else 2))
    latents = draw(st.integers(1, 2))
    possible = torch.from_numpy(draw(hnp.arrays(bool, (states, actions, states))))
    possible[..., 0] |= ~possible.any(-1)
    mdp = TabularMDP(
        transition=draw(tables(states, actions, states)).masked_fill(~possible, -torch.inf).softmax(-1),
        reward=draw(tables(states, actions, bound=2.0)),
        initial=draw(tables(states)).softmax(-1),
        discount=0.9,
        terminal=torch.from_numpy(draw(hnp.arrays(bool, (states,)))),
    )
    return Case(
        mdp=mdp,
        horizon=horizon,
        discount=draw(st.floats(0.0, 1.0)),
        logits=draw(tables(states, actions)).requires_grad_(),
        old_logits=draw(tables(states, actions)),
        prior_logits=draw(tables(states, latents)).requires_grad_(),
        decoder_logits=draw(tables(states, latents, actions)).requires_grad_(),
    )


def chain(rewards: Tensor) -> TabularMDP:
    """Chain the states 0, 1, …, T-1 and the end, walked whatever one does; ``rewards`` [T, A]."""
    horizon, actions = rewards.shape
    transition = torch.eye(horizon + 1, dtype=torch.float64).roll(1, dims=1)
    transition[-1] = torch.eye(horizon + 1, dtype=torch.float64)[-1]
    return TabularMDP(
        transition=transition[:, None, :].repeat(1, actions, 1),
        reward=torch.cat([rewards, torch.zeros(1, actions, dtype=torch.float64)]),
        initial=torch.eye(horizon + 1, dtype=torch.float64)[0],
        discount=0.9,
        terminal=torch.arange(horizon + 1) == horizon,
    )


def bandits(rewards: Tensor) -> TabularMDP:
    """One-step tasks, each an initial state of the same probability; ``rewards`` [S, A]."""
    states, actions = rewards.shape
    return TabularMDP(
        transition=torch.eye(states, dtype=torch.float64)[:, None, :].repeat(1, actions, 1),
        reward=rewards,
        initial=torch.full((states,), 1.0 / states, dtype=torch.float64),
        discount=0.0,
    )


# --- the enumeration itself -------------------------------------------------------------------------------------------


def test_enumeration_golden() -> None:
    """In state 0 action 0 stays or ends with probability 1/4 and 3/4, action 1 ends; two steps make four columns."""
    mdp = TabularMDP(
        transition=double([[[0.25, 0.75], [0, 1]], [[0, 1], [0, 1]]]),
        reward=double([[1, 2], [9, 9]]),
        initial=double([1, 0]),
        discount=0.9,
        terminal=torch.tensor([False, True]),
    )
    found = enumerate_trajectories(mdp, horizon=2)
    assert found.states.T.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]
    assert found.actions.T.tolist() == [[0, 0], [0, 1], [0, 0], [1, 0]]
    assert found.rewards.T.tolist() == [[1, 1], [1, 2], [1, 0], [2, 0]]
    assert found.mask.T.tolist() == [[True, True], [True, True], [True, False], [True, False]]
    assert found.done.T.tolist() == [[False, True], [False, True], [True, True], [True, True]]
    assert off_by(found.log_dynamics.exp(), double([0.25, 0.25, 0.75, 1.0])) < 1e-15
    # Under (2/5, 3/5): 2/5 · 1/4 · (2/5, 3/5), then 2/5 · 3/4, then 3/5.
    log_pi = double([[0.4, 0.6], [0.5, 0.5]]).log()
    assert off_by(found.log_prob(log_pi).exp(), double([0.04, 0.06, 0.3, 0.6])) < 1e-15


def test_enumeration_with_latents_golden() -> None:
    """A latent of two values a step makes (2·2)² columns of two actions and one state; one an episode makes 2·2²."""
    mdp = chain(torch.zeros(2, 2, dtype=torch.float64))
    per_step = enumerate_trajectories(mdp, horizon=2, num_latents=2)
    per_episode = enumerate_trajectories(mdp, horizon=2, num_latents=2, span=2)
    assert per_step.actions.shape == (2, 16)
    assert per_episode.actions.shape == (2, 8)
    assert per_step.latents is not None and per_episode.latents is not None
    assert torch.equal(per_episode.latents[0], per_episode.latents[1])
    assert len({tuple(c) for c in torch.cat([per_step.latents, per_step.actions]).T.tolist()}) == 16


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(1, 3))
def test_probabilities_sum_to_one(case: Case, span: int) -> None:
    """Markov policies, span policies with the latent summed out, and span policies with it enumerated.

    The enumerated joint, summed over latents, is the marginal: both give each sequence of states and actions the same
    mass.
    """
    found = case.trajectories
    one = torch.ones((), dtype=torch.float64)
    assert off_by(found.log_prob(case.log_pi).exp().sum(), one) < EXACT
    rows = found.span_log_prob(*case.latent_policy, span=span)
    assert rows.shape[0] == math.ceil(case.horizon / span)
    marginal = (found.log_dynamics + rows.sum(0)).exp()
    assert off_by(marginal.sum(), one) < EXACT
    latents = case.prior_logits.shape[1]
    joint = enumerate_trajectories(case.mdp, horizon=case.horizon, num_latents=latents, span=span)
    mass = (joint.log_dynamics + joint.joint_log_prob(*case.latent_policy).sum(0)).exp()
    column = {tuple(c): n for n, c in enumerate(torch.cat([found.states, found.actions]).T.tolist())}
    index = torch.tensor([column[tuple(c)] for c in torch.cat([joint.states, joint.actions]).T.tolist()])
    assert off_by(torch.zeros_like(marginal).index_add(0, index, mass), marginal) < EXACT


@settings(max_examples=50, deadline=None)
@given(cases())
def test_span_of_one_step_is_the_markov_marginal(case: Case) -> None:
    """Its rows are log Σ_z p(z|s) p(a|s,z), and the span of everything is the definition written out."""
    found, (log_prior, log_decoder) = case.trajectories, case.latent_policy
    log_marginal = (log_prior[..., None] + log_decoder).logsumexp(1)
    assert off_by(found.span_log_prob(log_prior, log_decoder, span=1), found.action_log_prob(log_marginal)) < EXACT
    written = log_prior[found.states[0]].exp()
    for t in range(case.horizon):
        likelihood = log_decoder[found.states[t], :, found.actions[t]].exp()
        written = written * torch.where(found.mask[t, :, None], likelihood, 1.0)
    whole = found.span_log_prob(log_prior, log_decoder, span=case.horizon)
    assert off_by(whole.exp(), written.sum(-1, keepdim=True).T) < EXACT


@settings(max_examples=100, deadline=None)
@given(cases())
def test_mean_return_is_the_bellman_objective(case: Case) -> None:
    """Σ p(τ) R(τ) is the J of linear algebra, and their gradients agree."""
    mean = expectation(case.trajectories.log_prob(case.log_pi), case.returns)
    assert off_by(mean, TabularMDP.objective(*case.clocked(case.log_pi))) < EXACT
    assert off_by(gradient(mean, case.logits), case.exact_gradient()) < EXACT


# --- the policy-gradient theorem --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(cases())
def test_every_honest_credit_gives_the_gradient(case: Case) -> None:
    """E[Σ_t ∇log π(a_t|s_t) · credit_t] = ∇J for the total return, γ^t G_t, γ^t Q and γ^t (Q - V)."""
    found = case.trajectories
    log_prob, score = found.log_prob(case.log_pi), found.action_log_prob(case.log_pi)
    q = case.step_values(case.log_pi)
    task, table = case.clocked(case.log_pi.detach())
    clock = torch.arange(case.horizon)[:, None] * case.mdp.num_states
    v = task.state_values(table)[found.states + clock]
    exact = case.exact_gradient()
    for credit in (case.returns.expand_as(score), case.to_go, case.factors * q, case.factors * (q - v)):
        expected = expected_surrogate(log_prob, reinforce(score, credit.contiguous()).sum(0))
        assert off_by(gradient(expected, case.logits), exact) < EXACT


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_baseline_lemma(case: Case, data: st.DataObject) -> None:
    """E[∇log π(a_t|s_t) b_t(s_t)] = 0 at every step, for any function of the state (and of the clock)."""
    found = case.trajectories
    baseline = data.draw(tables(case.horizon, case.mdp.num_states))
    b = baseline.gather(1, found.states)
    log_prob, score = found.log_prob(case.log_pi), found.action_log_prob(case.log_pi)
    for t in range(case.horizon):
        term = gradient(expected_surrogate(log_prob, reinforce(score, b)[t]), case.logits)
        assert term.abs().max() < EXACT
    corrected = gradient(expected_surrogate(log_prob, reinforce(score, case.to_go - b).sum(0)), case.logits)
    assert off_by(corrected, case.exact_gradient()) < EXACT


def test_a_baseline_that_looks_at_the_action_is_not_free() -> None:
    """Test the lemma's test: one state, uniform over two actions, b = a. E[∇log π b] = ∇E[a] = (-1/4, 1/4), not 0."""
    found = enumerate_trajectories(bandits(double([[0, 0]])), horizon=1)
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(-1)
    rows = reinforce(found.action_log_prob(log_pi), found.actions.double()).sum(0)
    term = gradient(expected_surrogate(found.log_prob(log_pi), rows), logits)
    assert off_by(term, double([-0.25, 0.25])) < EXACT


def test_reward_to_go_has_less_variance_as_a_rule() -> None:
    """Two steps, uniform, reward a_0 then nothing, separate logits: the total return adds noise to step 1.

    Each score entry is ±1/2, so Σ Var(∇log π_0 · R) is the same both ways, while ∇log π_1 has credit R = a_0 with
    mean-zero score (variance of an entry 1/4 · E[a_0²] = 1/8, two entries) against credit 0.
    """
    mdp = chain(double([[0, 1], [0, 0]]))
    found = enumerate_trajectories(mdp, horizon=2)
    p = found.log_prob(torch.full((3, 2), 0.5, dtype=torch.float64).log()).exp()
    score = torch.zeros(4, 3, 2, dtype=torch.float64)
    for t in range(2):
        score[torch.arange(4), t] = torch.nn.functional.one_hot(found.actions[t], 2).double() - 0.5

    def variance(credit: Tensor) -> float:
        sample = (score[:, :2] * credit.T[..., None]).flatten(1)
        mean = p @ sample
        return (p @ (sample - mean) ** 2).sum().item()

    total = discounted_return(found.rewards, discount=1.0).expand(2, -1)
    assert variance(total) - variance(reward_to_go(found.rewards, discount=1.0)) == pytest.approx(0.25, abs=EXACT)


# --- shortcut: the factor γ^t dropped ---------------------------------------------------------------------------------


def _dropped_and_exact(mdp: TabularMDP, logits: Tensor, log_pi: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    found = enumerate_trajectories(mdp, horizon=mdp.num_states - 1)
    log_prob = found.log_prob(log_pi)
    credit = reward_to_go(found.rewards, discount=discount, done=found.done)
    dropped = expected_surrogate(log_prob, reinforce(found.action_log_prob(log_pi), credit).sum(0))
    exact = expectation(log_prob, discounted_return(found.rewards, discount=discount, done=found.done))
    return gradient(dropped, logits), gradient(exact, logits)


def test_dropping_the_discount_overweights_late_steps() -> None:
    """Two steps paying a_t, uniform, separate logits, γ = 1/2: ∇J = (1, γ)/4 per step, the shortcut gives (1, 1)/4.

    Relative error (1-γ)/√(1+γ²) = (1/2)/√(5/4) = 1/√5 = 0.447, cosine (1+γ)/√(2(1+γ²)) = 1.5/√2.5 = 0.949.
    """
    logits = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    dropped, exact = _dropped_and_exact(chain(double([[0, 1], [0, 1]])), logits, logits.log_softmax(-1), 0.5)
    assert off_by(exact, double([-1, 1, -0.5, 0.5, 0, 0]) / 4) < EXACT
    assert off_by(dropped, double([-1, 1, -1, 1, 0, 0]) / 4) < EXACT
    assert relative_error(dropped, exact) == pytest.approx(1 / math.sqrt(5), abs=EXACT)
    assert cosine(dropped, exact) == pytest.approx(1.5 / math.sqrt(2.5), abs=EXACT)


def test_dropping_the_discount_can_turn_the_gradient_round() -> None:
    """The same, logits shared, rewards a_0 and -3/2 a_1: ∇J = (1 - 3/4)/4 = 1/16, the shortcut (1 - 3/2)/4 = -1/8."""
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    dropped, exact = _dropped_and_exact(
        chain(double([[0, 1], [0, -1.5]])), logits, logits.log_softmax(-1).expand(3, 2), 0.5
    )
    assert off_by(exact, double([-1, 1]) / 16) < EXACT
    assert off_by(dropped, double([1, -1]) / 8) < EXACT


@settings(max_examples=50, deadline=None)
@given(cases())
def test_dropping_a_discount_of_one_is_no_shortcut(case: Case) -> None:
    """With γ = 1 the credit is the reward-to-go and the gradient exact."""
    found = case.trajectories
    log_prob = found.log_prob(case.log_pi)
    credit = reward_to_go(found.rewards, discount=1.0, done=found.done)
    expected = expected_surrogate(log_prob, reinforce(found.action_log_prob(case.log_pi), credit).sum(0))
    exact = expectation(log_prob, found.rewards.sum(0))
    assert off_by(gradient(expected, case.logits), gradient(exact, case.logits)) < EXACT


# --- off-policy -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(cases())
def test_off_policy_corrections_are_exact(case: Case) -> None:
    """Samples of the old policy give J and ∇J of the new: by whole trajectories, per decision, and by Q of the new."""
    found = case.trajectories
    old = found.log_prob(case.log_old)
    log_ratio = found.action_log_prob(case.log_pi) - found.action_log_prob(case.log_old)
    whole, cumulative = trajectory_ratio(log_ratio, mask=found.mask), per_decision_ratio(log_ratio, mask=found.mask)
    objective, exact = TabularMDP.objective(*case.clocked(case.log_pi)), case.exact_gradient()

    assert off_by(expected_surrogate(old, whole), torch.ones((), dtype=torch.float64)) < EXACT
    by_trajectory = expected_surrogate(old, importance_weighted(whole, case.returns))
    per_decision = expected_surrogate(old, importance_weighted(cumulative, case.factors * found.rewards).sum(0))
    for surrogate in (by_trajectory, per_decision):
        assert off_by(surrogate, objective) < EXACT
        assert off_by(gradient(surrogate, case.logits), exact) < EXACT

    before = (cumulative / step_ratio(log_ratio, mask=found.mask)).detach()
    weight = before * step_ratio(log_ratio, mask=found.mask)
    q_new = torch.where(found.mask, case.step_values(case.log_pi), 0.0)
    by_q = expected_surrogate(old, importance_weighted(weight, case.factors * q_new).sum(0))
    assert off_by(gradient(by_q, case.logits), exact) < EXACT

    # Written as scores: each later reward carries the product up to its own step.
    own_product = discounted_reward_to_go(cumulative.detach() * found.rewards, discount=case.discount, done=found.done)
    by_score = expected_surrogate(old, reinforce(found.action_log_prob(case.log_pi), own_product).sum(0))
    assert off_by(gradient(by_score, case.logits), exact) < EXACT


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_raw_reward_to_go_values_the_old_future(case: Case) -> None:
    """ρ_{0:t} γ^t G_t in the place of ρ_{0:t} γ^t Q^new is, exactly, Q of the old policy on the visits of the new."""
    found = case.trajectories
    old = found.log_prob(case.log_old)
    score = found.action_log_prob(case.log_pi)
    ratio = per_decision_ratio(score - found.action_log_prob(case.log_old), mask=found.mask).detach()
    shortcut = expected_surrogate(old, reinforce(score, ratio * case.to_go).sum(0))
    q_old = torch.where(found.mask, case.step_values(case.log_old), 0.0)
    hybrid = expected_surrogate(found.log_prob(case.log_pi), reinforce(score, case.factors * q_old).sum(0))
    assert off_by(gradient(shortcut, case.logits), gradient(hybrid, case.logits)) < EXACT


@settings(max_examples=50, deadline=None)
@given(cases())
def test_single_step_ratios_are_exact_where_new_is_old(case: Case) -> None:
    """There ρ = 1, and the weighted and the clipped surrogate have gradient ∇J."""
    found = case.trajectories
    log_prob, score = found.log_prob(case.log_pi), found.action_log_prob(case.log_pi)
    ratio = step_ratio(score - score.detach(), mask=found.mask)
    advantage = case.to_go
    for rows in (importance_weighted(ratio, advantage), ppo_clip(ratio, advantage, epsilon=0.2)):
        assert off_by(gradient(expected_surrogate(log_prob, rows.sum(0)), case.logits), case.exact_gradient()) < EXACT


@dataclass(frozen=True, eq=False)
class Detour:
    """In state 0 action 1 leads to state 1, action 0 ends; there action 1 pays +1 and action 0 pays -1. γ = 1.

    Old policy (1/2, 1/2) and (3/4, 1/4); new policy (1/2, 1/2) and (1/4, 3/4). In state 1 the new policy earns +1/2,
    the old one -1/2. ∇J(new), in the logits of action 1: 1/4 · 1/2 = 1/8 in state 0; 1/2 · 3/16 · 2 = 3/16 in state 1.
    """

    found: Trajectories
    logits: Tensor
    log_new: Tensor
    log_old: Tensor

    def expected(self, rows: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Differentiate the mean, under the old policy, of ``rows(score, log_ratio)`` summed over steps."""
        score = self.found.action_log_prob(self.log_new)
        log_ratio = score - self.found.action_log_prob(self.log_old)
        surrogate = expected_surrogate(self.found.log_prob(self.log_old), rows(score, log_ratio).sum(0))
        return gradient(surrogate, self.logits)


EXACT_DETOUR = double([-2, 2, -3, 3, 0, 0]) / 16


@pytest.fixture
def detour() -> Detour:
    """Build it."""
    mdp = TabularMDP(
        transition=double([[[0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]]),
        reward=double([[0, 0], [-1, 1], [0, 0]]),
        initial=double([1, 0, 0]),
        discount=0.9,
        terminal=torch.tensor([False, False, True]),
    )
    logits = double([[0, 0], [0, math.log(3)], [0, 0]]).requires_grad_()
    old = double([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]]).log()
    return Detour(enumerate_trajectories(mdp, horizon=2), logits, logits.log_softmax(-1), old)


def test_detour_is_as_derived(detour: Detour) -> None:
    """∇J(new) by its definition, and by the per-decision correction from the old policy's samples."""
    found = detour.found
    mean = expectation(found.log_prob(detour.log_new), found.rewards.sum(0))
    assert off_by(gradient(mean, detour.logits), EXACT_DETOUR) < EXACT
    right = detour.expected(lambda _, ratio: importance_weighted(per_decision_ratio(ratio), found.rewards))
    assert off_by(right, EXACT_DETOUR) < EXACT


def test_cumulative_ratio_times_raw_reward_to_go_misses(detour: Detour) -> None:
    """In state 0 it values the old future: 1/4 · (-1/2) = -1/8, the wrong sign; state 1 comes out right.

    The error vector is (±1/4), ∇J (±1/8, ±3/16): relative error (1/4)/√(1/64 + 9/256) = 4/√13 = 1.109.
    """
    credit = reward_to_go(detour.found.rewards, discount=1.0, done=detour.found.done)
    shortcut = detour.expected(lambda score, ratio: reinforce(score, per_decision_ratio(ratio).detach() * credit))
    assert off_by(shortcut, double([2, -2, -3, 3, 0, 0]) / 16) < EXACT
    assert relative_error(shortcut, EXACT_DETOUR) == pytest.approx(4 / math.sqrt(13), abs=EXACT)


def test_single_step_ratios_and_clipping_miss_away_from_the_old_policy(detour: Detour) -> None:
    """With A^old both have -1/8 in state 0; in state 1 the ratios 3 and 1/3 are past the clip: 0 is left of 3/16.

    V^old is -1/2 in state 1 and 1/2 · (-1/2) = -1/4 in state 0, so A^old is (1/4, -1/4) and (-1/2, 3/2).
    """
    found = detour.found
    advantage = double([[0.25, -0.25], [-0.5, 1.5], [0, 0]])[found.states, found.actions]
    weighted = detour.expected(lambda _, ratio: importance_weighted(step_ratio(ratio), advantage))
    clipped = detour.expected(lambda _, ratio: ppo_clip(step_ratio(ratio), advantage, epsilon=0.2))
    assert off_by(weighted, double([2, -2, -3, 3, 0, 0]) / 16) < EXACT
    assert off_by(clipped, double([2, -2, 0, 0, 0, 0]) / 16) < EXACT


def test_variance_of_off_policy_ratios() -> None:
    """Two steps, old uniform, new (1/4, 3/4) twice, reward a_0: per decision 9/8 - 9/16 = 9/16, by trajectory 27/32.

    E[ρ²] of one step is 1/2 (1/4 + 9/4) = 5/4, so T steps have E[ρ_{0:T-1}²] = (5/4)^T, and 9/8 · 5/4 - 9/16 = 27/32.
    """
    old, new = double([0.5, 0.5]).log(), double([0.25, 0.75]).log()
    for horizon in (1, 2, 3):
        mdp = chain(double([[0, 1]] + [[0, 0]] * (horizon - 1)))
        found = enumerate_trajectories(mdp, horizon=horizon)
        p = found.log_prob(old.expand(horizon + 1, 2))
        log_ratio = (new - old)[found.actions]
        whole = trajectory_ratio(log_ratio)
        assert expectation(p, whole**2).item() == pytest.approx(1.25**horizon, abs=EXACT)
        if horizon == 2:
            per_decision = (per_decision_ratio(log_ratio) * found.rewards).sum(0)
            by_trajectory = whole * found.rewards.sum(0)
            for value, second_moment in ((per_decision, 9 / 8), (by_trajectory, 45 / 32)):
                assert expectation(p, value).item() == pytest.approx(3 / 4, abs=EXACT)
                assert expectation(p, value**2).item() == pytest.approx(second_moment, abs=EXACT)


# --- groups -----------------------------------------------------------------------------------------------------------


def group_gradient(case: Case, group_size: int, advantage: Callable[[Tensor], Tensor]) -> Tensor:
    """Differentiate, on average, the mean over a group of advantage(R) · Σ_t log π(a_t|s_t)."""
    found = case.trajectories
    groups = enumerate_groups(found, case.mdp, group_size=group_size)
    log_prob, score = found.log_prob(case.log_pi), found.action_log_prob(case.log_pi).sum(0)
    rows = reinforce(score[groups.index], advantage(case.returns[groups.index])).mean(0)
    return gradient(expected_surrogate(groups.log_prob(log_prob), rows), case.logits)


def minus_mean(returns: Tensor) -> Tensor:
    """Return less the group's mean: the baseline of GRPO."""
    return returns - returns.mean(0)


def leave_one_out(returns: Tensor) -> Tensor:
    """Return less the mean of the others: RLOO."""
    return returns - (returns.sum(0) - returns) / (len(returns) - 1)


def standardised(returns: Tensor) -> Tensor:
    """Return less the group's mean, by its standard deviation; 0 in a group without differences."""
    deviation = returns.std(0, correction=0)
    flat = returns.amax(0) == returns.amin(0)
    return torch.where(flat, 0.0, minus_mean(returns) / torch.where(flat, 1.0, deviation))


def bandit_case(rewards: Tensor) -> Case:
    """Wrap bandits played uniformly."""
    mdp = bandits(rewards)
    logits = torch.zeros_like(rewards).requires_grad_()
    return Case(mdp, 1, 1.0, logits, logits, logits, logits)


@settings(max_examples=100, deadline=None)
@given(cases(max_states=2, max_horizon=2, max_actions=2), st.integers(2, 4))
def test_group_baselines(case: Case, group_size: int) -> None:
    """Groups are a distribution; leave-one-out gives ∇J, and the group's own mean (G-1)/G of it, whatever the model."""
    groups = enumerate_groups(case.trajectories, case.mdp, group_size=group_size)
    total = groups.log_prob(case.trajectories.log_prob(case.log_pi)).exp().sum()
    assert off_by(total, torch.ones((), dtype=torch.float64)) < EXACT
    exact = case.exact_gradient()
    assert off_by(group_gradient(case, group_size, leave_one_out), exact) < EXACT
    assert off_by(group_gradient(case, group_size, minus_mean), (group_size - 1) / group_size * exact) < EXACT


def test_groups_are_counted() -> None:
    """Two bandits of two arms, pairs: from each state the multisets 00, 01, 11 in 1, 2, 1 orders."""
    case = bandit_case(double([[0, 1], [0, 1]]))
    groups = enumerate_groups(case.trajectories, case.mdp, group_size=2)
    assert groups.index.T.tolist() == [[0, 0], [0, 1], [1, 1], [2, 2], [2, 3], [3, 3]]
    assert off_by(groups.log_multiplicity.exp(), double([1, 2, 1, 1, 2, 1])) < 1e-14
    probability = groups.log_prob(case.trajectories.log_prob(case.log_pi)).exp()
    assert off_by(probability, double([1, 2, 1, 1, 2, 1]) / 8) < 1e-14


def test_the_groups_mean_halves_the_gradient_of_pairs() -> None:
    """G = 2 on a fair bandit paying (0, 1): ∇J = 1/4, with the group's mean 1/8."""
    case = bandit_case(double([[0, 1]]))
    assert off_by(case.exact_gradient(), double([-1, 1]) / 4) < EXACT
    assert off_by(group_gradient(case, 2, minus_mean), double([-1, 1]) / 8) < EXACT


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_the_groups_std_forgets_what_is_at_stake(group_size: int) -> None:
    """Two fair bandits paying (0, 1) and (0, 10): ∇J has parts 1 : 10, standardised groups 1 : 1, for every G.

    The cosine is (1·1 + 10·1)/(√101 √2) = 11/√202 = 0.774.
    """
    case = bandit_case(double([[0, 1], [0, 10]]))
    wrong = group_gradient(case, group_size, standardised)
    assert off_by(wrong[2:], wrong[:2]) < EXACT
    assert cosine(wrong, case.exact_gradient()) == pytest.approx(11 / math.sqrt(202), abs=EXACT)


def test_the_groups_std_turns_the_direction_within_one_state() -> None:
    """One fair bandit paying (0, 1, 10), G = 2: a pair's standardised returns are ±1, so only the ranks count.

    Each arm's mean advantage is P(beats the other) - P(is beaten) = (-2/3, 0, 2/3), where the true ones are
    (-11/3, -8/3, 19/3). Cosine (22 + 38)/(√8 √(121 + 64 + 361)) = 60/√4368 = 0.908.
    """
    case = bandit_case(double([[0, 1, 10]]))
    wrong = group_gradient(case, 2, standardised)
    assert off_by(wrong, double([-2, 0, 2]) / 9) < EXACT
    assert cosine(wrong, case.exact_gradient()) == pytest.approx(60 / math.sqrt(4368), abs=EXACT)


# --- one latent for several steps -------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(cases())
def test_an_episode_long_latent_is_a_mixture_of_markov_policies(case: Case) -> None:
    """J = Σ_s ρ(s) Σ_z p(z|s) J_z(s), with J_z from the Bellman equations: an answer without trajectories."""
    found, (log_prior, log_decoder) = case.trajectories, case.latent_policy
    objective = torch.zeros((), dtype=torch.float64)
    for z in range(log_prior.shape[1]):
        task, table = case.clocked(log_decoder[:, z])
        values = task.state_values(table)[: case.mdp.num_states]
        objective = objective + case.mdp.initial @ (log_prior[:, z].exp() * values)
    rows = found.span_log_prob(log_prior, log_decoder, span=case.horizon)
    mean = expectation(found.log_dynamics + rows.sum(0), case.returns)
    assert off_by(mean, objective) < EXACT
    parameters = (case.prior_logits, case.decoder_logits)
    assert off_by(gradient(mean, *parameters), gradient(objective, *parameters)) < EXACT


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 3))
def test_rows_are_spans(case: Case, span: int) -> None:
    """∇J from rows with the total return or with what is earned from the row's start on, and from exact predictives.

    Also with the recorded z as part of the action, each step with its own γ^t G_t.
    """
    found, parameters = case.trajectories, (case.prior_logits, case.decoder_logits)
    rows = found.span_log_prob(*case.latent_policy, span=span)
    predictive = found.predictive_log_prob(*case.latent_policy, span=span)
    log_prob = found.log_dynamics + rows.sum(0)
    exact = gradient(expectation(log_prob, case.returns), *parameters)
    for surrogate in (
        reinforce(rows.sum(0), case.returns),
        reinforce(rows, case.to_go[::span]).sum(0),
        reinforce(predictive, case.to_go).sum(0),
    ):
        assert off_by(gradient(expected_surrogate(log_prob, surrogate), *parameters), exact) < EXACT

    joint = enumerate_trajectories(case.mdp, horizon=case.horizon, num_latents=case.prior_logits.shape[1], span=span)
    steps = joint.joint_log_prob(*case.latent_policy)
    credit = discounted_reward_to_go(joint.rewards, discount=case.discount, done=joint.done)
    recorded = expected_surrogate(joint.log_dynamics + steps.sum(0), reinforce(steps, credit).sum(0))
    assert off_by(gradient(recorded, *parameters), exact) < EXACT


def _steps_as_rows(rewards: Tensor, *, span: int) -> tuple[Tensor, Tensor]:
    """Return the expected gradient with every step a row of its own exact marginal, and ∇J, of one set of logits."""
    prior = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    decoder = double([[0.75, 0.25], [0.25, 0.75]]).log().requires_grad_()
    mdp = chain(rewards)
    found = enumerate_trajectories(mdp, horizon=len(rewards))
    states = mdp.num_states
    policy = prior.log_softmax(-1).expand(states, -1), decoder.log_softmax(-1).expand(states, -1, -1)
    log_prob = found.log_dynamics + found.span_log_prob(*policy, span=span).sum(0)
    marginal = found.span_log_prob(*policy, span=1)
    credit = reward_to_go(found.rewards, discount=1.0, done=found.done)
    wrong = expected_surrogate(log_prob, reinforce(marginal, credit).sum(0))
    exact = expectation(log_prob, found.rewards.sum(0))
    return gradient(wrong, prior, decoder), gradient(exact, prior, decoder)


def test_steps_of_an_episode_long_latent_as_separate_rows_miss() -> None:
    """A fair z for two steps, action z with probability 3/4, rewards 11/10 a_0 then -a_1, reward-to-go, γ = 1.

    π(1) = 1/2. ∂π(1)/∂φ_1 = (3/4 - 1/4)/4 = 1/8 and ∂π(1)/∂θ_{z1} = 1/2 · 3/16 = 3/32, so ∇J = (11/10 - 1) ∇π(1): 1/80
    in φ_1. The rows add E[∇log π(a_0) · (-a_1)], which is not 0, as z ties a_1 to a_0: ∇log π is ±1/4 in φ_1 and
    P(a_1=1, a_0=1) - P(a_1=1, a_0=0) = 5/16 - 3/16 = 1/8, so it is -1/32, and -3/128 in θ: -1/4 ∇π(1) in all. The sum
    is (1/10 - 1/4) ∇π(1): -3/2 times the gradient, the wrong way.
    """
    rewards = double([[0, 1.1], [0, -1]])
    ascent = double([-4, 4, -3, 3, -3, 3]) / 32
    wrong, exact = _steps_as_rows(rewards, span=2)
    assert off_by(exact, 0.1 * ascent) < EXACT
    assert off_by(wrong, -0.15 * ascent) < EXACT
    assert relative_error(wrong, exact) == pytest.approx(2.5, abs=EXACT)


def test_steps_as_separate_rows_are_right_for_a_latent_per_step() -> None:
    """The same model with a fresh z each step: the rows are the steps, and the gradient is exact."""
    wrong, exact = _steps_as_rows(double([[0, 1.1], [0, -1]]), span=1)
    assert off_by(wrong, exact) < EXACT


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_forgetting_the_detach_tests_nothing() -> None:
    """With p differentiated too, E[b] with a constant b has gradient 0 both ways, but E[log π] has not."""
    p = double([0.25, 0.75]).requires_grad_()
    assert off_by(gradient(expectation(p.log(), 8.0 * p.log()), p), 8.0 * (p.detach().log() + 1.0)) < EXACT
    assert off_by(gradient(expected_surrogate(p.log(), 8.0 * p.log()), p), double([8.0, 8.0])) < EXACT


def test_enumeration_refuses() -> None:
    """Sizes below one, more columns than allowed, latents that were not enumerated, groups of one."""
    mdp = chain(torch.zeros(3, 2, dtype=torch.float64))
    sizes = [(0, None, 1), (1, 0, 1), (1, 2, 0)]
    for horizon, latents, span in sizes:
        with pytest.raises(OptionError, match="at least 1"):
            enumerate_trajectories(mdp, horizon=horizon, num_latents=latents, span=span)
    with pytest.raises(OptionError, match="more than 7 trajectories at step 2"):
        enumerate_trajectories(mdp, horizon=3, max_columns=7)
    found = enumerate_trajectories(mdp, horizon=3, max_columns=8)
    with pytest.raises(OptionError, match=r"no latents[\s\S]*num_latents=C"):
        found.joint_log_prob(torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, 2, dtype=torch.float64))
    with pytest.raises(OptionError, match=r"span"):
        found.span_log_prob(torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, 2, dtype=torch.float64), span=0)
    with pytest.raises(OptionError, match="one episode is no group"):
        enumerate_groups(found, mdp, group_size=1)


@pytest.mark.production
def test_expectations_want_one_number_a_trajectory() -> None:
    """Steps that were not summed are named."""
    for function in (expectation, expected_surrogate):
        with pytest.raises(ShapeError, match=r"\[N=3\][\s\S]*\[2, 3\][\s\S]*value.sum\(0\)"):
            function(torch.zeros(3), torch.zeros(2, 3))
