"""Traps of Pyro's that this library must not fall into; what one run of a program does is in ``test_capture``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from pyro import poutine
from pyro.infer import RenyiELBO
from torch import Tensor, nn

from latentpg.errors import ShapeError, SupportError
from latentpg.estimators import Exact, MarkovianIS, Mixture, PosteriorIS, Reparameterized
from latentpg.estimators.guides import VIMCO, Sleep
from latentpg.policies import GaussianPolicy, MixturePolicy, from_pyro, svi_pair
from latentpg.programs import (
    act,
    conditionals,
    draw_guide,
    draw_prior,
    log_joint,
    score_guide,
    score_prior,
    support,
)
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, EstimatorCase, GuideCase
from tests.programs.reference import Plain

OBS = spaces.Box(-1.0, 1.0, (3,))
ROWS, K = 3, 4


def mixture() -> MixturePolicy:
    return MixturePolicy(OBS, spaces.Discrete(3), num_components=3, hidden=(4,)).double()


def gaussian() -> GaussianPolicy:
    policy = GaussianPolicy(OBS, spaces.Box(-1.0, 1.0, (2,)), hidden=(4,)).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.3)  # smooth enough for quadrature
    return policy


def observations() -> Tensor:
    return torch.randn(ROWS, 3, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------- global state


@contextmanager
def nothing_global_moves() -> Iterator[None]:
    """Keep a parameter of somebody else's in the store, and every switch of Pyro's at what nobody would choose."""
    pyro.param("theirs", torch.tensor([2.0]))
    store = pyro.get_param_store()
    with pyro.settings.context(validate_distributions_pyro=False, validate_infer=False, validate_poutine=False):
        chosen = pyro.settings.get()
        yield
        assert pyro.settings.get() == chosen
    assert pyro.get_param_store() is store and set(store.keys()) == {"theirs"}
    assert torch.equal(store["theirs"], torch.tensor([2.0]))
    assert not poutine.runtime._PYRO_STACK


@pytest.mark.parametrize("case", ESTIMATOR_CASES, ids=lambda case: case.id)
def test_no_estimator_touches_pyro_s_global_state(case: EstimatorCase) -> None:
    policy, obs = gaussian() if case.name in ("quadrature", "reparameterized") else mixture(), observations()
    with nothing_global_moves():
        acted = act(policy, obs)
        particles = case.make(K).propose(policy, obs, acted.action, acted.latents)
        case.make(K).estimate(policy, obs, acted.action, particles).log_prob.sum().backward()


@pytest.mark.parametrize("case", GUIDE_CASES, ids=lambda case: case.id)
def test_no_guide_objective_touches_pyro_s_global_state(case: GuideCase) -> None:
    policy, obs = mixture() if "step" in case.kinds else gaussian(), observations()
    with nothing_global_moves():
        acted = act(policy, obs)
        particles = None
        if case.particles is not None:
            particles = case.particles(K).propose(policy, obs, acted.action, acted.latents)
        loss = case.make(K).loss(policy, obs, acted.action, particles=particles, latents=acted.latents)
        loss.sum().backward()


def test_the_state_s_guard_sees_what_it_should() -> None:
    for move in (
        lambda: pyro.param("ours", torch.zeros(1)),
        lambda: pyro.get_param_store().__setitem__("theirs", torch.zeros(1)),
        lambda: pyro.enable_validation(True),
        lambda: poutine.runtime._PYRO_STACK.append(poutine.trace_messenger.TraceMessenger()),
    ):
        pyro.clear_param_store()
        settings = pyro.settings.get()
        with pytest.raises(AssertionError), nothing_global_moves():
            move()
        pyro.settings.set(**settings)
        poutine.runtime._PYRO_STACK.clear()


# ----------------------------------------------------------------------------------------------- handlers, ours, theirs


class Falls(nn.Module):
    """Raises at a chosen place of a chosen program, under a handler of its own."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.loc = nn.Parameter(torch.zeros(()))

    def _fall(self, place: str) -> None:
        if place == self.place:
            raise ZeroDivisionError

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        with poutine.scale(scale=2.0), pyro.plate("rows", obs.shape[0]):
            self._fall("before the latent")
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            self._fall("before the action")
            pyro.sample("action", dist.Normal(z, 1.0), obs=action)
            self._fall("after the action")

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        with poutine.scale(scale=2.0):
            pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
            self._fall("in the guide")

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.loc]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []

    guide_parameters = decoder_parameters


