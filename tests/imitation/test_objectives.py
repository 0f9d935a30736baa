"""Objectives over demonstrations: what each moves theta, phi and psi by, and what has no place among them."""

from collections.abc import Callable

import pytest
import torch

from latentpg.errors import EstimatorError, OptionError, RecordedLatentError, SiteError
from latentpg.estimators import ConditionalIS, JointScore, MarkovianIS, PosteriorIS, Prior, Reparameterized
from latentpg.estimators.guides import ConditionalWake, Recorded, Sleep, Wake
from latentpg.imitation import (
    OBJECTIVES,
    ClassicWakeSleep,
    Estimated,
    ExpectationMaximization,
    MaximumLikelihood,
    Objective,
    ReweightedWakeSleep,
    ScoreClimbing,
    make_objective,
)
from latentpg.imitation.registry import NEED_A_LATENT
from latentpg.numerics.rng import seeded
from latentpg.policies import PlainPolicy
from latentpg.programs import model_parameters
from tests.imitation.small import BOX, close, gaussian, gradients, observed, tabular, two_ways


def test_maximum_likelihood_is_the_table_and_teaches_the_exact_posterior() -> None:
    policy, rows = tabular()
    found = MaximumLikelihood().losses(policy, rows.obs, rows.action)
    exact = policy.log_pi()[observed(rows), rows.action]
    assert torch.allclose(-found.model, exact) and torch.allclose(found.info["log_prob"], exact.detach())
    model = model_parameters(policy)
    assert close(gradients(-found.model.mean(), model), gradients(exact.mean(), model))
    posterior = policy.log_posterior()[observed(rows), rows.action].exp().detach()
    taught = -(posterior * policy.log_guide()[observed(rows), rows.action]).sum(-1)
    assert found.guide is not None and torch.allclose(found.guide, taught)


def test_a_policy_without_a_latent_is_its_own_likelihood() -> None:
    with seeded(0):
        policy = PlainPolicy(*BOX, hidden=(4,)).double()
    data = two_ways()
    found = MaximumLikelihood().losses(policy, data.obs, data.action)
    assert torch.allclose(-found.model, policy.log_pi(data.obs, data.action))
    assert found.guide is None


def test_wake_sleep_climbs_the_bound_at_the_guides_draws_and_learns_from_dreams() -> None:
    policy, rows = tabular()
    with seeded(1):
        found = ClassicWakeSleep(2, 3).losses(policy, rows.obs, rows.action)
    with seeded(1):
        z = policy.log_guide()[observed(rows), rows.action].exp()  # the draws come first, the dreams after them
        particles = PosteriorIS(2).propose(policy, rows.obs, rows.action)
        dreamed = Sleep(3).loss(policy, rows.obs, rows.action)
    assert z.shape == (rows.size, 3)
    latent = particles.latents["z"]
    joint = policy.log_joint()[observed(rows), latent, rows.action].mean(0)
    model = model_parameters(policy)
    assert close(gradients(-found.model.mean(), model), gradients(joint.mean(), model))
    assert found.guide is not None and torch.allclose(found.guide, dreamed)


def test_reweighted_wake_sleep_has_its_three_ways() -> None:
    policy, rows = tabular()
    found = {}
    for phase in ("wake", "sleep", "both"):
        with seeded(2):
            found[phase] = ReweightedWakeSleep(4, phase, Prior()).losses(policy, rows.obs, rows.action)
    with seeded(2):
        particles = PosteriorIS(4, Prior()).propose(policy, rows.obs, rows.action)
        woken = Wake().loss(policy, rows.obs, rows.action, particles=particles)
        dreamed = Sleep().loss(policy, rows.obs, rows.action)
    guides = {phase: losses.guide for phase, losses in found.items()}
    assert guides["wake"] is not None and torch.allclose(guides["wake"], woken)
    assert guides["sleep"] is not None and torch.allclose(guides["sleep"], dreamed)
    assert guides["both"] is not None and torch.allclose(guides["both"], (woken + dreamed) / 2)
    assert all(torch.equal(each.model, found["wake"].model) for each in found.values())


