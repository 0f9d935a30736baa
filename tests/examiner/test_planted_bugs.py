"""Tests of the tests: each mistake that is easily made is made here, and the examiner must see it.

A faulty estimator is held to the claim it would make; its deviation must exceed a thousandth, where a right one stays
below 1e-10. All are examined on one fixed set of models, with the right estimator beside them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from latentpg.errors import SupportError, WeightError
from latentpg.estimators import (
    ConditionalIS,
    Estimate,
    Estimator,
    Guide,
    Mixture,
    Particles,
    PosteriorIS,
    Prior,
    Proposed,
)
from latentpg.estimators.guides import VIMCO, GuideObjective
from latentpg.estimators.importance import importance_estimate
from latentpg.numerics.weights import leave_one_out_log_mean_exp, log_mean_exp
from latentpg.oracles.enumeration import enumerate_draws, tuples
from latentpg.oracles.replay import replay
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import (
    Categorical,
    LatentPolicy,
    Latents,
    Observations,
    draw,
    draw_guide,
    draw_prior,
    log_joint,
    num_rows,
    score_model,
    take_rows,
)
from tests.estimators import Claim
from tests.examiner.claims import DEVIATION
from tests.examiner.expectations import (
    EXACT,
    PLANTED,
    draw_recorded,
    examine,
    examine_loss,
    guide_gradient,
    model_gradient,
    moved_gradient,
    off_by,
)
from tests.examiner.models import Model


@pytest.fixture
def model() -> Model:
    """Eight models of three latent values and three actions, whose logits have a standard deviation of 1.5."""
    torch.manual_seed(8)
    sizes = {"num_states": 8, "num_latents": 3, "num_actions": 3, "scale": 1.5}
    policies = [TabularLatentPolicy.random(**sizes) for _ in range(2)]  # type: ignore[arg-type]
    return Model(policies[0], policies[1], torch.arange(8), torch.arange(8) % 3)


def deviation(model: Model, estimator: Estimator, claim: Claim, num_particles: int = 2) -> float:
    every = examine(model, estimator, uses_recorded=True)
    assert every is not None
    return DEVIATION[claim](model, "guide", num_particles, every)


@dataclass(frozen=True)
class Retaining:
    """What the faulty estimators below have in common with the right one: its particles."""

    num_particles: int = 2

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        return ConditionalIS(self.num_particles, Guide()).propose(policy, obs, action, latents)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return importance_estimate(policy, obs, action, particles)


@pytest.mark.parametrize("claim", [Claim.GRADIENT, Claim.RATIO, Claim.UPPER])
def test_the_right_one_is_not_accused(model: Model, claim: Claim) -> None:
    assert deviation(model, ConditionalIS(2, Guide()), claim) < EXACT
    assert deviation(model, Retaining(), claim) < EXACT


@dataclass(frozen=True)
class RetainedDropped:
    """The recorded latent is left out of the set."""

    estimate = Retaining().estimate

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        return PosteriorIS(2, Guide()).propose(policy, obs, action)


@pytest.mark.parametrize("claim", [Claim.GRADIENT, Claim.RATIO, Claim.UPPER])
def test_a_dropped_retained_particle_is_caught(model: Model, claim: Claim) -> None:
    assert deviation(model, RetainedDropped(), claim) > PLANTED


@dataclass(frozen=True)
class WeightsUndetached:
    """The surrogate sum_k wbar_k log p(z_k, a), whose weights should have been constants."""

    propose = Retaining().propose

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        score = log_joint(policy, obs, action, particles.latents)
        return Estimate(((score - particles.log_proposal).softmax(0) * score).sum(0))


@dataclass(frozen=True)
class Unnormalised:
    """Weights of mean one over the proposal, not of sum one over the particles: (1/K) sum_k w_k / c log p(z_k, a)."""

    propose = Retaining().propose

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        score = log_joint(policy, obs, action, particles.latents)
        weight = (score - particles.log_proposal).exp().detach()
        return Estimate((weight * score).mean(0))


@dataclass(frozen=True)
class MeanOfWeights:
    """The mean of the weights where its logarithm belongs."""

    propose = Retaining().propose

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return Estimate((log_joint(policy, obs, action, particles.latents) - particles.log_proposal).exp().mean(0))


@dataclass(frozen=True)
class LikelihoodOnly:
    """The right weights on the gradient of log p(a | s, z) alone: phi gets none."""

    propose = Retaining().propose

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        scores = score_model(policy, obs, action, particles.latents)
        log_weight = scores.log_prior.detach() + scores.log_likelihood - particles.log_proposal
        return Estimate(log_mean_exp(log_weight))


@dataclass(frozen=True)
class PriorUnweighted:
    """Weights p(a | s, z) / r(z), without the prior."""

    propose = Retaining().propose

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        scores = score_model(policy, obs, action, particles.latents)
        share = (scores.log_likelihood - particles.log_proposal).softmax(0).detach()
        return Estimate((share * (scores.log_prior + scores.log_likelihood)).sum(0))


@dataclass(frozen=True)
class ProposalUnweighted:
    """Weights p(z, a | s), as if particles had been drawn evenly."""

    propose = Retaining().propose

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return Estimate(log_mean_exp(log_joint(policy, obs, action, particles.latents)))


@pytest.mark.parametrize(
    "faulty",
    [WeightsUndetached(), Unnormalised(), MeanOfWeights(), LikelihoodOnly(), PriorUnweighted(), ProposalUnweighted()],
    ids=lambda faulty: type(faulty).__name__,
)
def test_a_wrong_gradient_is_caught(model: Model, faulty: Estimator) -> None:
    assert deviation(model, faulty, Claim.GRADIENT) > PLANTED


@pytest.mark.parametrize(
    "faulty", [MeanOfWeights(), LikelihoodOnly(), ProposalUnweighted()], ids=lambda faulty: type(faulty).__name__
)
def test_a_wrong_ratio_is_caught(model: Model, faulty: Estimator) -> None:
    assert deviation(model, faulty, Claim.RATIO) > PLANTED


@dataclass(frozen=True)
class GuideTrainedFirst:
    """The guide has taken a step towards the recorded latent before the fresh particle is drawn from it."""

    estimate = Retaining().estimate

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        assert latents is not None and isinstance(policy, TabularLatentPolicy)
        kept = latents["z"]
        with torch.no_grad():
            trained = policy.guide_logits[obs, action] + torch.nn.functional.one_hot(kept, 3)
            guide = Categorical(trained)
            z = torch.stack([kept, draw("z", guide)])
            return Particles({"z": z}, guide.log_prob(z), retained=True)


@dataclass(frozen=True)
class StratifiedMixture:
    """One particle of the prior and one of the guide beside the recorded one, weighted by the even mixture."""

    estimate = Retaining().estimate

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        assert latents is not None
        with torch.no_grad():
            prior = draw_prior(policy, obs, num_particles=1).latents["z"]
            guide = draw_guide(policy, obs, action, num_particles=1).latents["z"]
            z = {"z": torch.cat([latents["z"].unsqueeze(0), prior, guide])}
            return Particles(z, Mixture(0.5).log_prob(policy, obs, action, z), retained=True)


@dataclass(frozen=True)
class MixtureDensityBeforeMixing:
    """Draws from the mixture, weighted by its density at the guide's draw, kept or not."""

    def draw(self, policy: LatentPolicy, obs: Observations, action: Tensor, num_particles: int) -> Proposed:
        guide = draw_guide(policy, obs, action, num_particles=num_particles)
        prior = draw_prior(policy, obs, num_particles=num_particles)
        coin = Categorical(torch.zeros(num_rows(obs), 2, dtype=torch.float64))
        from_prior = draw("coin", coin, (num_particles,)).bool()
        kept = torch.where(from_prior, prior.latents["z"], guide.latents["z"])
        return Proposed({"z": kept}, Mixture(0.5).log_prob(policy, obs, action, guide.latents))

    def log_prob(self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Tensor:
        return Mixture(0.5).log_prob(policy, obs, action, latents)


@pytest.mark.parametrize("claim", [Claim.GRADIENT, Claim.RATIO])
@pytest.mark.parametrize(
    "faulty",
    [GuideTrainedFirst(), StratifiedMixture(), ConditionalIS(2, MixtureDensityBeforeMixing())],
    ids=["GuideTrainedFirst", "StratifiedMixture", "MixtureDensityBeforeMixing"],
)
def test_a_wrong_proposal_is_caught(model: Model, faulty: Estimator, claim: Claim) -> None:
    assert deviation(model, faulty, claim) > PLANTED


def test_a_stratified_mixture_is_right_where_the_recorded_latent_takes_its_place_by_chance(model: Model) -> None:
    """Slot j with probability proportional to r_j(z0), the other stratum beside it."""

    @dataclass(frozen=True)
    class Placed:
        estimate = Retaining().estimate

        def propose(
            self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
        ) -> Particles:
            assert latents is not None
            with torch.no_grad():
                kept = {"z": latents["z"].unsqueeze(0)}
                densities = [r.log_prob(policy, obs, action, kept)[0] for r in (Prior(), Guide())]
                as_prior = draw("place", Categorical(torch.stack(densities, -1))) == 0
                prior = draw_prior(policy, obs, num_particles=1).latents["z"]
                guide = draw_guide(policy, obs, action, num_particles=1).latents["z"]
                z = {"z": torch.cat([kept["z"], torch.where(as_prior, guide, prior)])}
                return Particles(z, Mixture(0.5).log_prob(policy, obs, action, z), retained=True)

    assert deviation(model, Placed(), Claim.GRADIENT) < EXACT
    assert deviation(model, Placed(), Claim.RATIO) < EXACT


@dataclass(frozen=True)
class Hole:
    """A proposal that never draws the first latent, and either says so or pretends otherwise."""

    honest: bool

    def draw(self, policy: LatentPolicy, obs: Observations, action: Tensor, num_particles: int) -> Proposed:
        even = Categorical(torch.zeros(num_rows(obs), 2, dtype=torch.float64))
        z = {"z": 1 + draw("z", even, (num_particles,))}
        return Proposed(z, self.log_prob(policy, obs, action, z))

    def log_prob(self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Tensor:
        half = torch.full(latents["z"].shape, math.log(0.5), dtype=torch.float64)
        return torch.where(latents["z"] == 0, -torch.inf, half) if self.honest else half


def test_a_hole_in_the_support_is_caught(model: Model) -> None:
    assert deviation(model, ConditionalIS(2, Hole(honest=False)), Claim.GRADIENT) > PLANTED
    assert deviation(model, ConditionalIS(2, Hole(honest=False)), Claim.RATIO) > PLANTED


def test_a_hole_that_is_admitted_raises(model: Model) -> None:
    recorded = {"z": torch.zeros(8, dtype=torch.int64)}
    with pytest.raises(WeightError, match="at the recorded latent"):
        ConditionalIS(2, Hole(honest=True)).propose(model.policy, model.obs, model.action, recorded)


def test_a_guide_with_a_hole_raises(model: Model) -> None:
    assert isinstance(model.policy, TabularLatentPolicy)
    with torch.no_grad():
        model.policy.guide_logits[3, :, 1] = -torch.inf
    for estimator in (PosteriorIS(2, Guide()), ConditionalIS(2, Guide())):
        with pytest.raises(SupportError, match="misses part of the prior's support"):
            estimator.propose(model.policy, model.obs, model.action, {"z": torch.zeros(8, dtype=torch.int64)})


def test_a_hole_in_the_policy_that_acted_spoils_the_ratio(model: Model) -> None:
    """Where p_old is 0 and p_new is not, the mass that no recorded latent can show is missing."""
    hole = TabularLatentPolicy(
        torch.tensor([[-torch.inf, 0.0, 0.5]]), torch.zeros(1, 3, 2), guide_logits=torch.zeros(1, 2, 3)
    )
    moved = TabularLatentPolicy(torch.zeros(1, 3), torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]]]))
    one = Model(hole, moved, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))

    def ratio() -> float:
        estimator, row = ConditionalIS(2, Guide()), torch.zeros(1, dtype=torch.int64)
        particles = estimator.propose(hole, one.obs, one.action, draw_recorded(one, row))
        new = estimator.estimate(moved, one.obs, one.action, particles).log_prob
        old = estimator.estimate(hole, one.obs, one.action, particles).log_prob
        return float((new - old).detach().exp())

    paths = replay(ratio)  # which does not take choices of probability zero
    assert math.fsum(path.prob * path.result for path in paths) < float(one.ratio().detach()) * (1 - PLANTED)


