"""Online TD: golden steps, the forward view, and sampled updates against their own exact mean and variance."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.values import Experience, Fourier, Identity, LinearCritic, Ranges, TDLambda, online_td
from tests.values.tabular import double, ending, flag, sampled, table


def column(states: list[int], reward: list[float], terminated: Tensor, truncated: Tensor) -> Experience:
    """Walk through states in one environment."""
    hot = torch.eye(max(states) + 1, dtype=torch.float64)[states][:, None]
    return Experience(hot[:-1], double(reward)[:, None], hot[1:], terminated[:, None], truncated[:, None])


def test_two_steps_of_td0_golden() -> None:
    """Values (1, 2, 3), discount 1/2, step size 1/4.

    0 -> 1 with reward 1: error 1 + 1 - 1 = 1, V0 = 5/4. 1 -> 2 with reward 0: error 0 + 3/2 - 2 = -1/2, V1 = 15/8.
    """
    critic, steps = (
        table(3, double([1.0, 2.0, 3.0])),
        column([0, 1, 2], [1.0, 0.0], flag(False, False), flag(False, False)),
    )
    done = online_td(critic, steps, discount=0.5, step_size=0.25)
    assert done.td_error.flatten().tolist() == [1.0, -0.5]
    assert critic.weight.tolist() == [1.25, 1.875, 3.0]


def test_two_steps_of_td_lambda_golden() -> None:
    """The same with traces at λ = 1/2: the second error also moves V0, by 1/4 · -1/2 · (1/2 · 1/2) = -1/32."""
    critic, steps = (
        table(3, double([1.0, 2.0, 3.0])),
        column([0, 1, 2], [1.0, 0.0], flag(False, False), flag(False, False)),
    )
    done = online_td(critic, steps, discount=0.5, step_size=0.25, trace_decay=0.5)
    assert critic.weight.tolist() == [1.25 - 1 / 32, 1.875, 3.0]
    assert done.trace.tolist() == [[0.25, 1.0, 0.0]]


@pytest.mark.parametrize("terminated,truncated,error", [(True, False, 1.0), (False, True, 6.0), (True, True, 1.0)])
def test_a_cut_step_bootstraps_and_a_terminated_one_does_not_and_both_end_the_trace(
    terminated: bool, truncated: bool, error: float
) -> None:
    critic, steps = table(2, double([0.0, 10.0])), column([0, 1], [1.0], flag(terminated), flag(truncated))
    done = online_td(critic, steps, discount=0.5, step_size=0.5, trace_decay=0.9)
    assert done.td_error.item() == error and critic.weight.tolist() == [error / 2, 10.0]
    assert done.trace.tolist() == [[0.0, 0.0]]


def several_episodes() -> Experience:
    """Random observations of three environments, with both kinds of ends among them."""
    ends = torch.rand(12, 3)
    obs = torch.rand(13, 3, 1, dtype=torch.float64)
    return Experience(obs[:-1], torch.randn(12, 3, dtype=torch.float64), obs[1:], ends < 0.15, ends > 0.8)


@pytest.mark.parametrize("trace_decay", [0.0, 0.5, 1.0])
def test_the_traces_add_up_to_the_forward_view(trace_decay: float) -> None:
    r"""Where weights hardly move, the sum of the changes over α is the mean over N of Σ_t (G^λ_t - V_t) φ_t.

    They differ by O(α): with α = 1e-8 and sums of order 10, by far less than 1e-5.
    """
    steps, features = several_episodes(), Fourier(Ranges((0.0,), (1.0,)), order=3)
    critic, start = LinearCritic(features, dtype=torch.float64), double([1.0, -2.0, 0.5, 3.0])
    critic.load(start)
    target = TDLambda(discount=0.9, trace_decay=trace_decay)(critic, steps)
    phi = features(steps.obs.flatten(0, 1))
    expected = (target.flatten() - phi @ start) @ phi / 3
    online_td(critic, steps, discount=0.9, step_size=1e-8, trace_decay=trace_decay)
    assert expected.abs().max() > 0.5
    assert ((critic.weight.detach() - start) / 1e-8 - expected).abs().max() < 1e-5


def test_a_pass_in_two_parts_is_one_pass() -> None:
    steps, features = several_episodes(), Fourier(Ranges((0.0,), (1.0,)), order=3)
    whole, parts = (LinearCritic(features, dtype=torch.float64) for _ in range(2))
    expected = online_td(whole, steps, discount=0.9, step_size=0.1, trace_decay=0.8)
    halves = [
        dataclasses.replace(steps, **{f.name: getattr(steps, f.name)[rows] for f in dataclasses.fields(steps)})
        for rows in (slice(0, 5), slice(5, 12))
    ]
    first = online_td(parts, halves[0], discount=0.9, step_size=0.1, trace_decay=0.8)
    second = online_td(parts, halves[1], discount=0.9, step_size=0.1, trace_decay=0.8, trace=first.trace)
    assert torch.equal(whole.weight, parts.weight)
    assert torch.equal(torch.cat([first.td_error, second.td_error]), expected.td_error)
    assert first.trace.abs().sum() > 0.0  # an episode was open there, so that the trace was needed


def test_step_sizes_by_step_and_by_feature() -> None:
    """Values 0 and no discount: step t of size 1/(t+1), the features' factors 1 and 10."""
    critic = table(2)
    steps = column([0, 1, 0], [1.0, 1.0], flag(False, False), flag(False, False))
    online_td(critic, steps, discount=0.0, step_size=lambda t: 1.0 / (t + 1), feature_scales=double([1.0, 10.0]))
    assert critic.weight.tolist() == [1.0, 5.0]


