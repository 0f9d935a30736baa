"""Ready-made policies in Pyro's own SVI: the same bounds, the same gradients, and the policy itself is what moves."""

import copy
import math
from collections.abc import Sequence
from typing import cast

import pyro
import pytest
import torch
from gymnasium import spaces
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.optim import PyroOptim
from torch import Tensor, nn

from latentpg.errors import OptionError, SiteError
from latentpg.estimators import ELBO, Exact, Particles
from latentpg.estimators.guides import ELBOGuide
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy, from_pyro, svi_pair
from latentpg.programs import (
    Categorical,
    LatentPolicy,
    Observations,
    draw_guide,
    draw_prior,
    log_joint,
    model_parameters,
    num_rows,
    score_guide,
    support,
    take_rows,
)
from tests.policies.ready_made import ACTIONS, KINDS, ReadyMade, actions_for, make, observations

EXACT = 1e-10

each_kind = pytest.mark.parametrize("kind", KINDS)
each_action = pytest.mark.parametrize("actions", ACTIONS)
each_row = pytest.mark.parametrize("rows", ["step", "span"])


def setting(kind: str, actions: str, rows: str) -> tuple[ReadyMade, Observations, Tensor]:
    policy = make(kind, actions, encoder=nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    obs = observations(rows)
    return policy, obs, actions_for(actions, obs)


def gradients(value: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    found = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def in_sets(policy: LatentPolicy) -> list[nn.Parameter]:
    return [*model_parameters(policy), *policy.guide_parameters()]


def taken(policy: LatentPolicy) -> list[Tensor]:
    """Read the gradients that Pyro's loss left, and take them away."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in in_sets(policy)]
    for parameter in in_sets(policy):
        parameter.grad = None
    return found


def all_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=EXACT, atol=EXACT) for a, b in zip(ours, theirs, strict=True))


# ------------------------------------------------------------------------------------------------------- Trace_ELBO


@each_row
@each_action
@each_kind
def test_trace_elbo_is_our_bound_on_the_same_draws_with_the_same_gradients(kind: str, actions: str, rows: str) -> None:
    """One draw a row of the guide: minus the sum over rows, theta and phi from it, psi from the guide's objective."""
    policy, obs, action = setting(kind, actions, rows)
    model, guide = svi_pair(policy)
    with seeded(7):
        loss = Trace_ELBO().loss_and_grads(model, guide, obs, action)
    theirs = taken(policy)
    with seeded(7):
        estimate = ELBO(1).estimate(policy, obs, action, ELBO(1).propose(policy, obs, action)).log_prob
    with seeded(7):
        bound = ELBOGuide(1).loss(policy, obs, action)
    with seeded(7):
        drawn = draw_guide(policy, obs, action, num_particles=1)
    # at a site without rsample our loss has a term grad log q, whose expectation is zero, and Pyro's has not
    for name, fn in drawn.distributions.items():
        if not fn.has_rsample:
            bound = bound - drawn.log_prob_by_site[name][0]
    assert loss == pytest.approx(-float(estimate.detach().sum()), rel=EXACT)
    ours = [
        *gradients(-estimate.sum(), model_parameters(policy)),
        *gradients(bound.sum(), policy.guide_parameters()),
    ]
    assert all_close(ours, theirs)
    assert all(bool((gradient != 0).any()) for gradient in theirs)


@pytest.mark.parametrize("particles", [2, 3])
@each_row
@each_kind
def test_vectorised_particles_are_our_particles(kind: str, rows: str, particles: int) -> None:
    """With three rows, also at K = B; Pyro takes the mean over particles of the sum over rows."""
    policy, obs, action = setting(kind, "box", rows)
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    with seeded(3):
        theirs = loss.loss(*svi_pair(policy), obs, action)
    with seeded(3), torch.no_grad():
        estimator = ELBO(particles)
        ours = estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action)).log_prob
    assert theirs == pytest.approx(-float(ours.sum()), rel=EXACT)