def test_a_stale_latent_is_caught(model: Model) -> None:
    """Recorded under the old policy, it is no posterior draw of the new one; only the ratio makes that good."""
    every = examine(model, ConditionalIS(2, Guide()), uses_recorded=True)
    assert every is not None
    expected = moved_gradient(model, model.moved_log_joint().logsumexp(0))
    stale = moved_gradient(model, every.expectation(every.result.moved_log_prob))
    assert off_by(stale, expected) > PLANTED
    assert DEVIATION[Claim.RATIO](model, "guide", 2, every) < EXACT


def test_a_latent_of_another_row_is_caught(model: Model) -> None:
    @dataclass(frozen=True)
    class Misaligned:
        estimate = Retaining().estimate

        def propose(
            self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
        ) -> Particles:
            assert latents is not None
            return Retaining().propose(policy, obs, action, {"z": latents["z"].roll(1)})

    assert deviation(model, Misaligned(), Claim.GRADIENT) > PLANTED


@dataclass(frozen=True)
class VIMCOWithoutItsGuideTerm:
    """VIMCO whose last term, L, is differentiated through the model alone, so that - wbar grad log q is missing."""

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Tensor:
        drawn = draw_guide(policy, obs, action, num_particles=2)
        log_weight = log_joint(policy, obs, action, drawn.latents) - drawn.log_prob.detach()
        bound = log_mean_exp(log_weight)
        signal = (bound - leave_one_out_log_mean_exp(log_weight)).detach()
        return -((signal * drawn.log_prob).sum(0) + bound)


