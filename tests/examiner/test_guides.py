"""Every guide objective: its expected gradient in psi is that of its target, by exact sums over its own outcomes.

For Gaussian latents the sum runs over Gauss-Hermite nodes of the guide, z = loc + scale x. Pathwise objectives are
exact for that discretised guide; sticking the landing too, because it leaves out a score of degree two, which two nodes
integrate to zero; the score form of the bound because everything in it is a polynomial of degree four, which three
nodes integrate exactly. The doubly reparameterised gradient rests on an integration by parts, which holds in the limit
alone.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentpg.errors import EstimatorError
from latentpg.estimators import ConditionalIS, Guide, Mixture, Particles, PosteriorIS, Prior
from latentpg.estimators.guides import (
    ConditionalWake,
    DoublyReparameterized,
    ELBOGuide,
    StickingTheLanding,
    Wake,
)
from latentpg.numerics.quadrature import hermite_grid
from latentpg.oracles.enumeration import enumerate_draws, tuples
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.programs import Span, score_guide, take_rows
from tests.estimators import GUIDE_CASES, GuideCase, Target
from tests.examiner.expectations import (
    EXACT,
    PLANTED,
    draw_recorded,
    examine_loss,
    gradient,
    guide_gradient,
    log_proposal,
    off_by,
)
from tests.examiner.models import (
    NODES,
    ModeAndStyle,
    Model,
    log_guide,
    log_likelihood,
    log_prior,
    mode_and_style_models,
    models,
    near_the_posterior,
)

EXAMPLES = 13  # of sixteen models each: 208


def bound(model: Model, num_particles: int) -> Tensor:
    log_q = model.log_guide()
    return -(log_q.exp() * (model.log_joint() - log_q)).sum(0)


def multi_sample_bound(model: Model, num_particles: int) -> Tensor:
    log_q = model.log_guide()
    every = tuples([log_q] * num_particles)
    value = (model.log_joint() - log_q)[every.index].exp().mean(0).log()
    return -(every.log_prob.exp() * value).sum(0)


def inclusive(model: Model, num_particles: int) -> Tensor:
    return -(model.log_posterior().exp().detach() * model.log_guide()).sum(0)


def dream(model: Model, num_particles: int) -> Tensor:
    """Average over every action; a masked step is acted too, and seen by none."""
    total = torch.zeros(model.rows, dtype=torch.float64)
    for action, chance in every_action(model):
        log_joint = log_prior(model.policy, model.obs) + log_likelihood(model.policy, model.obs, action)
        weight = (log_joint.exp() * chance).detach()
        total = total - (weight * log_guide(model.policy, model.obs, action)).sum(0)
    return total


def every_action(model: Model) -> list[tuple[Tensor, Tensor]]:
    """List actions ``[B, ...]`` and whether each counts, ``[B]``: of those that differ in masked steps, one does."""
    size = next(p for p in model.policy.decoder_parameters()).shape[-1]
    if not isinstance(model.obs, Span):
        return [(torch.full_like(model.action, a), torch.ones(model.rows)) for a in range(size)]
    sequences = itertools.product(range(size), repeat=model.action.shape[1])
    found = [torch.tensor(steps).expand_as(model.action) for steps in sequences]
    return [(steps, ((steps == 0) | model.obs.mask).all(-1).double()) for steps in found]


def self_normalised(model: Model, num_particles: int) -> Tensor:
    log_r, log_q = log_proposal(model, "guide"), model.log_guide()
    every = tuples([log_r] * num_particles)
    share = (model.log_joint() - log_r)[every.index].softmax(0).detach()
    return -(every.log_prob.exp() * (share * log_q[every.index]).sum(0)).sum(0)


TARGETS: dict[Target, Callable[[Model, int], Tensor]] = {
    Target.BOUND: bound,
    Target.MULTI_SAMPLE_BOUND: multi_sample_bound,
    Target.INCLUSIVE: inclusive,
    Target.DREAM: dream,
    Target.SELF_NORMALISED: self_normalised,
}


def particle_numbers(case: GuideCase) -> list[int]:
    return [case.fewest] if case.fixed_size else [k for k in (1, 2, 3) if k >= case.fewest]


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, id=f"{case.id}-{kind}")
        for case in GUIDE_CASES
        for kind in case.kinds
        if kind in ("step", "span", "two-site")
    ],
)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_expected_gradient_with_discrete_latents(case: GuideCase, kind: str, data: st.DataObject) -> None:
    model = data.draw(models(kind))
    for num_particles in particle_numbers(case):
        stored = None if case.particles is None else case.particles(num_particles)
        objective = case.make(num_particles)
        loss = examine_loss(model, objective, uses_recorded=case.uses_recorded, particles=stored)
        assert loss is not None or num_particles > case.fewest, "too many outcomes to examine anything"
        if loss is not None:
            expected = guide_gradient(model, TARGETS[case.target](model, num_particles))
            assert off_by(guide_gradient(model, loss), expected) < EXACT


def gaussian_target(model: Model, num_particles: int, target: Target, num_nodes: int = NODES) -> Tensor:
    """Sum the target over the guide's own nodes, differentiable in psi along the paths of the nodes."""
    policy, obs, action = model.policy, model.obs, model.action
    assert isinstance(policy, LinearGaussianPolicy) and isinstance(obs, Tensor)
    nodes, log_weight = hermite_grid(num_nodes, 1)
    loc = policy.guide_weight[obs, 0] * action + policy.guide_bias[obs]  # [B, 1]
    z = loc + policy.guide_log_scale[obs].exp() * nodes.unsqueeze(1)  # [nodes, B, 1]

    def log_normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        return (-0.5 * ((x - mean) * (-log_scale).exp()) ** 2 - log_scale).squeeze(-1) - 0.5 * torch.log(
            torch.tensor(2 * torch.pi, dtype=torch.float64)
        )

    value = log_normal(z, policy.prior_loc[obs], policy.prior_log_scale[obs])
    value = value + log_normal(action, policy.weight[obs, 0] * z + policy.bias[obs], policy.log_noise[obs, None])
    value = value - log_normal(z, loc, policy.guide_log_scale[obs])
    if target is Target.BOUND:
        return -(log_weight.exp() @ value)
    every = tuples([log_weight] * num_particles)
    value = value[every.index].logsumexp(0) - math.log(num_particles)  # far nodes overflow without the logs
    return -(every.log_prob.exp() @ value)


