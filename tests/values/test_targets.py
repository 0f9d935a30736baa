"""Targets: which end bootstraps, no gradient through any, and the exact values as their fixed point."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.oracles.mdp import finite_horizon
from latentpg.oracles.trajectories import enumerate_trajectories
from latentpg.values import TD0, Experience, MonteCarlo, NetworkCritic, NStep, Target, TDLambda, state_values
from tests.values.tabular import double, ending, flag, sampled, table

TARGETS: list[Target] = [
    MonteCarlo(discount=0.8),
    TD0(discount=0.8),
    NStep(discount=0.8, num_steps=2),
    NStep(discount=0.8, num_steps=9),
    TDLambda(discount=0.8, trace_decay=0.6),
]


def by_name(target: object) -> str:
    return repr(target)


def walk(terminated: Tensor, truncated: Tensor) -> Experience:
    """Walk through the states 0, 1, 2 to 3, one reward 1, 2, 4 a step, in one column."""
    hot = torch.eye(4, dtype=torch.float64)[:, None]
    return Experience(hot[:3], double([[1.0], [2.0], [4.0]]), hot[1:], terminated[:, None], truncated[:, None])


# Values 10, 20, 30, 40 and discount 1/2. One step: 1 + 10, 2 + 15, 4 + 20. What is cut bootstraps, terminated does not.
NONE = flag(False, False, False)
MIDDLE = flag(False, True, False)
LAST = flag(False, False, True)
GOLDEN = {
    TD0(discount=0.5): {
        "open": [11.0, 17.0, 24.0], "terminated": [11.0, 2.0, 24.0], "truncated": [11.0, 17.0, 24.0],
        "terminated at last": [11.0, 17.0, 4.0],
    },
    NStep(discount=0.5, num_steps=2): {
        "open": [1 + 17 / 2, 2 + 24 / 2, 24.0], "terminated": [1 + 2 / 2, 2.0, 24.0],
        "truncated": [1 + 17 / 2, 17.0, 24.0], "terminated at last": [1 + 17 / 2, 2 + 4 / 2, 4.0],
    },
    MonteCarlo(discount=0.5): {
        "open": [1 + 14 / 2, 2 + 24 / 2, 24.0], "terminated": [1 + 2 / 2, 2.0, 24.0],
        "truncated": [1 + 17 / 2, 17.0, 24.0], "terminated at last": [1 + 4 / 2, 2 + 4 / 2, 4.0],
    },
    TDLambda(discount=0.5, trace_decay=0.5): {  # brackets are means of the next value and the next target
        "open": [1 + (20 + 15.5) / 4, 2 + (30 + 24) / 4, 24.0], "terminated": [1 + (20 + 2) / 4, 2.0, 24.0],
        "truncated": [1 + (20 + 17) / 4, 17.0, 24.0],
        "terminated at last": [1 + (20 + 10.5) / 4, 2 + (30 + 4) / 4, 4.0],
    },
}  # fmt: skip
ENDS = {
    "open": (NONE, NONE),
    "terminated": (MIDDLE, NONE),
    "truncated": (NONE, MIDDLE),
    "terminated at last": (LAST, NONE),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("target", GOLDEN, ids=by_name)
def test_golden(target: Target, ends: str) -> None:
    critic = table(4, double([10.0, 20.0, 30.0, 40.0]))
    assert target(critic, walk(*ENDS[ends])).flatten().tolist() == pytest.approx(GOLDEN[target][ends])


@pytest.mark.parametrize("target", GOLDEN, ids=by_name)
def test_a_step_that_is_both_is_terminated(target: Target) -> None:
    critic = table(4, double([10.0, 20.0, 30.0, 40.0]))
    assert torch.equal(target(critic, walk(MIDDLE, MIDDLE)), target(critic, walk(MIDDLE, NONE)))


@pytest.mark.parametrize("target", TARGETS, ids=by_name)
def test_no_gradient_runs_through_a_target(target: Target) -> None:
    mdp, pi = ending()
    critic = NetworkCritic(4).double()
    assert not target(critic, sampled(mdp, pi, steps=5, copies=1)).requires_grad


@pytest.mark.parametrize("target", TARGETS, ids=by_name)
def test_the_exact_values_are_every_targets_fixed_point(target: Target) -> None:
    """The mean of the target over all trajectories, at each visited state of the clocked process, is its V.

    The trajectories are cut after two of three steps, so that there V of the last next state stands for the rest; some
    terminate before.
    """
    mdp, pi = ending()
    clocked = finite_horizon(mdp, horizon=3)
    policy = torch.cat([pi.repeat(3, 1), pi[:1]])
    exact = clocked.state_values(policy)
    # of three actions the first two are looked at: what step t + 1 visits is then the next state of step t
    paths = enumerate_trajectories(clocked, horizon=3)
    probability = paths.log_prob(policy.log()).exp()
    hot = torch.eye(clocked.num_states, dtype=torch.float64)
    acted, ended = paths.mask[:2], ~clocked.live[paths.states[1:]] | ~paths.mask[1:]
    steps = Experience(hot[paths.states[:2]], paths.rewards[:2], hot[paths.states[1:]], ended, torch.zeros_like(ended))
    found = target(table(clocked.num_states, exact), steps)
    weight = probability.expand_as(found) * acted
    visits = torch.zeros_like(exact).index_add(0, paths.states[:2].flatten(), weight.flatten())
    total = torch.zeros_like(exact).index_add(0, paths.states[:2].flatten(), (weight * found).flatten())
    seen = visits > 1e-12
    assert int(seen.sum()) == 6
    assert (total[seen] / visits[seen] - exact[seen]).abs().max() < 1e-10


def test_state_values_are_the_critics_step_by_step() -> None:
    critic, obs = NetworkCritic(3), torch.randn(4, 2, 3)
    values = state_values(critic, obs)
    assert not values.requires_grad
    torch.testing.assert_close(values[3, 1], critic(obs[3, 1:])[0].detach())


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: MonteCarlo(discount=1.1), r"MonteCarlo\(\): `discount`\n  expected: a number in \[0, 1\]"),
        (lambda: TD0(discount=-0.1), r"TD0\(\): `discount`"),
        (lambda: NStep(discount=2.0, num_steps=1), r"NStep\(\): `discount`"),
        (lambda: NStep(discount=0.9, num_steps=0), r"NStep\(\): `num_steps`\n  expected: an integer >= 1"),
        (lambda: TDLambda(discount=2.0, trace_decay=1.0), r"TDLambda\(\): `discount`"),
        (lambda: TDLambda(discount=0.9, trace_decay=float("nan")), r"TDLambda\(\): `trace_decay`"),
    ],
)
def test_options_out_of_range_are_refused(make: type, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.production
@pytest.mark.parametrize(
    "part,value,message",
    [
        ("obs", torch.zeros(3, 4), r"`obs`\n  expected: \[T, N, S\]"),
        ("obs", torch.zeros(0, 1, 4), r"`obs`\n  expected: \[T, N, S\]"),
        ("reward", torch.zeros(3), r"`reward`\n  expected: \[3, 1\], the steps of `obs`"),
        ("next_obs", torch.zeros(3, 1, 5), r"`next_obs`\n  expected: \[3, 1, 4\]"),
        ("terminated", torch.zeros(3, 2, dtype=torch.bool), "`terminated`"),
        ("truncated", torch.zeros(3, 1), "`truncated` is not a mask"),
    ],
)
def test_parts_of_other_shapes_are_refused(part: str, value: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        dataclasses.replace(walk(NONE, NONE), **{part: value})


def test_rewards_that_are_not_finite_are_refused_by_their_place() -> None:
    reward = double([[1.0], [float("nan")], [0.0]])
    with pytest.raises(OptionError, match=r"`reward` holds NaN or infinity[\s\S]*nan at step 1 of environment 0"):
        dataclasses.replace(walk(NONE, NONE), reward=reward)