def exact_bound(policy: LatentPolicy, obs: Observations, action: Tensor) -> Tensor:
    """Sum the bound over every value of the latents, weighed by the guide: ``[B]``, differentiable."""
    points = support(policy, obs)
    log_q = score_guide(policy, obs, action, points).log_prob
    return (log_q.exp() * (log_joint(policy, obs, action, points) - log_q)).sum(0)


@each_row
@each_action
def test_the_expected_loss_is_minus_the_sum_of_the_exact_bound(actions: str, rows: str) -> None:
    """Both Pyro's loss and our estimate at each value that the guide can draw, weighed by its probability."""
    policy, obs, action = setting("mixture", actions, rows)
    model, guide = svi_pair(policy)
    points = support(policy, obs)
    with torch.no_grad():
        log_q = score_guide(policy, obs, action, points).log_prob
        theirs, ours = 0.0, 0.0
        for value, log_prob in zip(points["z"], log_q, strict=True):
            estimate = ELBO(1).estimate(policy, obs, action, Particles({"z": value[None]}, log_prob[None])).log_prob
            ours -= float((log_prob.exp() * estimate).sum())
            for b in range(len(action)):
                row, earlier = slice(b, b + 1), pyro.poutine.Trace()
                earlier.add_node("z", name="z", type="sample", is_observed=False, value=value[row], infer={})
                pinned = pyro.poutine.replay(guide, trace=earlier)
                theirs += float(log_prob[b].exp()) * Trace_ELBO().loss(model, pinned, take_rows(obs, row), action[row])
        wanted = -float(exact_bound(policy, obs, action).sum())
    assert theirs == pytest.approx(wanted, rel=EXACT)
    assert ours == pytest.approx(wanted, rel=EXACT)


# --------------------------------------------------------------------------------------------------- TraceEnum_ELBO


@each_row
@each_action
def test_the_enumerated_guides_loss_is_minus_the_exact_bound_and_so_is_its_gradient(actions: str, rows: str) -> None:
    policy, obs, action = setting("mixture", actions, rows)
    model, guide = svi_pair(policy)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, config_enumerate(guide), obs, action)
    theirs = taken(policy)
    bound = exact_bound(policy, obs, action)
    assert loss == pytest.approx(-float(bound.detach().sum()), rel=EXACT)
    assert all_close(gradients(-bound.sum(), in_sets(policy)), theirs)
    assert all(bool((gradient != 0).any()) for gradient in theirs)


@each_row
@each_action
def test_the_enumerated_models_loss_is_exactly_minus_log_pi(actions: str, rows: str) -> None:
    policy, obs, action = setting("mixture", actions, rows)
    model, _ = svi_pair(policy)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(
        config_enumerate(model), lambda obs, action: None, obs, action
    )
    theirs = taken(policy)
    log_pi = Exact().estimate(policy, obs, action, Exact().propose(policy, obs, action)).log_prob
    assert loss == pytest.approx(-float(log_pi.detach().sum()), rel=EXACT)
    ours = gradients(-log_pi.sum(), in_sets(policy))
    assert all_close(ours, theirs)
    assert not any(bool((gradient != 0).any()) for gradient in ours[len(model_parameters(policy)) :])


@each_row
@each_action
def test_with_the_exact_posterior_for_a_guide_every_loss_is_minus_log_pi(actions: str, rows: str) -> None:
    policy, obs, action = setting("mixture", actions, rows)
    model, guide = svi_pair(policy)
    with torch.no_grad():
        log_pi = Exact().estimate(policy, obs, action, Exact().propose(policy, obs, action)).log_prob
        table = log_joint(policy, obs, action, support(policy, obs)).T

    def posterior(obs: Observations, action: Tensor) -> None:
        with pyro.plate("rows", num_rows(obs), dim=-1):
            pyro.sample("z", Categorical(table))

    wanted = -float(log_pi.sum())
    enumerated = TraceEnum_ELBO(max_plate_nesting=1)
    assert enumerated.loss(model, config_enumerate(posterior), obs, action) == pytest.approx(wanted, rel=EXACT)
    assert Trace_ELBO().loss(model, posterior, obs, action) == pytest.approx(wanted, rel=EXACT)  # at any draw
    # and the policy's own guide, which is not the posterior, stays above
    assert enumerated.loss(model, config_enumerate(guide), obs, action) > wanted + 1e-6