@pytest.mark.parametrize("case", [case for case in GUIDE_CASES if "gaussian" in case.kinds], ids=lambda case: case.id)
@settings(max_examples=EXAMPLES)
@given(model=models("noise"))
def test_expected_gradient_with_a_gaussian_latent(case: GuideCase, model: Model) -> None:
    for num_particles in particle_numbers(case):
        loss = examine_loss(model, case.make(num_particles))
        assert loss is not None
        expected = guide_gradient(model, gaussian_target(model, num_particles, case.target))
        assert off_by(guide_gradient(model, loss), expected) < EXACT


@settings(max_examples=EXAMPLES)
@given(model=models("noise"))
def test_the_bound_on_nodes_is_the_closed_form(model: Model) -> None:
    """Its integrand is quadratic, so that two nodes are enough, and what pathwise objectives have is the truth."""
    policy = model.policy
    assert isinstance(policy, LinearGaussianPolicy)
    closed = -policy.log_bound(model.states, model.action)
    assert off_by(gaussian_target(model, 1, Target.BOUND, 2), closed) < EXACT
    loss = examine_loss(model, ELBOGuide(2))
    assert loss is not None
    assert off_by(loss, closed) < EXACT
    assert off_by(guide_gradient(model, loss), guide_gradient(model, closed)) < EXACT


@settings(max_examples=EXAMPLES)
@given(drawn=models("noise", rows=4))
def test_doubly_reparameterised_gradient_in_the_limit_of_many_nodes(drawn: Model) -> None:
    """It rests on an integration by parts, exact in the limit of the nodes: the last change bounds what is left."""
    model = near_the_posterior(drawn)

    def expected(num_nodes: int) -> Tensor:
        every = enumerate_draws(
            lambda row: DoublyReparameterized(2).loss(model.policy, model.obs[row], model.action[row]),
            num_rows=model.rows,
            num_nodes=num_nodes,
        )
        return guide_gradient(model, every.expectation(every.result))

    coarse, fine = expected(16), expected(32)
    target = guide_gradient(model, gaussian_target(model, 2, Target.MULTI_SAMPLE_BOUND, 64))
    assert off_by(coarse, fine) < PLANTED / 10
    assert off_by(fine, target) < off_by(coarse, fine) + EXACT


def test_sticking_the_landing_does_not_carry_over_to_the_multi_sample_bound() -> None:
    """What it drops has mean zero under the bound alone: with K = 2 the weights depend on psi through it as well."""
    one = torch.ones(1, 1, dtype=torch.float64)
    policy = LinearGaussianPolicy(
        prior_loc=0 * one,
        prior_log_scale=0 * one,
        weight=one[None],
        bias=0 * one,
        log_noise=0 * one[0],
        guide_bias=0.5 * one,
        guide_log_scale=-0.3 * one,
    )
    model = Model(policy, policy, torch.zeros(1, dtype=torch.int64), 0.5 * one)

    def expected(objective: DoublyReparameterized | StickingTheLanding) -> Tensor:
        every = enumerate_draws(lambda row: objective.loss(policy, model.obs[row], model.action[row]), num_nodes=48)
        return guide_gradient(model, every.expectation(every.result))

    multi_sample = guide_gradient(model, gaussian_target(model, 2, Target.MULTI_SAMPLE_BOUND, 48))
    assert off_by(expected(DoublyReparameterized(2)), multi_sample) < EXACT
    assert off_by(expected(StickingTheLanding(2)), multi_sample) > 0.1