def test_score_climbing_goes_on_from_the_state_it_left() -> None:
    """With no sweep the state stays in slot 0; without a state the proposal starts one."""
    policy, rows = tabular()
    state = {"z": torch.arange(rows.size) % 3}
    with seeded(3):
        still = ScoreClimbing(2, 0).losses(policy, rows.obs, rows.action, latents=state)
        moved = ScoreClimbing(8, 2).losses(policy, rows.obs, rows.action, latents=state)
        started = ScoreClimbing(2).losses(policy, rows.obs, rows.action)
    assert still.latents is not None and torch.equal(still.latents["z"], state["z"])
    assert moved.latents is not None and not torch.equal(moved.latents["z"], state["z"])
    assert started.latents is not None and started.latents["z"].shape == (rows.size,)
    assert moved.guide is not None


def test_the_chain_comes_to_the_posterior() -> None:
    """From the worst start, 30 sweeps of K = 8: the states' law is the posterior's, by 4,000 chains a row."""
    policy, _ = tabular(3, seed=4)
    obs, action = torch.tensor([0, 1]).repeat(4000), torch.tensor([2, 3]).repeat(4000)
    posterior = policy.log_posterior()[[0, 1], [2, 3]].exp().detach()
    state = {"z": posterior.argmin(-1).repeat(4000)}
    with seeded(5), torch.no_grad():
        found = ScoreClimbing(8, 30).losses(policy, obs, action, latents=state)
    assert found.latents is not None
    shares = torch.nn.functional.one_hot(found.latents["z"].reshape(-1, 2), 3).double().mean(0)
    assert float((shares - posterior).abs().max()) < 5 * 0.5 / 4000**0.5


def test_any_other_pair_is_made_by_hand() -> None:
    policy, rows = tabular()
    pair = Estimated(PosteriorIS(4), Wake())
    assert isinstance(pair, Objective)
    with seeded(6):
        found = pair.losses(policy, rows.obs, rows.action)
    with seeded(6):
        expected = ReweightedWakeSleep(4).losses(policy, rows.obs, rows.action)
    assert torch.equal(found.model, expected.model)
    assert Estimated(PosteriorIS(4)).losses(policy, rows.obs, rows.action).guide is None
    assert Estimated(MarkovianIS(4), Recorded()).losses(policy, rows.obs, rows.action).guide is not None


def test_every_name_builds_its_objective() -> None:
    for name in OBJECTIVES:
        assert isinstance(make_objective(name), Objective)
    assert make_objective("em", {"num_gradient_steps": 3}) == ExpectationMaximization(3)
    assert make_objective("score-climbing", {"proposal": "prior"}) == ScoreClimbing(proposal=Prior())


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: Estimated(ConditionalIS(4)), RecordedLatentError, "carry no recorded latent"),
        (lambda: Estimated(JointScore()), RecordedLatentError, "carry no recorded latent"),
        (lambda: Estimated(Reparameterized(4, retain=True)), RecordedLatentError, "carry no recorded latent"),
        (lambda: Estimated(PosteriorIS(4), Recorded()), RecordedLatentError, "carry no recorded latent"),
        (lambda: Estimated(PosteriorIS(4), ConditionalWake()), RecordedLatentError, "MarkovianIS"),
        (lambda: make_objective("vae"), OptionError, "unknown objective"),
        (lambda: make_objective("elbow"), OptionError, "did you mean elbo?"),
        (lambda: make_objective("elbo", {"betta": 2}), OptionError, "did you mean beta?"),
        (lambda: make_objective("exact", {"beta": 2}), OptionError, "drop `beta`"),
        (lambda: make_objective("score-climbing", {"proposal": "guid"}), OptionError, "unknown proposal"),
        (lambda: ReweightedWakeSleep(1), EstimatorError, "one weight is always 1"),
        (lambda: ReweightedWakeSleep(guide="rem"), OptionError, "wake, sleep or both"),
        (lambda: ClassicWakeSleep(num_dreams=0), OptionError, "`num_dreams`"),
        (lambda: ClassicWakeSleep(0), OptionError, "`num_particles`"),
        (lambda: ScoreClimbing(1), EstimatorError, "never leaves its state"),
        (lambda: enumerate_a_gaussian(), SiteError, "is continuous"),
    ],
)
def test_what_has_no_place_here_is_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


@pytest.mark.parametrize("name", NEED_A_LATENT)
def test_names_that_need_a_recorded_latent_say_so(name: str) -> None:
    with pytest.raises(RecordedLatentError, match=r"carry no recorded latent[\s\S]*score-climbing"):
        make_objective(name)


def enumerate_a_gaussian() -> object:
    policy, rows = gaussian()
    return MaximumLikelihood().losses(policy, rows.obs, rows.action)