@each_row
@each_action
def test_the_mode_is_enumerated_and_the_style_drawn(actions: str, rows: str) -> None:
    """Value and gradients of the two-level policy: the mode summed out, its styles on the same noise."""
    policy, obs, action = setting("two-level", actions, rows)
    model, guide = svi_pair(policy)
    with seeded(5):
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(model, config_enumerate(guide), obs, action)
    theirs = taken(policy)
    modes = torch.arange(3).unsqueeze(1).expand(3, num_rows(obs))
    with seeded(5):
        trace = pyro.poutine.trace(pyro.poutine.condition(policy.guide, data={"mode": modes})).get_trace(obs, action)
    latents = {"mode": modes, "style": cast(Tensor, trace.nodes["style"]["value"])}
    guided = score_guide(policy, obs, action, latents)
    bound = guided.log_prob_by_site["mode"].exp() * (log_joint(policy, obs, action, latents) - guided.log_prob)
    assert loss == pytest.approx(-float(bound.detach().sum()), rel=EXACT)
    assert all_close(gradients(-bound.sum(), in_sets(policy)), theirs)


# --------------------------------------------------------------------------------------------------------- training

STATES = spaces.Discrete(3)
MOVES = spaces.Discrete(4)


def demonstrations(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw from a demonstrator that in state s goes either of two ways, s and s + 1, as likely."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randint(3, (count,), generator=generator)
    return torch.eye(3)[state], state + torch.randint(2, (count,), generator=generator)


def log_likelihood(policy: LatentPolicy, obs: Tensor, action: Tensor) -> float:
    with torch.no_grad():
        return float(Exact().estimate(policy, obs, action, Exact().propose(policy, obs, action)).log_prob.mean())


@pytest.mark.parametrize("enumerate_guide", [False, True], ids=["Trace_ELBO", "TraceEnum_ELBO"])
def test_training_in_svi_raises_the_likelihood_of_what_was_not_seen(enumerate_guide: bool) -> None:
    with seeded(11):
        policy = MixturePolicy(STATES, MOVES, num_components=3, hidden=(16,))
        reference = copy.deepcopy(policy)
        before = {name: value.detach().clone() for name, value in policy.named_parameters()}
        identities = [id(parameter) for parameter in policy.parameters()]
        (obs, action), held_out = demonstrations(256, 1), demonstrations(512, 2)
        start = log_likelihood(policy, *held_out)
        model, guide = svi_pair(policy)
        optim = PyroOptim(torch.optim.Adam, {"lr": 0.03})
        if enumerate_guide:
            svi = SVI(model, config_enumerate(guide), optim, TraceEnum_ELBO(max_plate_nesting=1))
        else:
            svi = SVI(model, guide, optim, Trace_ELBO())
        for _ in range(60):
            svi.step(obs, action)
        end = log_likelihood(policy, *held_out)
    best = math.log(0.5)  # minus the demonstrator's entropy
    assert start < -1.2  # four moves about as likely
    assert end > best - 0.25 * (best - start)  # three quarters of what there is to learn

    # it is the policy itself that was trained: its own tensors, all of them, and no copy of it
    assert [id(parameter) for parameter in policy.parameters()] == identities
    for name, value in policy.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert all(torch.equal(value, before[name]) for name, value in reference.named_parameters())
    stored = dict(pyro.get_param_store().named_parameters())
    assert {name.removeprefix("latentpg$$$"): id(value) for name, value in stored.items()} == {
        name: id(value) for name, value in policy.named_parameters()
    }


@each_kind
def test_one_step_moves_each_of_the_three_sets_and_nothing_else(kind: str) -> None:
    policy, obs, action = setting(kind, "box", "step")
    other = copy.deepcopy(policy)
    before = [parameter.detach().clone() for parameter in in_sets(policy)]
    svi = SVI(*svi_pair(policy), PyroOptim(torch.optim.Adam, {"lr": 0.01}), Trace_ELBO())
    svi.step(obs, action)
    assert all(not torch.equal(a, b) for a, b in zip(before, in_sets(policy), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, in_sets(other), strict=True))


def test_two_policies_train_side_by_side_under_names_of_their_own() -> None:
    first, obs, action = setting("gaussian", "box", "step")
    second = copy.deepcopy(first)
    start = [parameter.detach().clone() for parameter in first.parameters()]
    for name, policy, moved in (("first", first, [True, False]), ("second", second, [True, True])):
        SVI(*svi_pair(policy, name=name), PyroOptim(torch.optim.Adam, {"lr": 0.01}), Trace_ELBO()).step(obs, action)
        for which, has_moved in zip((first, second), moved, strict=True):
            same = [torch.equal(a, b) for a, b in zip(start, which.parameters(), strict=True)]
            assert same == [not has_moved] * len(start)


def test_a_foreign_policy_without_plates_trains_too() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        width = pyro.param("width", torch.tensor(2.0), constraint=pyro.distributions.constraints.positive)
        z = pyro.sample("z", pyro.distributions.Normal(obs[..., 0], 1.0))
        pyro.sample("action", pyro.distributions.Normal(z, width), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.1))
        pyro.sample("z", pyro.distributions.Normal(slope * action, 1.0))

    obs, action = torch.randn(64, 1), torch.randn(64)
    policy = from_pyro(model, guide, obs, action)
    before = [parameter.item() for parameter in policy.parameters()]
    svi = SVI(*svi_pair(policy), PyroOptim(torch.optim.Adam, {"lr": 0.05}), Trace_ELBO())
    for _ in range(3):
        svi.step(obs, action)
    assert all(parameter.item() != value for parameter, value in zip(policy.parameters(), before, strict=True))
    assert {name.split("$$$")[0] for name in pyro.get_param_store()} == {"latentpg"}


