"""What holds of every policy whose latent spans several steps, by chunk or by episode."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import ELBO, ConditionalIS, Estimator, Exact, Guide, PosteriorIS, Prior
from latentpg.estimators.guides import ELBOGuide, Recorded
from latentpg.policies import CodeLatent, GaussianLatent
from latentpg.programs import (
    LatentPolicy,
    Span,
    act,
    draw_guide,
    draw_prior,
    log_joint,
    model_parameters,
    score_guide,
    score_model,
    score_prior,
)
from tests.policies.ready_made import sum_of, trace_each_row
from tests.policies.spans import ACTIONS, LATENTS, LENGTHS, ROWS, STEPS, VARIANTS, make, some_span, spoil
from tests.programs.reference import off_by

EXACT = 1e-12

each_variant = pytest.mark.parametrize(("kind", "how"), VARIANTS)
each_latent = pytest.mark.parametrize("latent", LATENTS)
each_action = pytest.mark.parametrize("actions", ACTIONS)


@each_action
@each_latent
@each_variant
def test_shapes_of_what_acting_leaves(kind: str, how: str, latent: str, actions: str) -> None:
    policy, span = make(kind, how, latent, actions), some_span()
    acted = act(policy, span)
    event = {"discrete": (), "multi-discrete": (2,), "box": (2,)}[actions]
    assert acted.action.shape == (ROWS, STEPS, *event)
    assert acted.log_joint.shape == (ROWS,) and acted.log_joint.isfinite().all()
    z = acted.latents["z"]
    assert (z.shape, z.dtype) == (((ROWS,), torch.int64) if latent == "codes" else ((ROWS, 2), torch.float64))
    assert isinstance(policy, LatentPolicy)


@pytest.mark.parametrize("particles", [2, ROWS, STEPS])
@each_latent
@each_variant
def test_scores_are_those_of_pyros_own_trace_of_each_row(kind: str, how: str, latent: str, particles: int) -> None:
    """At K = B and K = T, where a particle taken for a row or a step would not be told by its shape, too."""
    policy, span = make(kind, how, latent), some_span()
    action = act(policy, span).action
    latents = draw_prior(policy, span, num_particles=particles).latents
    wanted = trace_each_row(policy.model, span, action, latents)
    assert set(wanted) == {"z", "action"}
    scores = score_model(policy, span, action, latents)
    assert off_by(scores.log_likelihood, wanted["action"]) < EXACT
    assert off_by(scores.log_prior.expand(particles, ROWS), wanted["z"]) < EXACT
    assert off_by(log_joint(policy, span, action, latents), sum_of(wanted)) < EXACT
    guided = trace_each_row(policy.guide, span, action, latents)
    assert off_by(score_guide(policy, span, action, latents).log_prob, sum_of(guided)) < EXACT


@each_action
@each_variant
def test_what_padding_holds_changes_nothing(kind: str, how: str, actions: str) -> None:
    """Neither model, prior nor guide sees a step outside the mask, in value or in gradient."""
    policy, span = make(kind, how, "mixture", actions), some_span()
    action = act(policy, span).action
    spoiled = Span(spoil(span, span.obs), span.mask)
    latents = draw_prior(policy, span, num_particles=2).latents

    def everything(seen: Span, done: Tensor) -> list[Tensor]:
        scores, guide = score_model(policy, seen, done, latents), score_guide(policy, seen, done, latents)
        total = scores.log_prior.sum() + scores.log_likelihood.sum() + guide.log_prob.sum()
        return [
            scores.log_prior,
            scores.log_likelihood,
            guide.log_prob,
            *torch.autograd.grad(total, list(policy.parameters())),
        ]

    clean, other = everything(span, action), everything(spoiled, spoil(span, action))
    for one, two in zip(clean, other, strict=True):
        assert torch.equal(one, two)


@each_variant
def test_a_guide_reads_every_step_in_the_mask(kind: str, how: str) -> None:
    policy, span = make(kind, how), some_span()
    action = act(policy, span).action
    z = draw_prior(policy, span, num_particles=1).latents
    before = score_guide(policy, span, action, z).log_prob[0]
    for row, step in itertools.product(range(ROWS), range(STEPS)):
        moved = action.clone()
        moved[row, step] += 0.5
        after = score_guide(policy, span, moved, z).log_prob[0]
        changed = (after != before).tolist()
        assert changed == [b == row and step < LENGTHS[row] for b in range(ROWS)]


@each_action
@each_variant
def test_log_prob_of_codes_is_the_sum_over_them_written_out(kind: str, how: str, actions: str) -> None:
    """It is log sum_z p(z|s) prod_t p(a_t|s_t,z), each factor taken from a row of its own, one step after the other."""
    with torch.no_grad():
        sum_over_codes(kind, how, actions)


def sum_over_codes(kind: str, how: str, actions: str) -> None:
    policy, span = make(kind, how, "codes", actions), some_span()
    action = act(policy, span).action
    exact = Exact()
    found = exact.estimate(policy, span, action, exact.propose(policy, span, action)).log_prob
    for row, length in enumerate(LENGTHS):
        one = Span(span.obs[row : row + 1], span.mask[row : row + 1])
        total = torch.zeros((), dtype=torch.float64)
        for code in range(5):
            z = {"z": torch.full((1, 1), code)}
            joint = score_prior(policy, one.first, z).log_prob.squeeze().exp()
            steps = [only(one, step) for step in range(length)]
            for step, seen in zip(range(length), steps, strict=True):
                if kind == "episode":  # a step by itself is a row of the same decoder
                    part = score_model(policy, one.obs[:, step], action[row : row + 1, step], z).log_likelihood
                else:  # a chunk's step by itself: with and without it
                    part = score_model(policy, seen, action[row : row + 1], z).log_likelihood
                    if step:
                        first = score_model(policy, only(one, 0), action[row : row + 1], z).log_likelihood
                        part = part - first
                joint = joint * part.squeeze().exp()
            total = total + joint
        assert abs(float(total.log() - found[row])) < 1e-10


def only(one: Span, step: int) -> Span:
    """Keep the first step, which every span has, and one more."""
    index = torch.arange(one.mask.shape[1])
    return Span(one.obs, ((index == 0) | (index == step)).unsqueeze(0))


# ---------------------------------------------------------------------------------------------------------- parameters


@each_latent
@each_variant
def test_three_disjoint_sets_are_all_the_parameters(kind: str, how: str, latent: str) -> None:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    for policy in (make(kind, how, latent), make(kind, how, latent, encoder=encoder)):
        groups = [policy.prior_parameters(), policy.decoder_parameters(), policy.guide_parameters()]
        listed = [id(parameter) for group in groups for parameter in group]
        assert len(listed) == len(set(listed))
        assert set(listed) == {id(parameter) for parameter in policy.parameters()}
        assert bool(policy.prior_parameters()) == (latent != "standard")
    shared = {id(parameter) for parameter in encoder.parameters()}
    assert shared <= {id(parameter) for parameter in policy.decoder_parameters()}


@each_action
@each_latent
@each_variant
def test_each_set_is_moved_by_its_own_objective_alone(kind: str, how: str, latent: str, actions: str) -> None:
    """No parameter is without a gradient where it should have one, and none has one elsewhere."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    policy, span = make(kind, how, latent, actions, encoder=encoder), some_span()
    acted = act(policy, span)
    drawn = draw_guide(policy, span, acted.action, num_particles=3)
    model, guide = log_joint(policy, span, acted.action, drawn.latents).sum(), drawn.log_prob
    guide = score_guide(policy, span, acted.action, drawn.latents).log_prob.sum()
    theta_phi, psi = model_parameters(policy), policy.guide_parameters()
    names = {id(parameter): name for name, parameter in policy.named_parameters()}

    def moved(value: Tensor, parameters: list[nn.Parameter]) -> dict[str, bool]:
        found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
        return {names[id(p)]: g is not None and bool((g != 0).any()) for p, g in zip(parameters, found, strict=True)}

    assert all(moved(model, theta_phi).values()), moved(model, theta_phi)
    assert not any(moved(model, list(psi)).values())
    assert all(moved(guide, list(psi)).values()), moved(guide, list(psi))
    assert not any(moved(guide, theta_phi).values()), moved(guide, theta_phi)


