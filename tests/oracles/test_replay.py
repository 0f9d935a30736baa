"""Depth-first replay: programs whose draws depend on what was drawn, and agreement with the vectorised oracle."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import ConditionalIS, Guide, MarkovianIS, Mixture
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.oracles.replay import Path, replay
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import Categorical, act, draw


def mean(paths: list[Path[Tensor]]) -> Tensor:
    return torch.stack([path.prob * path.result for path in paths]).sum(0)


def test_a_walk_that_stops_when_it_will() -> None:
    """Steps of a walk until it first moves right, at most four: 1/2, 1/4, 1/8, 1/8."""

    def walk() -> int:
        fair = Categorical(torch.zeros(2, dtype=torch.float64))
        for step in range(1, 4):
            if draw("step", fair).item() == 1:
                return step
        return 4

    law: dict[int, float] = {}
    for path in replay(walk):
        law[path.result] = law.get(path.result, 0.0) + path.prob
    assert law == pytest.approx({1: 0.5, 2: 0.25, 3: 0.125, 4: 0.125})


def test_a_program_without_draws_is_one_path() -> None:
    assert [(path.prob, path.result) for path in replay(lambda: "done")] == [(1.0, "done")]


def test_choices_of_probability_zero_are_not_taken() -> None:
    hole = Categorical(torch.tensor([0.0, -torch.inf, 0.0], dtype=torch.float64))
    assert [int(path.result) for path in replay(lambda: draw("z", hole))] == [0, 2]


def test_gaussian_draws_and_vectors() -> None:
    normal = dist.Normal(torch.full((2,), 1.0, dtype=torch.float64), 2.0).to_event(1)
    paths = replay(lambda: draw("z", normal), num_nodes=3)
    assert len(paths) == 9
    assert torch.allclose(mean(paths), torch.ones(2, dtype=torch.float64))
    assert math.fsum(path.prob * float(path.result[0] ** 2) for path in paths) == pytest.approx(5.0)


def test_too_many_paths_are_refused() -> None:
    fair = Categorical(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(OptionError, match="too many paths"):
        replay(lambda: draw("z", fair, (8,)), max_paths=100)


@pytest.mark.parametrize(
    "estimator", [ConditionalIS(3, Guide()), ConditionalIS(2, Mixture()), MarkovianIS(2, num_sweeps=1)], ids=repr
)
def test_it_agrees_with_the_vectorised_oracle(estimator: ConditionalIS | MarkovianIS) -> None:
    """Acting, then estimating: every path one by one, and all at once."""
    torch.manual_seed(0)
    policy = TabularLatentPolicy.random(num_states=1, num_latents=2, num_actions=2)

    def program(row: Tensor) -> Tensor:
        obs = torch.zeros_like(row)
        acted = act(policy, obs)
        particles = estimator.propose(policy, obs, acted.action, acted.latents)
        return estimator.estimate(policy, obs, acted.action, particles).log_prob.detach()

    every = enumerate_draws(program)
    one_by_one = replay(lambda: program(torch.zeros(1, dtype=torch.int64)))
    assert len(one_by_one) == len(every.row)
    assert torch.allclose(mean(one_by_one), every.expectation(every.result), atol=1e-13)


def test_acting_leaves_a_posterior_draw_behind() -> None:
    """The law of (z, a) is the joint: so given a, z is a draw from the posterior."""
    torch.manual_seed(0)
    policy = TabularLatentPolicy.random(num_states=1, num_latents=3, num_actions=2)
    paths = replay(lambda: act(policy, torch.zeros(1, dtype=torch.int64)))
    joint = torch.zeros(3, 2, dtype=torch.float64)
    for path in paths:
        z, a = int(path.result.latents["z"]), int(path.result.action)
        joint[z, a] += path.prob
        assert float(path.result.log_joint) == pytest.approx(path.log_prob)
    assert torch.allclose(joint, policy.log_joint()[0].exp().detach(), atol=1e-14)
