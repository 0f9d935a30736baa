"""Programs that were written for Pyro alone: taken over as they are, with parameters of the policy's own."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import transform_to

from latentpg.errors import SiteError
from latentpg.estimators import Exact, PosteriorIS
from latentpg.policies import ForeignPolicy, from_pyro
from latentpg.programs import (
    LatentPolicy,
    act,
    draw_guide,
    draw_prior,
    log_joint,
    model_parameters,
    score_guide,
    score_model,
)
from tests.programs.reference import off_by, traced

EXACT = 1e-12
B, K = 5, 3
Program = Callable[..., Any]


def seen() -> Tensor:
    return torch.randn(B, 2, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same_as_traced(policy: ForeignPolicy, model: Program, guide: Program, obs: Tensor, action: Tensor) -> None:
    """Compare with Pyro's own trace of the stranger's programs, one particle after another."""
    for drawn in (
        draw_guide(policy, obs, action, num_particles=K),
        draw_prior(policy, obs, num_particles=len(obs)),
    ):
        latents = drawn.latents
        scores = score_model(policy, obs, action, latents)
        with pyro.get_param_store().scope():  # the trace fills a store of its own
            prior, likelihood = traced(model, obs, action, latents, how="condition")
            log_q, rest = traced(guide, obs, action, latents, how="condition")
        assert off_by(scores.log_prior, prior) < EXACT
        assert off_by(scores.log_likelihood, likelihood) < EXACT
        assert off_by(score_guide(policy, obs, action, latents).log_prob, log_q + rest) < EXACT


def grouped(policy: ForeignPolicy) -> dict[str, set[str]]:
    """Name each group's parameters by what the stranger calls them."""

    def bare(name: str) -> str:
        kind, name = name.removeprefix("stored.").removeprefix("module_tensors.").split("/", 1)
        return name.replace(".tensor/", ".").replace("/", ".") if kind == "module" else name

    return {group: {bare(name) for name in names} for group, names in policy.groups.items()}


# ------------------------------------------------------------------------------------------- plates and constraints


def plated_model(obs: Tensor, action: Tensor | None = None) -> Tensor:
    """Two dependent sites, one of them discrete, with everything a parameter can be constrained to."""
    shares = pyro.param("shares", vector(0.2, 0.3, 0.5), constraint=constraints.simplex)
    width = pyro.param("width", lambda: vector(0.5, 1.0, 2.0), constraint=constraints.positive)
    slope = pyro.param("a.slope", vector(0.7, -0.4))
    noise = pyro.param("noise", torch.tensor(0.9, dtype=torch.float64), constraint=constraints.interval(0.1, 3.0))
    with pyro.plate("rows", obs.shape[0]):
        mode = pyro.sample("mode", dist.Categorical(shares))
        style = pyro.sample("style", dist.Normal(obs @ slope, width[mode]))
        pyro.factor("taste", -0.1 * style.square(), has_rsample=False)
        return pyro.sample("action", dist.Normal(style + mode, noise), obs=action)


def plated_guide(obs: Tensor, action: Tensor) -> None:
    logits = pyro.param("logits", torch.zeros(3, 2, dtype=torch.float64))
    spread = pyro.param("spread", torch.tensor(0.8, dtype=torch.float64), constraint=constraints.positive)
    with pyro.plate("rows", obs.shape[0]):
        # another order than the model's
        style = pyro.sample("style", dist.Normal(0.5 * action, spread))
        pyro.sample("mode", dist.Categorical(logits=obs @ logits.T + style.unsqueeze(-1)))


def plated() -> tuple[ForeignPolicy, Tensor, Tensor]:
    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    return from_pyro(plated_model, plated_guide, obs, action), obs, action


def test_plates_and_dependent_sites_score_as_in_pyros_trace() -> None:
    policy, obs, action = plated()
    same_as_traced(policy, plated_model, plated_guide, obs, action)
    assert isinstance(policy, LatentPolicy)
    acted = act(policy, obs)
    assert acted.action.shape == (B,) and acted.latents["mode"].dtype == torch.int64
    drawn = draw_prior(policy, obs, num_particles=K).latents
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {"mode": (K, B), "style": (K, B)}


