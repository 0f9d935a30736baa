"""Claim: on equal maths the library is faster than Pyro's RenyiELBO and Trace_ELBO, and than storchastic.

Pyro's losses want a batch plate, ``pyro.module`` and vectorised particles, and get them; the networks are the same
objects in all. The guide's parameters take no gradient anywhere, as in the library, where particles are constants.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor

from benchmarks.cases import NUM_PARTICLES, Case, make_case
from benchmarks.measure import Row, compare
from latentpg.estimators import ELBO, Estimator, Guide, PosteriorIS
from latentpg.programs import model_parameters

ROUNDS = 100


def stock_normal(parameters: Tensor) -> dist.TorchDistribution:
    loc, log_scale = parameters.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp(), validate_args=False).to_event(1)


class PyroPrograms:
    """The Gaussian policy as a user of Pyro's inference writes it, on the policy's own networks."""

    def __init__(self, case: Case) -> None:
        self.case, self.policy = case, case.policy

    def model(self) -> None:
        prior, network = pyro.module("prior", self.policy.prior), pyro.module("decoder", self.policy.decoder.network)
        obs, action = self.case.obs, self.case.action
        with pyro.plate("rows", len(obs), dim=-1):
            z = pyro.sample("z", stock_normal(prior(obs)))
            scale = self.policy.decoder.head.log_std.exp()
            likelihood = dist.Normal(network(obs, [z]), scale, validate_args=False).to_event(1)
            pyro.sample("action", likelihood, obs=action)

    def guide(self) -> None:
        net = pyro.module("guide", self.policy.guide_net)
        with torch.no_grad():  # particles are constants
            parameters = net(self.case.obs, self.case.obs, self.case.action)
        with pyro.plate("rows", len(self.case.obs), dim=-1):
            pyro.sample("z", stock_normal(parameters))


def library_step(case: Case, estimator: Estimator) -> tuple[Tensor, tuple[Tensor, ...]]:
    particles = estimator.propose(case.policy, case.obs, case.action)
    total = estimator.estimate(case.policy, case.obs, case.action, particles).log_prob.sum()
    return total, torch.autograd.grad(total, model_parameters(case.policy))


def pyro_step(case: Case, loss: Trace_ELBO | RenyiELBO) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Do what Pyro's SVI does in a step before its optimiser; the gradients are left in ``grad``."""
    programs, parameters = PyroPrograms(case), model_parameters(case.policy)
    for parameter in parameters:
        parameter.grad = None
    total = -loss.loss_and_grads(programs.model, programs.guide)
    return torch.tensor(total), tuple(-_gradient_of(parameter) for parameter in parameters)


def _gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def assert_equal_trace_elbo(case: Case) -> float:
    """Hold Pyro's ELBO against ours on one stream of random numbers, so that "equal maths" is more than a word."""
    results = []
    for step in (lambda: library_step(case, ELBO(NUM_PARTICLES)), lambda: pyro_step(case, trace_elbo())):
        torch.manual_seed(1)
        results.append(step())
    (value, gradient), (their_value, their_gradient) = results
    assert torch.allclose(value, their_value, rtol=1e-4), (value, their_value)
    for ours, theirs in zip(gradient, their_gradient, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2), float((ours - theirs).abs().max())
    return float((value - their_value).detach().abs() / value.detach().abs())


def trace_elbo() -> Trace_ELBO:
    return Trace_ELBO(num_particles=NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=1)


def test_pyro(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    pyro.clear_param_store()
    case = make_case("Gaussian latent, Box action")
    difference = assert_equal_trace_elbo(case)
    renyi = RenyiELBO(alpha=0, num_particles=NUM_PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    functions = {
        "PosteriorIS": lambda: library_step(case, PosteriorIS(NUM_PARTICLES, Guide())),
        "RenyiELBO": lambda: pyro_step(case, renyi),
        "ELBO": lambda: library_step(case, ELBO(NUM_PARTICLES)),
        "Trace_ELBO": lambda: pyro_step(case, trace_elbo()),
    }
    for ours, theirs in (("PosteriorIS", "RenyiELBO"), ("ELBO", "Trace_ELBO")):
        result = compare({n: functions[n] for n in (ours, theirs)}, baseline=theirs, rounds=ROUNDS)
        ratio = result.ratio[ours]
        details = {"comparison": result, "relative difference of the ELBOs": difference}
        record(Row(f"{ours} against Pyro's {theirs}", "< 1", ratio, "x Pyro", ratio < 1, details))
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(functions["PosteriorIS"], rounds=20, warmup_rounds=2)
    pyro.clear_param_store()


def test_storchastic(benchmark, record: Callable[[Row], None]) -> None:  # noqa: ANN001 (a fixture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        missing = "storchastic is not installed (pip install --no-deps storchastic entmax)"
        storch = pytest.importorskip("storch", reason=missing)
    case = make_case("Gaussian latent, Box action")
    parameters = model_parameters(case.policy)

    def step() -> tuple[Tensor, tuple[Tensor, ...]]:
        """Estimate the same ELBO: draws of the guide, the cost log q - log p averaged over particles and rows."""
        with torch.no_grad():
            loc, log_scale = case.policy.guide_net(case.obs, case.obs, case.action).chunk(2, -1)
        draw = storch.method.ScoreFunction("z", n_samples=NUM_PARTICLES)
        rows = [storch.denote_independent(t, 0, "rows") for t in (loc, log_scale.exp())]

        @storch.deterministic(flatten_plates=False)
        def cost(z: Tensor) -> Tensor:
            prior = _torch_normal(*case.policy.prior(case.obs).chunk(2, -1))
            mean = case.policy.decoder.network(case.obs, [z])
            likelihood = _torch_normal(mean, case.policy.decoder.head.log_std)
            guide = _torch_normal(loc, log_scale)
            return guide.log_prob(z) - prior.log_prob(z) - likelihood.log_prob(case.action)

        storch.add_cost(cost(draw(torch.distributions.Independent(torch.distributions.Normal(*rows), 1))), "elbo")
        for parameter in parameters:
            parameter.grad = None
        total = -storch.backward()
        return total, tuple(-parameter.grad for parameter in parameters)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = library_step(case, ELBO(NUM_PARTICLES)), step()
        # their draws are others than ours, so the mean of the rows is compared within its own noise
        assert abs(float(ours[0].detach()) / len(case.obs) - float(theirs[0])) < 0.1
        functions = {"library": lambda: library_step(case, ELBO(NUM_PARTICLES)), "storchastic": step}
        result = compare(functions, baseline="storchastic", rounds=ROUNDS)
    ratio = result.ratio["library"]
    record(Row("ELBO against storchastic", "< 1", ratio, "x storch", ratio < 1, {"comparison": result}))
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(step, rounds=20, warmup_rounds=2)


def _torch_normal(loc: Tensor, log_scale: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Independent(torch.distributions.Normal(loc, log_scale.exp()), 1)