@pytest.mark.parametrize("num_particles", [1, 2])
@settings(max_examples=EXAMPLES)
@given(drawn=mode_and_style_models(rows=4))
def test_expected_gradient_with_a_discrete_and_a_gaussian_latent(
    num_particles: int, drawn: tuple[ModeAndStyle, Tensor, Tensor]
) -> None:
    """The Gaussian latent hangs on the discrete one: the path and the score function must add up."""
    policy, obs, action = drawn
    nodes, log_weight = hermite_grid(NODES, 1)
    log_mode, value = policy.log_weight(obs, action, nodes[:, 0])
    target = -(log_mode.exp() * log_weight.exp()[None, :, None] * value).sum((0, 1))
    every = enumerate_draws(
        lambda row: ELBOGuide(num_particles).loss(policy, obs[row], action[row]), num_rows=4, num_nodes=NODES
    )
    loss = every.expectation(every.result)
    parameters = policy.guide_parameters()
    assert off_by(loss, target) < EXACT
    assert off_by(gradient(loss, parameters), gradient(target, parameters)) < EXACT


@pytest.mark.parametrize("proposal", [Prior(), Guide()], ids=repr)
@settings(max_examples=EXAMPLES)
@given(model=models("step"))
def test_conditional_wake_after_drift(proposal: Prior | Guide, model: Model) -> None:
    """Times the ratio, it is exact under the policy that has moved; without the ratio it is not."""
    for num_particles in (1, 2, 3):

        def program(row: Tensor, num_particles: int = num_particles) -> Tensor:
            obs, action = take_rows(model.obs, row), model.action[row]
            estimator = ConditionalIS(num_particles, proposal)
            particles = estimator.propose(model.policy, obs, action, draw_recorded(model, row))
            old = estimator.estimate(model.policy, obs, action, particles).log_prob
            new = estimator.estimate(model.moved, obs, action, particles).log_prob
            log_ratio = (new - old - model.ratio().log()[row]).detach()
            return log_ratio.exp() * ConditionalWake().loss(model.moved, obs, action, particles=particles)

        every = enumerate_draws(program, num_rows=model.rows)
        posterior = model.moved_log_joint().softmax(0).detach()
        target = -(posterior * log_guide(model.moved, model.obs, model.action)).sum(0)
        psi = model.moved.guide_parameters()
        assert off_by(gradient(every.expectation(every.result), psi), gradient(target, psi)) < EXACT


@pytest.mark.parametrize("name", ["prior", "mixture"])
@settings(max_examples=EXAMPLES)
@given(model=models("step", sizes=st.integers(2, 3)))
def test_wake_on_stored_particles_of_any_proposal(name: str, model: Model) -> None:
    proposal = Prior() if name == "prior" else Mixture(0.25)
    loss = examine_loss(model, Wake(2), particles=PosteriorIS(2, proposal))
    assert loss is not None
    log_r = log_proposal(model, name)
    every = tuples([log_r] * 2)
    share = (model.log_joint() - log_r)[every.index].softmax(0).detach()
    by_hand = -(every.log_prob.exp() * (share * model.log_guide()[every.index]).sum(0)).sum(0)
    assert off_by(guide_gradient(model, loss), guide_gradient(model, by_hand)) < EXACT


def test_wake_refuses_one_particle() -> None:
    """E_q[grad log q] = 0: why the wake objective refuses K = 1, fresh or stored."""
    with pytest.raises(EstimatorError, match="expected gradient is zero"):
        Wake(1)


@settings(max_examples=EXAMPLES)
@given(model=models("step"))
def test_stored_wake_refuses_one_particle_because_its_gradient_is_zero(model: Model) -> None:
    def program(row: Tensor) -> Tensor:
        particles = PosteriorIS(1, Guide()).propose(model.policy, take_rows(model.obs, row), model.action[row])
        with pytest.raises(EstimatorError, match="expected gradient is zero"):
            Wake().loss(model.policy, take_rows(model.obs, row), model.action[row], particles=particles)
        return cross_entropy(model, row, particles)

    every = enumerate_draws(program, num_rows=model.rows)
    assert off_by(guide_gradient(model, every.expectation(every.result)), torch.zeros(())) < EXACT


def cross_entropy(model: Model, row: Tensor, particles: Particles) -> Tensor:
    """Return what Wake would at K = 1, where its one weight is 1."""
    return -score_guide(model.policy, take_rows(model.obs, row), model.action[row], particles.latents).log_prob[0]