def test_parameters_are_kept_unconstrained_and_met_constrained() -> None:
    policy, obs, action = plated()
    assert grouped(policy) == {
        "prior": {"shares", "width", "a/slope"},
        "decoder": {"noise"},
        "guide": {"logits", "spread"},
    }
    groups = [policy.prior_parameters(), policy.decoder_parameters(), policy.guide_parameters()]
    listed = [id(parameter) for group in groups for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in policy.parameters())
    assert torch.allclose(policy.stored["param/shares"].softmax(-1), vector(0.2, 0.3, 0.5))
    assert torch.allclose(policy.stored["param/width"].exp(), vector(0.5, 1.0, 2.0))
    # a step in the unconstrained space that is far outside of every constraint leaves the programs valid
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.sub_(3.0)
    trace = poutine.trace(policy.model).get_trace(obs, action)
    mode, style, taken = (cast(Any, trace.nodes[name]["fn"]) for name in ("mode", "style", "action"))
    torch.testing.assert_close(mode.probs.sum(-1), torch.ones(B, dtype=torch.float64))
    assert (mode.probs > 0).all() and (style.scale > 0).all()
    assert 0.1 < float(taken.scale.detach()[0]) < 0.9


def test_the_programs_run_on_the_policys_present_values() -> None:
    policy, obs, action = plated()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    of_model: dict[str, constraints.Constraint] = {
        "shares": constraints.simplex,
        "width": constraints.positive,
        "a.slope": constraints.real,
        "noise": constraints.interval(0.1, 3.0),
    }
    of_guide: dict[str, constraints.Constraint] = {"logits": constraints.real, "spread": constraints.positive}

    def told(program: Program, constrained: dict[str, constraints.Constraint]) -> Program:
        """Let Pyro's own handler tell a program the same values."""
        stored = {name: policy.stored[f"param/{name.replace('.', '/')}"].detach() for name in constrained}
        data = {name: transform_to(constraint)(stored[name]) for name, constraint in constrained.items()}
        return poutine.substitute(program, data=data)

    model, guide = told(plated_model, of_model), told(plated_guide, of_guide)
    same_as_traced(policy, model, guide, obs, action)


def test_the_gradient_is_that_of_the_policy_written_by_hand() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shares = nn.Parameter(transform_to(constraints.simplex).inv(vector(0.2, 0.3, 0.5)))
            self.log_width = nn.Parameter(vector(0.5, 1.0, 2.0).log())
            self.slope = nn.Parameter(vector(0.7, -0.4))
            self.noise = nn.Parameter(transform_to(constraints.interval(0.1, 3.0)).inv(vector(0.9)[0]))
            self.logits = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
            self.log_spread = nn.Parameter(vector(0.8)[0].log())

        def model(self, obs: Tensor, action: Tensor | None = None) -> None:
            shares = transform_to(constraints.simplex)(self.shares)
            noise = transform_to(constraints.interval(0.1, 3.0))(self.noise)
            mode = pyro.sample("mode", dist.Categorical(shares))
            style = pyro.sample("style", dist.Normal(obs @ self.slope, self.log_width.exp()[mode]))
            pyro.factor("taste", -0.1 * style.square(), has_rsample=False)
            pyro.sample("action", dist.Normal(style + mode, noise), obs=action)

        def guide(self, obs: Tensor, action: Tensor | None) -> None:
            assert action is not None
            style = pyro.sample("style", dist.Normal(0.5 * action, self.log_spread.exp()))
            pyro.sample("mode", dist.Categorical(logits=obs @ self.logits.T + style.unsqueeze(-1)))

        def prior_parameters(self) -> list[nn.Parameter]:
            return [self.shares, self.log_width, self.slope]

        def decoder_parameters(self) -> list[nn.Parameter]:
            return [self.noise]

        def guide_parameters(self) -> list[nn.Parameter]:
            return [self.logits, self.log_spread]

    theirs, obs, action = plated()
    ours = ByHand()
    particles = PosteriorIS(K).propose(theirs, obs, action)
    values, gradients = [], []
    for policy in (theirs, ours):
        value = PosteriorIS(K).estimate(policy, obs, action, particles).log_prob
        log_q = score_guide(policy, obs, action, particles.latents).log_prob
        values.append((value, log_q))
        # in the stranger's order: shares, width, slope; noise; logits, spread
        gradients.append(
            [
                *torch.autograd.grad(value.sum(), model_parameters(policy)),
                *torch.autograd.grad(log_q.sum(), list(policy.guide_parameters())),
            ]
        )
    assert all(off_by(a, b) < EXACT for a, b in zip(*values, strict=True))
    by_shape = [sorted(found, key=lambda g: (tuple(g.shape), float(g.sum()))) for found in gradients]
    assert len(by_shape[0]) == 6
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(*by_shape, strict=True))
    assert all(bool((gradient != 0).any()) for gradient in by_shape[0])