@each_kind
def test_each_program_of_the_pair_registers_the_policy_by_itself(kind: str) -> None:
    """So that either can be trained beside a partner of the user's own, and neither skips the backward pass."""
    policy, obs, action = setting(kind, "box", "step")
    wanted = {f"mine$$${name}" for name, _ in policy.named_parameters()}
    for program in svi_pair(policy, name="mine"):
        nodes = pyro.poutine.trace(program).get_trace(obs, action).nodes
        assert {name for name, site in nodes.items() if site["type"] == "param"} == wanted


def test_outside_of_svi_the_store_stays_empty() -> None:
    policy, obs, action = setting("two-level", "box", "step")
    svi_pair(policy)
    log_joint(policy, obs, action, draw_prior(policy, obs, num_particles=2).latents)
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.production
def test_a_policy_that_is_no_module_is_refused() -> None:
    class Programs:
        """Two programs and no parameters that Pyro could register."""

        def model(self, obs: Tensor, action: Tensor | None = None) -> None: ...

        def guide(self, obs: Tensor, action: Tensor | None) -> None: ...

        def prior_parameters(self) -> list[nn.Parameter]:
            return []

        decoder_parameters = guide_parameters = prior_parameters

    with pytest.raises(OptionError) as caught:
        svi_pair(Programs())
    for phrase in ("`policy`", "nn.Module", "Programs"):
        assert phrase in str(caught.value)


def test_a_program_with_a_plate_of_its_own_is_refused() -> None:
    """Pyro would put it at dimension -2, beside ours, and score B rows B times."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("batch", obs.shape[0]):
            z = pyro.sample("z", pyro.distributions.Normal(loc, 1.0))
            pyro.sample("action", pyro.distributions.Normal(z, 1.0), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        with pyro.plate("batch", obs.shape[0]):
            pyro.sample("z", pyro.distributions.Normal(action, 1.0))

    obs, action = torch.zeros(4, 1), torch.zeros(4)
    svi = SVI(*svi_pair(from_pyro(model, guide, obs, action)), PyroOptim(torch.optim.Adam, {}), Trace_ELBO())
    with pytest.raises(SiteError, match="plate of the program's own"):
        svi.step(obs, action)