@pytest.mark.parametrize("confused", [False, True])
def test_sampled_tabular_td_reaches_the_exact_values_as_its_own_variance_allows(confused: bool) -> None:
    r"""Decaying steps against the exact mean m and covariance C of the weights after each of them.

    With R independent samples of each of the 3 live states a step, and a = α/3,
    m' = m + a (r + γPm - m) and C' = A C A' + a²/R diag(v), A = I - a (I - γP), where v_s is the variance of
    r + γV(s') given s, averaged over the weights: a quadratic in them. By Chebyshev a weight is farther than
    10 standard deviations from its mean with probability below 1/100. That mean lies within 1e-6 of V, and the whole
    bound is below 0.15. The confused run, which takes cut steps for terminated ones, must break it.
    """
    mdp, pi = ending()
    horizon, copies = 1500, 200
    steps = sampled(mdp, pi, steps=horizon, copies=copies)
    if confused:
        steps = dataclasses.replace(steps, terminated=steps.done)
    critic = table(4)
    online_td(critic, steps, discount=0.8, step_size=lambda t: 3.0 * 10.0 / (10.0 + t))

    live = slice(0, 3)
    joint = pi[live, :, None] * mdp.transition[live]  # p(a, s' | s), the end among the s'
    under, reward = joint.sum(1)[:, live], (pi * mdp.reward).sum(-1)[live]
    mean, cov = torch.zeros(3).double(), torch.zeros(3, 3).double()
    for t in range(horizon):
        a = 10.0 / (10.0 + t)
        following, second = torch.zeros(4).double(), torch.zeros(4).double()  # E V(s') and E V(s')², 0 at the end
        following[live], second[live] = mean, cov.diagonal() + mean.square()
        r = mdp.reward[live][:, :, None]
        square = (joint * (r.square() + 1.6 * r * following + 0.64 * second)).sum((1, 2))
        backed_up = reward + 0.8 * under @ mean
        v = square - backed_up.square() - 0.64 * (under @ cov @ under.T).diagonal()
        shrink = (1.0 - a) * torch.eye(3).double() + a * 0.8 * under
        mean, cov = mean + a * (backed_up - mean), shrink @ cov @ shrink.T + a * a / copies * torch.diag(v)

    exact = mdp.state_values(pi)[live]
    bound = (mean - exact).abs() + 10.0 * cov.diagonal().sqrt()
    assert (mean - exact).abs().max() < 1e-6 and bound.max() < 0.15
    within = bool(((critic.weight.detach()[live] - exact).abs() <= bound).all())
    assert within is not confused


# --- refused ----------------------------------------------------------------------------------------------------------


def test_divergence_is_refused_and_the_weights_are_those_before() -> None:
    """Feature 10 and step size 1: each error is -99 times the one before, until the numbers end."""
    ones = torch.full((400, 1, 1), 10.0)
    no = torch.zeros(400, 1, dtype=torch.bool)
    critic = LinearCritic(Identity(1))
    with pytest.raises(OptionError, match=r"the change of the weights at step \d+ is NaN or infinite; it was not made"):
        online_td(critic, Experience(ones, torch.ones(400, 1), ones, no, no), discount=0.0, step_size=1)
    assert bool(critic.weight.isfinite().all()) and critic.weight.abs().item() > 1e10


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan"), lambda t: 0.5 - t])
def test_step_sizes_are_positive(step_size: float) -> None:
    steps = column([0, 1, 0], [1.0, 1.0], flag(False, False), flag(False, False))
    with pytest.raises(OptionError, match=r"`step_size`\n  expected: a positive number\n  got:      .* at step [01]"):
        online_td(table(2), steps, discount=0.5, step_size=step_size)


def test_fractions_are_in_range() -> None:
    steps = column([0, 1], [1.0], flag(False), flag(False))
    with pytest.raises(OptionError, match=r"online_td\(\): `discount`\n  expected: a number in \[0, 1\]"):
        online_td(table(2), steps, discount=1.5, step_size=0.1)
    with pytest.raises(OptionError, match=r"online_td\(\): `trace_decay`\n  expected: a number in \[0, 1\]"):
        online_td(table(2), steps, discount=0.5, step_size=0.1, trace_decay=-0.5)


def test_traces_and_scales_of_another_size_are_refused() -> None:
    steps = column([0, 1], [1.0], flag(False), flag(False))
    with pytest.raises(ShapeError, match=r"`trace`\n  expected: \[N=1, F=2\]"):
        online_td(table(2), steps, discount=0.5, step_size=0.1, trace=torch.zeros(1, 3).double())
    with pytest.raises(ShapeError, match=r"`feature_scales`\n  expected: \[F=2\]"):
        online_td(table(2), steps, discount=0.5, step_size=0.1, feature_scales=torch.ones(3).double())