Z, A = {"z": torch.zeros(2, ROWS)}, torch.zeros(ROWS)
FALLS: dict[str, tuple[str, Callable[[Falls, Tensor], object]]] = {
    "prior": ("before the latent", lambda policy, obs: draw_prior(policy, obs, num_particles=2)),
    "scored prior": ("before the latent", lambda policy, obs: score_prior(policy, obs, Z)),
    "guide": ("in the guide", lambda policy, obs: draw_guide(policy, obs, A, num_particles=2)),
    "scored guide": ("in the guide", lambda policy, obs: score_guide(policy, obs, A, Z)),
    "joint": ("after the action", lambda policy, obs: log_joint(policy, obs, A, Z)),
    "conditionals": ("before the action", lambda policy, obs: conditionals(policy, obs, Z)),
    "support": ("before the latent", lambda policy, obs: support(policy, obs)),
    "reparameterized": ("before the action", lambda policy, obs: Reparameterized(2).propose(policy, obs, A)),
    "sleep": ("after the action", lambda policy, obs: Sleep(2).loss(policy, obs, A)),
    "from_pyro": ("after the action", lambda policy, obs: from_pyro(policy.model, policy.guide, obs, A)),
}


@pytest.mark.parametrize("name", FALLS)
def test_an_error_in_a_program_leaves_only_the_caller_s_own_handlers(name: str) -> None:
    place, run = FALLS[name]
    obs = torch.randn(ROWS, 3)
    with poutine.trace() as theirs, poutine.scale(scale=3.0):
        stack = list(poutine.runtime._PYRO_STACK)
        with pytest.raises(ZeroDivisionError):
            run(Falls(place), obs)
        assert poutine.runtime._PYRO_STACK == stack
        pyro.sample("still heard", dist.Normal(0.0, 1.0))
    assert "still heard" in theirs.trace.nodes
    assert not poutine.runtime._PYRO_STACK


ENCLOSING: dict[str, Callable[[], Any]] = {
    "scale": lambda: poutine.scale(scale=2.0),
    "mask": lambda: poutine.mask(mask=False),
    "block": lambda: poutine.block(),
    "trace": lambda: poutine.trace(),
    "condition": lambda: poutine.condition(data={"z": torch.zeros(ROWS, dtype=torch.int64)}),
    "do": lambda: poutine.do(data={"z": torch.zeros(ROWS, dtype=torch.int64)}),
    "plate of rows": lambda: pyro.plate("rows", ROWS),
    "plate of others": lambda: pyro.plate("others", 5, dim=-2),
}


@pytest.mark.parametrize("name", ENCLOSING)
def test_handlers_around_a_call_change_nothing_in_it_and_hear_nothing_of_it(name: str) -> None:
    """A policy that is scored inside somebody's model is scored as outside of it: the run is its own."""
    policy, obs = mixture(), observations()
    action = torch.tensor([0, 1, 2])

    def everything() -> list[Tensor]:
        torch.manual_seed(3)
        acted = act(policy, obs)
        particles = Exact().propose(policy, obs, action)
        guide = draw_guide(policy, obs, action, num_particles=K)
        scores = log_joint(policy, obs, action, particles.latents), score_prior(policy, obs, particles.latents).log_prob
        return [
            acted.action,
            *acted.latents.values(),
            acted.log_joint,
            *guide.latents.values(),
            guide.log_prob,
            *scores,
        ]

    alone = everything()
    with ENCLOSING[name]() as handler:
        inside = everything()
    assert all(torch.equal(one, other) for one, other in zip(alone, inside, strict=True))
    if name == "trace":
        assert not [site for site in handler.trace.nodes.values() if site["type"] == "sample"]


# ----------------------------------------------------------------------------------------------- types of what is drawn


def many_types(obs: Tensor, action: Tensor | None = None) -> None:
    a = pyro.sample("a", dist.Categorical(logits=torch.zeros(3)))  # int64, of batch shape ()
    b = pyro.sample("b", dist.Bernoulli(logits=obs[:, 0]))  # as its parameters
    c = pyro.sample("c", dist.Binomial(2, logits=obs[:, 0].float() + a))  # float32 beside float64
    pyro.sample("action", dist.Categorical(logits=torch.stack([a + b, c, obs[..., 1] + a], -1)), obs=action)