# ---------------------------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("particles", [2, ROWS])
@each_latent
@each_variant
def test_every_estimator_and_guide_objective_takes_them(kind: str, how: str, latent: str, particles: int) -> None:
    policy, span = make(kind, how, latent), some_span()
    acted = act(policy, span)
    estimators: list[Estimator] = [
        ELBO(num_particles=particles),
        PosteriorIS(num_particles=particles, proposal=Guide()),
        PosteriorIS(num_particles=particles, proposal=Prior()),
        ConditionalIS(num_particles=particles),
    ]
    for estimator in estimators:
        stored = estimator.propose(policy, span, acted.action, acted.latents)
        estimate = estimator.estimate(policy, span, acted.action, stored)
        assert estimate.log_prob.shape == (ROWS,) and bool(estimate.log_prob.isfinite().all())
        found = torch.autograd.grad(estimate.log_prob.sum(), model_parameters(policy), allow_unused=True)
        assert any(gradient is not None and bool((gradient != 0).any()) for gradient in found)
    for objective in (ELBOGuide(num_particles=particles), Recorded()):
        loss = objective.loss(policy, span, acted.action, latents=acted.latents)
        assert loss.shape == (ROWS,)
        assert all(bool((g != 0).any()) for g in torch.autograd.grad(loss.sum(), policy.guide_parameters()))