# ------------------------------------------------------------------------------------------------------------ modules


class Nets(nn.Module):
    """Programs that are methods of a module, with parts of it named by nobody and a buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.decoder, self.reader = nn.Linear(2, 1), nn.Linear(1, 1), nn.Linear(1, 1)
        self.register_buffer("scale", torch.tensor(1.5))
        self.double()

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0]):
            z = pyro.sample("z", dist.Normal(self.prior(obs).squeeze(-1), self.scale))
            pyro.sample("action", dist.Normal(self.decoder(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=action)

    def guide(self, obs: Tensor, action: Tensor) -> None:
        with pyro.plate("rows", obs.shape[0]):
            pyro.sample("z", dist.Normal(self.reader(action.unsqueeze(-1)).squeeze(-1), 1.0))


NET_GROUPS = {"prior": "prior", "decoder": "decoder", "guide": "reader"}


def assert_groups_of_nets(policy: ForeignPolicy, nets: nn.Module) -> None:
    """Check that the three groups are the very parameters of the three networks."""
    groups = policy.prior_parameters(), policy.decoder_parameters(), policy.guide_parameters()
    for group, part in zip(groups, NET_GROUPS.values(), strict=True):
        wanted = {id(parameter) for parameter in nets.get_submodule(part).parameters()}
        assert {id(parameter) for parameter in group} == wanted, part
    assert len(list(policy.parameters())) == 6


def as_methods(nets: Nets) -> tuple[Program, Program, dict[str, nn.Module]]:
    return nets.model, nets.guide, {}


def as_pyro_modules(nets: Nets) -> tuple[Program, Program, dict[str, nn.Module]]:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        pyro.module("model.prior", nets.prior)
        pyro.module("decoder", nets.decoder)
        nets.model(obs, action)

    def guide(obs: Tensor, action: Tensor) -> None:
        pyro.module("reader", nets.reader)
        nets.guide(obs, action)

    return model, guide, {}


def as_named_modules(nets: Nets) -> tuple[Program, Program, dict[str, nn.Module]]:
    return (
        lambda obs, action=None: nets.model(obs, action),
        lambda obs, action: nets.guide(obs, action),
        {"keys": nets.prior, "type": nets.decoder, "the.reader": nets.reader},  # names that torch's containers refuse
    )


def as_one_named_module(nets: Nets) -> tuple[Program, Program, dict[str, nn.Module]]:
    model, guide, _ = as_pyro_modules(nets)
    return model, guide, {"all": nets}  # its parts are met as well, and are the same tensors


each_way = pytest.mark.parametrize("way", [as_methods, as_pyro_modules, as_named_modules, as_one_named_module])


@each_way
def test_modules_are_found_and_their_parameters_sorted(
    way: Callable[[Nets], tuple[Program, Program, dict[str, nn.Module]]],
) -> None:
    nets, obs, action = Nets(), seen(), torch.randn(B, dtype=torch.float64)
    model, guide, modules = way(nets)
    policy = from_pyro(model, guide, obs, action, modules=modules)
    assert_groups_of_nets(policy, nets)
    state = [id(tensor) for tensor in policy.state_dict(keep_vars=True).values()]
    assert len(state) == len(set(state))  # a part that was met beside its whole is not kept twice
    same_as_traced(policy, nets.model, nets.guide, obs, action)
    # the parameters are the caller's own: whoever trains the one trains the other
    before = [parameter.detach().clone() for parameter in nets.parameters()]
    value = PosteriorIS(K).estimate(policy, obs, action, PosteriorIS(K).propose(policy, obs, action)).log_prob.sum()
    value.backward()
    with torch.no_grad():
        for parameter in model_parameters(policy):
            parameter.add_(parameter.grad)  # type: ignore[arg-type]
    moved = [not torch.equal(a, b) for a, b in zip(before, nets.parameters(), strict=True)]
    assert moved == [True] * 4 + [False] * 2
    same_as_traced(policy, nets.model, nets.guide, obs, action)


@each_way
def test_a_deep_copied_reference_does_not_follow_the_live_policy(
    way: Callable[[Nets], tuple[Program, Program, dict[str, nn.Module]]],
) -> None:
    nets, obs, action = Nets(), seen(), torch.randn(B, dtype=torch.float64)
    model, guide, modules = way(nets)
    policy = from_pyro(model, guide, obs, action, modules=modules)
    check_reference(policy, obs, action)


def test_a_deep_copied_reference_of_stored_parameters_does_not_follow_either() -> None:
    check_reference(*plated())


def check_reference(policy: ForeignPolicy, obs: Tensor, action: Tensor) -> None:
    reference = copy.deepcopy(policy)
    latents = draw_guide(policy, obs, action, num_particles=K).latents

    def scored(which: ForeignPolicy) -> list[Tensor]:
        joint = log_joint(which, obs, action, latents)
        return [joint.detach(), score_guide(which, obs, action, latents).log_prob.detach()]

    before = scored(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5)
    assert not any(torch.equal(a, b) for a, b in zip(before, scored(policy), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, scored(reference), strict=True))
    with torch.no_grad():  # nor the other way round, whichever was run last
        live = scored(policy)
        for parameter in reference.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(live, scored(policy), strict=True))
    names = [[len(group) for group in which.groups.values()] for which in (policy, reference)]
    assert names[0] == names[1]
    ids = {id(p) for p in policy.parameters()} & {id(p) for p in reference.parameters()}
    assert not ids
    # a reference has groups of its own tensors, which its own log-probabilities move
    found = torch.autograd.grad(log_joint(reference, obs, action, latents).sum(), model_parameters(reference))
    assert len(found) == len(model_parameters(policy))


def test_a_state_dict_brings_a_foreign_policy_back() -> None:
    policy, obs, action = plated()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2)
    other = from_pyro(plated_model, plated_guide, obs, action)
    latents = draw_guide(policy, obs, action, num_particles=K).latents
    wanted = log_joint(policy, obs, action, latents)
    assert not torch.equal(log_joint(other, obs, action, latents), wanted)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(log_joint(other, obs, action, latents), wanted)


def test_buffers_and_tied_weights_are_the_policys_own() -> None:
    nets, obs, action = Nets(), seen(), torch.randn(B, dtype=torch.float64)
    nets.reader.weight = nets.decoder.weight  # one tensor in the model and the guide
    policy = from_pyro(nets.model, nets.guide, obs, action)
    assert len(list(policy.parameters())) == 5
    assert any(parameter is nets.reader.weight for parameter in policy.decoder_parameters())
    same_as_traced(policy, nets.model, nets.guide, obs, action)
    check_reference(policy, obs, action)
    reference = copy.deepcopy(policy)
    nets.scale.mul_(2.0)
    latents = draw_guide(policy, obs, action, num_particles=K).latents
    assert not torch.equal(log_joint(policy, obs, action, latents), log_joint(reference, obs, action, latents))
    same_as_traced(policy, nets.model, nets.guide, obs, action)


# -------------------------------------------------------------------------------------------------------- PyroModule


class Steerer(PyroModule):
    """A model in Pyro's own style: the module is the program, and holds a constrained parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = cast(Any, PyroModule[nn.Linear])(2, 1)
        self.plain = nn.Linear(1, 1)
        self.width: Any = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
        self.bias = nn.Parameter(torch.tensor(0.2))
        self.double()

    def forward(self, obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0]):
            z = pyro.sample("z", dist.Normal(self.bias, 1.0))
            loc = self.decoder(obs).squeeze(-1) + self.plain(z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("action", dist.Normal(loc, self.width), obs=action)

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        self.forward(obs, action)


class Reader(PyroModule):
    """Its guide; its ``width`` has the name of another parameter in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = cast(Any, PyroModule[nn.Linear])(1, 1)
        self.width: Any = PyroParam(torch.tensor(2.0), constraint=constraints.positive)
        self.double()

    def forward(self, obs: Tensor, action: Tensor) -> None:
        with pyro.plate("rows", obs.shape[0]):
            pyro.sample("z", dist.Normal(self.reader(action.unsqueeze(-1)).squeeze(-1), self.width))

    def guide(self, obs: Tensor, action: Tensor) -> None:
        self.forward(obs, action)


@pytest.mark.parametrize("how", ["called", "methods", "modules"])
def test_pyro_modules_train_in_place_and_copy_apart(how: str) -> None:
    """Their tensors are met by three kinds of statement; none may end as a second, dead, parameter."""
    steerer, reader = Steerer(), Reader()
    programs: dict[str, tuple[Program, Program]] = {
        "called": (steerer, reader),
        "methods": (steerer.model, reader.guide),
        "modules": (lambda obs, action=None: steerer(obs, action), lambda obs, action: reader(obs, action)),
    }
    model, guide = programs[how]
    modules = {"steerer": steerer, "reader": reader} if how == "modules" else None
    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    policy = from_pyro(model, guide, obs, action, modules=modules)
    assert list(pyro.get_param_store().keys()) == []
    owned = {id(parameter) for module in (steerer, reader) for parameter in module.parameters()}
    assert len(owned) == 9 and {id(parameter) for parameter in policy.parameters()} == owned
    assert {id(parameter) for parameter in policy.prior_parameters()} == {id(steerer.bias)}
    assert {id(parameter) for parameter in policy.guide_parameters()} == {id(p) for p in reader.parameters()}
    assert len(policy.decoder_parameters()) == 5
    with torch.no_grad():
        steerer.width_unconstrained.add_(0.7)
    same_as_traced(policy, steerer.model, reader.guide, obs, action)
    check_reference(policy, obs, action)
    assert list(pyro.get_param_store().keys()) == []


def test_a_pyro_module_that_was_trained_in_pyro_goes_on_from_there() -> None:
    steerer, reader, obs, action = Steerer(), Reader(), seen(), torch.randn(B, dtype=torch.float64)
    start = float(steerer.width.detach())
    svi = SVI(steerer, reader, PyroOptim(torch.optim.Adam, {"lr": 0.05}), Trace_ELBO())
    for _ in range(3):
        svi.step(obs, action)
    stored = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    assert float(steerer.width.detach()) != start
    policy = from_pyro(steerer, reader, obs, action)
    same_as_traced(policy, steerer.model, reader.guide, obs, action)
    check_reference(policy, obs, action)
    assert set(pyro.get_param_store().keys()) == set(stored)


def test_a_pyro_module_used_by_a_program_it_does_not_own_must_be_named() -> None:
    steerer, reader, obs = Steerer(), Reader(), seen()
    with pytest.raises(SiteError) as caught:
        from_pyro(lambda obs, action=None: steerer(obs, action), reader, obs, torch.randn(B, dtype=torch.float64))
    assert "modules={" in str(caught.value) and "PyroModule" in str(caught.value)


# ------------------------------------------------------------------------------------------------- the global store


def test_values_trained_in_the_store_are_taken_over_and_the_store_is_left_alone() -> None:
    trained = pyro.param("width", vector(3.0, 4.0, 5.0), constraint=constraints.positive)
    pyro.param("logits", torch.ones(3, 2, dtype=torch.float64))  # unconstrained: it could be shared by mistake
    pyro.param("somebody.elses", torch.tensor(1.0))
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    unconstrained = cast(Any, trained).unconstrained()
    policy, obs, action = plated()
    assert torch.allclose(policy.stored["param/width"].exp(), trained)
    assert torch.equal(policy.stored["param/logits"], torch.ones(3, 2, dtype=torch.float64))
    assert torch.allclose(policy.stored["param/a/slope"], vector(0.7, -0.4))  # the others start where they say

    value = PosteriorIS(K).estimate(policy, obs, action, PosteriorIS(K).propose(policy, obs, action)).log_prob
    value.sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    act(policy, obs)
    store = pyro.get_param_store()
    assert set(store.keys()) == set(before)
    assert all(torch.equal(store[name], value) for name, value in before.items())
    assert unconstrained.grad is None  # a copy was taken, not the store's own tensor
    assert not torch.allclose(policy.stored["param/width"].exp(), trained)


def test_the_initial_value_a_program_gives_is_copied() -> None:
    initial = torch.tensor(0.5, dtype=torch.float64)

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(pyro.param("slope", initial) * z, 1.0), obs=action)

    policy = from_pyro(model, plain_guide, seen(), torch.randn(B, dtype=torch.float64))
    with torch.no_grad():
        policy.decoder_parameters()[0].add_(1.0)
    assert initial.item() == 0.5


@each_way
def test_running_a_foreign_policy_puts_nothing_into_the_store(
    way: Callable[[Nets], tuple[Program, Program, dict[str, nn.Module]]],
) -> None:
    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    model, guide, modules = way(Nets())
    original = pyro.module
    policy = from_pyro(model, guide, obs, action, modules=modules)
    act(policy, obs)
    log_joint(policy, obs, action, draw_guide(policy, obs, action, num_particles=K).latents)
    assert list(pyro.get_param_store().keys()) == []
    assert pyro.module is original


@pytest.mark.parametrize("name", ["keys", "values", "type", "training", "a.b", "module"])
def test_parameters_may_be_called_what_torchs_containers_are_not(name: str) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        slope = pyro.param(name, torch.tensor(0.5, dtype=torch.float64))
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(slope * z, 1.0), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        pyro.sample("z", dist.Normal(action, 1.0))

    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    policy = from_pyro(model, guide, obs, action)
    assert len(policy.decoder_parameters()) == 1
    same_as_traced(policy, model, guide, obs, action)
    check_reference_of_model(policy, obs, action)


def check_reference_of_model(policy: ForeignPolicy, obs: Tensor, action: Tensor) -> None:
    reference = copy.deepcopy(policy)
    latents = draw_guide(policy, obs, action, num_particles=K).latents
    before = log_joint(policy, obs, action, latents).detach()
    with torch.no_grad():
        policy.decoder_parameters()[0].add_(1.0)
    assert not torch.equal(log_joint(policy, obs, action, latents), before)
    assert torch.equal(log_joint(reference, obs, action, latents), before)


def test_a_parameter_that_several_depend_on_is_the_decoders() -> None:
    def number(name: str) -> Tensor:
        return pyro.param(name, torch.tensor(0.5, dtype=torch.float64))

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        loc = number("prior+guide") + number("prior+decoder") * obs[:, 0] + number("all") + number("prior")
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        mean = number("prior+decoder") + number("decoder+guide") * z + number("all") + number("decoder")
        pyro.sample("action", dist.Normal(mean, 1.0), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        loc = number("prior+guide") + number("decoder+guide") * action + number("all") + number("guide")
        pyro.sample("z", dist.Normal(loc, 1.0))

    policy = from_pyro(model, guide, seen(), torch.randn(B, dtype=torch.float64))
    assert grouped(policy) == {
        "prior": {"prior"},
        "decoder": {"decoder", "prior+decoder", "prior+guide", "decoder+guide", "all"},
        "guide": {"guide"},
    }


# ------------------------------------------------------------------------------------------------------------ errors


def late_model(obs: Tensor, action: Tensor | None = None) -> None:
    slope = pyro.param("slope", torch.tensor(0.5, dtype=torch.float64))
    if bool((obs > 100).any()):
        slope = slope + pyro.param("rarely", torch.tensor(0.1, dtype=torch.float64))
    z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
    pyro.sample("action", dist.Normal(slope * z, 1.0), obs=action)


def plain_guide(obs: Tensor, action: Tensor) -> None:
    pyro.sample("z", dist.Normal(action, 1.0))


def test_a_parameter_that_was_not_met_at_first_is_an_error_and_not_a_constant() -> None:
    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    policy = from_pyro(late_model, plain_guide, obs, action)
    act(policy, obs)
    with pytest.raises(SiteError) as caught:
        act(policy, obs + 1000.0)
    for phrase in ("`rarely`", "['slope']", "example batch"):
        assert phrase in str(caught.value)
    # even when Pyro's store could answer: the policy would follow it
    pyro.param("rarely", torch.tensor(0.1, dtype=torch.float64))
    with pytest.raises(SiteError, match="rarely"):
        act(policy, obs + 1000.0)
    assert len(list(from_pyro(late_model, plain_guide, obs + 1000.0, action).parameters())) == 2


def test_programs_without_parameters_are_an_error() -> None:
    hidden = nn.Linear(2, 1).double()

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(hidden(obs).squeeze(-1), 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(SiteError) as caught:
        from_pyro(model, plain_guide, seen(), torch.randn(B, dtype=torch.float64))
    assert "no parameter was found" in str(caught.value) and "modules={" in str(caught.value)
    policy = from_pyro(model, plain_guide, seen(), torch.randn(B, dtype=torch.float64), modules={"hidden": hidden})
    assert len(policy.prior_parameters()) == 2


def test_a_module_registered_behind_our_back_is_an_error() -> None:
    from pyro import module

    hidden = nn.Linear(2, 1).double()

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        module("hidden", hidden)
        z = pyro.sample("z", dist.Normal(hidden(obs).squeeze(-1), 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(SiteError) as caught:
        from_pyro(model, plain_guide, seen(), torch.randn(B, dtype=torch.float64))
    assert "hidden$$$weight" in str(caught.value) and "from pyro import module" in str(caught.value)
    given = from_pyro(model, plain_guide, seen(), torch.randn(B, dtype=torch.float64), modules={"h": hidden})
    assert len(given.prior_parameters()) == 2


def test_a_parameter_without_an_initial_value_is_an_error() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        slope = pyro.param("slope")
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(slope * z, 1.0), obs=action)

    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    with pytest.raises(SiteError, match="`slope` has no initial value"):
        from_pyro(model, plain_guide, obs, action)
    pyro.param("slope", torch.tensor(2.0, dtype=torch.float64))
    assert from_pyro(model, plain_guide, obs, action).decoder_parameters()[0].item() == 2.0


def test_programs_that_do_not_fit_are_refused_at_once() -> None:
    def misnamed(obs: Tensor, action: Tensor) -> None:
        pyro.sample("zed", dist.Normal(action * pyro.param("slope", torch.tensor(1.0)), 1.0))

    with pytest.raises(SiteError, match="zed"):
        from_pyro(late_model, misnamed, seen(), torch.randn(B, dtype=torch.float64))


# ---------------------------------------------------------------------------------- flattened and enumerated programs


class Joining(nn.Module):
    """Programs that join observation and latent, which no particle dimension in front survives."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.reader = nn.Linear(4, 1), nn.Linear(3, 2)
        self.double()

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        with pyro.plate("rows", obs.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=obs.dtype), 1.0).to_event(1))
            assert z.shape == (obs.shape[0], 2)  # what the stranger relies on
            loc = self.decoder(torch.cat([obs, z], -1))
            pyro.sample("action", dist.Normal(loc, 0.5).to_event(1), obs=action)

    def guide(self, obs: Tensor, action: Tensor) -> None:
        with pyro.plate("rows", obs.shape[0]):
            pyro.sample("z", dist.Normal(self.reader(torch.cat([obs, action], -1)), 1.0).to_event(1))