def its_guide(obs: Tensor, action: Tensor) -> None:
    pyro.sample("a", dist.Categorical(logits=torch.zeros(obs.shape[0], 3)))
    pyro.sample("b", dist.Bernoulli(logits=obs[:, 1]))
    pyro.sample("c", dist.Binomial(2, logits=obs[:, 1].float()))


TYPES = {"a": torch.int64, "b": torch.float64, "c": torch.float32}


def test_each_site_keeps_its_own_type_wherever_particles_come_from() -> None:
    """``torch.where``, ``torch.cat`` and a chain's indexing would promote mixed types without a word."""
    policy, obs, action = Plain(many_types, its_guide), observations(), torch.tensor([0, 1, 2])
    recorded = act(policy, obs).latents
    sources = {
        "acting": recorded,
        "support": support(policy, obs),
        "mixture": PosteriorIS(K, Mixture(0.5)).propose(policy, obs, action).latents,
        "chain": MarkovianIS(K, num_sweeps=2, proposal=Mixture(0.5)).propose(policy, obs, action, recorded).latents,
    }
    for source, latents in sources.items():
        assert {name: value.dtype for name, value in latents.items()} == TYPES, source


def test_whole_numbers_of_any_type_are_the_same_category_and_others_are_refused() -> None:
    """The stock categorical cuts 1.5 to 1; environments hand over actions as int32 or as floats."""
    policy, obs, action = Plain(many_types, its_guide), observations(), torch.tensor([0, 1, 2])
    latents = draw_prior(policy, obs, num_particles=K).latents
    expected = log_joint(policy, obs, action, latents)
    for kind in (torch.int32, torch.uint8, torch.float32, torch.float64):
        assert torch.equal(log_joint(policy, obs, action.to(kind), latents), expected)
    with pytest.raises(SupportError, match=r"1\.5 in row 1"):
        log_joint(policy, obs, torch.tensor([0.0, 1.5, 2.0]), latents)


# ------------------------------------------------------------------------------------------------------------ to_event


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_rows_that_were_taken_for_an_event_are_refused(rows: int) -> None:
    """One ``to_event`` too many sums the rows into one number, which fits every batch."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(z, 1.0).to_event(1), obs=action)

    policy, obs = Plain(model), torch.zeros(rows, 3)
    with pytest.raises(ShapeError, match="action"):
        log_joint(policy, obs, torch.zeros(rows), {"z": torch.zeros(3, rows)})


@pytest.mark.parametrize("rows, particles", [(2, 4), (3, 3), (4, 3), (3, 4)])
def test_an_event_in_plates_of_its_own_is_refused(rows: int, particles: int) -> None:
    """Rows at -2 and coordinates at -1: how Pyro's tutorials write it, and where the particles would be."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0], dim=-2), pyro.plate("coordinates", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(obs, 1.0))
        pyro.sample("action", dist.Normal(z.sum(-1), 1.0), obs=action)

    policy, obs = Plain(model), torch.zeros(rows, 3)
    with pytest.raises(ShapeError, match="at dimension -2"):
        draw_prior(policy, obs, num_particles=particles)
    with pytest.raises(ShapeError, match="at dimension -2"):
        act(policy, obs)


# ----------------------------------------------------------------------------------------------- faults found elsewhere


def test_a_discrete_guide_learns_from_the_multi_sample_bound() -> None:
    """Pyro's ``RenyiELBO(alpha=0)``, the same bound, moves nothing of a guide that has no pathwise gradient."""
    policy, obs = mixture(), observations()
    action = torch.tensor([0, 1, 2])
    guide = policy.guide_parameters()
    ours = torch.autograd.grad(VIMCO(K).loss(policy, obs, action).sum(), guide)
    assert all(bool((part != 0).any()) for part in ours)

    model, other = svi_pair(policy)
    RenyiELBO(alpha=0.0, num_particles=K, vectorize_particles=False).loss_and_grads(model, other, obs, action)
    assert all(parameter.grad is None or not bool(parameter.grad.any()) for parameter in guide)
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in policy.decoder_parameters())