def multi_sample_bound(model: Model) -> Tensor:
    log_q = model.log_guide()
    every = tuples([log_q] * 2)
    return -(every.log_prob.exp() * (model.log_joint() - log_q)[every.index].exp().mean(0).log()).sum(0)


def test_vimco_without_its_guide_term_is_caught(model: Model) -> None:
    expected = guide_gradient(model, multi_sample_bound(model))
    objectives: Sequence[tuple[GuideObjective, bool]] = [(VIMCO(2), True), (VIMCOWithoutItsGuideTerm(), False)]
    for objective, right in objectives:
        loss = examine_loss(model, objective)
        assert loss is not None
        error = off_by(guide_gradient(model, loss), expected)
        assert error < EXACT if right else error > PLANTED


def test_forgetting_the_detach_lets_anything_pass(model: Model) -> None:
    """With probabilities that carry a gradient, a multi-sample bound without any score-function term looks right.

    So an enumeration's own never do, even where the program has drawn with a gradient.
    """

    def program(row: Tensor) -> Tensor:
        obs, action = take_rows(model.obs, row), model.action[row]
        drawn = draw_guide(model.policy, obs, action, num_particles=2)
        return -log_mean_exp(log_joint(model.policy, obs, action, drawn.latents) - drawn.log_prob)

    expected = guide_gradient(model, multi_sample_bound(model))
    every = enumerate_draws(program, num_rows=model.rows)
    assert not every.log_prob.requires_grad
    assert off_by(guide_gradient(model, every.expectation(every.result)), expected) > PLANTED

    z = tuples([model.log_guide()] * 2)
    vacuous = (z.log_prob.exp() * every.result.reshape(len(z.log_prob), -1)).sum(0)
    assert off_by(guide_gradient(model, vacuous), expected) < EXACT
    proper = (z.log_prob.exp().detach() * every.result.reshape(len(z.log_prob), -1)).sum(0)
    assert off_by(guide_gradient(model, proper), expected) > PLANTED


def test_a_biased_estimator_is_not_called_exact(model: Model) -> None:
    every = examine(model, PosteriorIS(4, Guide()), uses_recorded=False)
    assert every is not None
    assert DEVIATION[Claim.GRADIENT](model, "guide", 4, every) > PLANTED
    assert off_by(model_gradient(model, every.expectation(every.result.log_prob)), torch.zeros(())) > PLANTED