@pytest.mark.parametrize(("kind", "how"), [("episode", "attention"), ("chunk", "mlp")])
def test_importance_sampling_finds_the_enumerated_value(kind: str, how: str) -> None:
    """With every code among the particles as often as the proposal says, the mean weight is p(a|s), up to its error."""
    policy, span = make(kind, how, "codes"), some_span()
    action = act(policy, span).action
    exact, sampled = Exact(), PosteriorIS(num_particles=20_000, proposal=Prior())
    with torch.no_grad():
        wanted = exact.estimate(policy, span, action, exact.propose(policy, span, action)).log_prob
        particles = sampled.propose(policy, span, action)
        found = sampled.estimate(policy, span, action, particles).log_prob
        weight = score_model(policy, span, action, particles.latents).log_likelihood.exp()
    error = 6 * weight.std(0) / weight.mean(0) / 20_000**0.5
    assert bool(((found - wanted).exp() - 1).abs().le(error).all())
    assert bool((error < 0.1).all())  # a bound that could not fail would say nothing


def test_a_recorded_latent_alone_scores_as_it_was_recorded() -> None:
    for kind, how in VARIANTS:
        policy, span = make(kind, how, "mixture"), some_span()
        acted = act(policy, span)
        again = log_joint(policy, span, acted.action, {"z": acted.latents["z"].unsqueeze(0)})[0]
        assert off_by(again, acted.log_joint) < EXACT


@pytest.mark.production
def test_names_that_are_none_are_refused() -> None:
    with pytest.raises(OptionError, match=r'`reader`[^`]*"attention" or "gru"'):
        make("episode", "lstm")
    with pytest.raises(OptionError, match=r'`decoder`[^`]*"mlp" or "transformer"'):
        make("chunk", "rnn")


def test_latents_are_values() -> None:
    """Choices print as their configuration, compare by it and cannot be changed."""
    assert repr(GaussianLatent(3, "standard")) == "GaussianLatent(size=3, prior='standard', num_components=32)"
    assert CodeLatent(7) == CodeLatent(num_codes=7) != CodeLatent(8)
    with pytest.raises(AttributeError):
        CodeLatent(7).num_codes = 8  # type: ignore[misc]