@pytest.mark.parametrize("particles", [1, K, B])
def test_programs_that_cannot_broadcast_run_on_flattened_rows(particles: int) -> None:
    nets, obs, action = Joining(), seen(), torch.randn(B, 1, dtype=torch.float64)
    policy = from_pyro(nets.model, nets.guide, obs, action, flatten_particles=True)
    same_as_traced(policy, nets.model, nets.guide, obs, action)
    fresh = PosteriorIS(particles).propose(policy, obs, action)
    assert fresh.latents["z"].shape == (particles, B, 2)
    latents = fresh.latents
    prior, likelihood = traced(nets.model, obs, action, latents, how="condition")
    wanted = (prior + likelihood - fresh.log_proposal).logsumexp(0) - math.log(particles)
    ours = PosteriorIS(particles).estimate(policy, obs, action, fresh).log_prob
    assert off_by(ours, wanted) < EXACT
    weight = torch.arange(1.0, B + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((value * weight).sum(), policy.decoder_parameters()) for value in (ours, wanted)]
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*gradients, strict=True))
    assert grouped_sizes(policy) == [0, 2, 2]
    check_reference(policy, obs, action)


def grouped_sizes(policy: ForeignPolicy) -> list[int]:
    return [len(group) for group in policy.groups.values()]


