"""The one door for randomness: sources are asked, scopes are closed, and the library has no other door."""

import contextvars

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from latentpg.oracles.enumeration import take_atoms
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import Categorical, DiagNormal, DrawSource, LatentPolicy, act, draw, drawing
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, EstimatorCase, GuideCase


class First:
    """Answers with the first of a draw's values, and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...], bool]] = []

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        self.asked.append((name, tuple(sample_shape), pathwise))
        choice = torch.zeros(sample_shape + fn.batch_shape, dtype=torch.int64)
        return take_atoms(fn, choice, 3, pathwise=pathwise)[0]


def test_without_a_source_it_is_the_ambient_stream() -> None:
    fn = dist.Normal(torch.zeros(3), torch.ones(3))
    torch.manual_seed(5)
    mine = draw("z", fn, (2,))
    torch.manual_seed(5)
    assert torch.equal(mine, fn.sample(torch.Size((2,))))


def test_pathwise_uses_rsample_where_there_is_one() -> None:
    loc = torch.zeros(3, requires_grad=True)
    assert draw("z", DiagNormal(loc, torch.zeros(3)), pathwise=True).requires_grad
    assert not draw("z", DiagNormal(loc, torch.zeros(3))).requires_grad
    logits = torch.zeros(3, requires_grad=True)
    assert not draw("z", Categorical(logits), pathwise=True).requires_grad


def test_a_source_is_told_what_is_drawn() -> None:
    source = First()
    assert isinstance(source, DrawSource)
    with drawing(source):
        value = draw("z", Categorical(torch.zeros(4, 2)), (3,), pathwise=True)
    assert value.shape == (3, 4)
    assert source.asked == [("z", (3,), True)]


def test_scopes_nest_and_close() -> None:
    outer, inner, fn = First(), First(), Categorical(torch.zeros(2))
    with drawing(outer):
        with drawing(inner):
            draw("a", fn)
        draw("b", fn)
    draw("c", fn)
    assert [name for name, *_ in inner.asked] == ["a"]
    assert [name for name, *_ in outer.asked] == ["b"]


def test_a_scope_closes_on_an_error() -> None:
    source = First()
    with pytest.raises(ZeroDivisionError), drawing(source):
        raise ZeroDivisionError
    draw("z", Categorical(torch.zeros(2)))
    assert not source.asked


def test_another_context_has_its_own_source() -> None:
    """Threads begin with a context of their own: a source in one is not heard in another."""
    source = First()
    with drawing(source):
        contextvars.Context().run(draw, "z", Categorical(torch.zeros(2)))
    assert not source.asked


def data(kinds: tuple[str, ...]) -> tuple[LatentPolicy, Tensor, Tensor, dict[str, Tensor]]:
    policy: LatentPolicy
    if "step" in kinds:
        policy = TabularLatentPolicy.random(num_states=3, num_latents=3, num_actions=2)
    else:
        policy = LinearGaussianPolicy.random(num_states=3, latent_size=2, action_size=1)
    acted = act(policy, torch.arange(3))
    return policy, torch.arange(3), acted.action, dict(acted.latents)


@pytest.mark.parametrize("case", ESTIMATOR_CASES, ids=lambda case: case.id)
def test_no_estimator_draws_by_another_door(case: EstimatorCase) -> None:
    """With every draw answered, torch's stream stands still; what is exact does without any source as well."""
    policy, obs, action, latents = data(case.kinds)
    before = torch.get_rng_state()
    with drawing(First()):
        act(policy, obs)
        particles = case.make(4).propose(policy, obs, action, latents)
        case.make(4).estimate(policy, obs, action, particles)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", GUIDE_CASES, ids=lambda case: case.id)
def test_no_guide_objective_draws_by_another_door(case: GuideCase) -> None:
    policy, obs, action, latents = data(case.kinds)
    before = torch.get_rng_state()
    with drawing(First()):
        stored = None if case.particles is None else case.particles(4).propose(policy, obs, action, latents)
        case.make(4).loss(policy, obs, action, particles=stored, latents=latents)
    assert torch.equal(torch.get_rng_state(), before)