def test_a_foreign_discrete_program_is_enumerated() -> None:
    """Two dependent discrete sites in a plate: the exact estimator against a sum over both, written out."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        first = pyro.param("first", vector(0.6, 0.3, 0.1), constraint=constraints.simplex)
        second = pyro.param("second", vector(0.2, -1.0, 0.5))
        means = pyro.param("means", torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(3, 2))
        with pyro.plate("rows", obs.shape[0]):
            c = pyro.sample("c", dist.Categorical(first))
            d = pyro.sample("d", dist.Bernoulli(logits=second[c] * obs[:, 0]))
            pyro.sample("action", dist.Normal(means[c, d.long()] + obs[:, 1], 0.7), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        with pyro.plate("rows", obs.shape[0]):
            pyro.sample("c", dist.Categorical(torch.full((3,), 1 / 3, dtype=obs.dtype)))
            pyro.sample("d", dist.Bernoulli(torch.tensor(0.5, dtype=obs.dtype)))

    obs, action = seen(), torch.randn(B, dtype=torch.float64)
    policy = from_pyro(model, guide, obs, action)
    estimate = Exact().estimate(policy, obs, action, Exact().propose(policy, obs, action)).log_prob

    wrt = model_parameters(policy)
    first = transform_to(constraints.simplex)(policy.stored["param/first"])
    second, means = policy.stored["param/second"], policy.stored["param/means"]
    terms = []
    for c, d in itertools.product(range(3), range(2)):
        log_d = dist.Bernoulli(logits=second[c] * obs[:, 0]).log_prob(torch.full((B,), float(d), dtype=obs.dtype))
        log_a = dist.Normal(means[c, d] + obs[:, 1], 0.7).log_prob(action)
        terms.append(first[c].log() + log_d + log_a)
    wanted = torch.stack(terms).logsumexp(0)
    assert off_by(estimate, wanted) < EXACT
    ours, theirs = (torch.autograd.grad(value.square().sum(), wrt) for value in (estimate, wanted))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(ours, theirs, strict=True))
    assert all(bool((gradient != 0).any()) for gradient in ours)
    assert grouped(policy) == {"prior": {"first", "second"}, "decoder": {"means"}, "guide": set()}
