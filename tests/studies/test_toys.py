"""Discrete toys: what is drawn, what the guide is, and that all of it can be enumerated."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import Exact, Guide, PosteriorIS, replicate_gradients
from latentpg.numerics.rng import seeded
from latentpg.oracles import TabularLatentPolicy
from latentpg.programs import LatentPolicy, Observations, Span, score_guide, score_prior, support
from latentpg.studies.guides import train_guide
from latentpg.studies.measures import once
from latentpg.studies.problem import Problem, Source
from latentpg.studies.references import EnumeratedPosterior
from latentpg.studies.targets import GRPO, PolicyGradient
from latentpg.studies.toys import GuideQuality, RandomToys, SpanSoftmaxPolicy

STEP = RandomToys(num_rows=5, num_latents=3, num_actions=2)
SPAN = RandomToys(num_rows=5, num_latents=3, num_actions=2, span=3)
both = pytest.mark.parametrize("source", [STEP, SPAN], ids=["step", "span"])


def log_joint_by_hand(problem: Problem, row: int, action: Tensor, z: int) -> float:
    """Multiply the softmaxes of one row, step by step."""
    policy = problem.policy
    assert isinstance(policy, TabularLatentPolicy | SpanSoftmaxPolicy)
    prior, decoder = policy.prior_logits[row].detach().softmax(-1), policy.decoder_logits[row].detach().softmax(-1)
    chance = float(prior[z])
    if isinstance(problem.obs, Span):
        for t in range(len(action)):
            if problem.obs.mask[row, t]:
                chance *= float(decoder[t, z, action[t]])
    else:
        chance *= float(decoder[z, action])
    return math.log(chance)


def guide_and_posterior(problem: Problem, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return log q(z | s, a) of the program, and log p(z | s, a) by hand, each [C, B]."""
    points = support(problem.policy, problem.obs)
    size = len(points["z"])
    joint = torch.tensor(
        [[log_joint_by_hand(problem, row, action[row], z) for row in range(len(action))] for z in range(size)],
        dtype=torch.float64,
    )
    with torch.no_grad():
        return score_guide(problem.policy, problem.obs, action, points).log_prob, joint.log_softmax(0)


def other_actions(problem: Problem) -> list[Tensor]:
    """List every action a row could have taken, the same one in all rows."""
    shape = problem.action.shape[1:]
    values = itertools.product(range(2), repeat=math.prod(shape))
    return [torch.tensor(value).reshape(shape).expand_as(problem.action).clone() for value in values]


@both
def test_the_same_seed_builds_the_same_rows(source: RandomToys) -> None:
    with seeded(1):
        first = source.build(7)
    with seeded(2):
        second = source.build(7)
    other = source.build(8)
    for problem, same in ((second, True), (other, False)):
        tables = zip(first.policy.guide_parameters(), problem.policy.guide_parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in tables) is same
    assert first.latents is not None and second.latents is not None
    assert torch.equal(first.action, second.action) and torch.equal(first.latents["z"], second.latents["z"])
    assert first.seed == 7


@both
@pytest.mark.parametrize("quality", ["prior", "exact", "trained"])
def test_model_and_rows_do_not_depend_on_the_guide(source: RandomToys, quality: GuideQuality) -> None:
    first, second = source.build(3), replace(source, guide=quality, guide_steps=2).build(3)
    for name in ("prior_parameters", "decoder_parameters"):
        for a, b in zip(getattr(first.policy, name)(), getattr(second.policy, name)(), strict=True):
            assert torch.equal(a, b)
    assert first.latents is not None and second.latents is not None
    assert torch.equal(first.action, second.action) and torch.equal(first.latents["z"], second.latents["z"])
    assert any(
        not torch.equal(a, b)
        for a, b in zip(first.policy.guide_parameters(), second.policy.guide_parameters(), strict=True)
    )


@both
def test_the_exact_guide_is_the_posterior_of_every_action(source: RandomToys) -> None:
    problem = replace(source, guide="exact").build(0)
    for action in other_actions(problem):
        guide, posterior = guide_and_posterior(problem, action)
        torch.testing.assert_close(guide, posterior)
    assert problem.facts["KL(posterior || guide) (nats)"] == pytest.approx(0, abs=1e-12)


@both
def test_the_prior_guide_is_the_prior_whatever_the_action(source: RandomToys) -> None:
    problem = replace(source, guide="prior").build(0)
    with torch.no_grad():
        prior = score_prior(problem.policy, problem.obs, support(problem.policy, problem.obs)).log_prob
    for action in other_actions(problem):
        torch.testing.assert_close(guide_and_posterior(problem, action)[0], prior)
    assert problem.facts["KL(posterior || guide) (nats)"] == pytest.approx(
        problem.facts["KL(posterior || prior) (nats)"]
    )


@both
def test_training_brings_the_guide_nearer_to_the_posterior(source: RandomToys) -> None:
    def distance(quality: GuideQuality, steps: int = 0) -> float:
        problem = replace(source, num_rows=16, guide=quality, guide_steps=steps).build(0)
        found = problem.facts["KL(posterior || guide) (nats)"]
        guide, posterior = guide_and_posterior(problem, problem.action)
        by_hand = float((posterior.exp() * (posterior - guide)).sum(0).mean())
        assert found == pytest.approx(by_hand)
        return by_hand

    assert distance("trained", 0) == distance("random")
    assert distance("trained", 200) < 0.2 * distance("random")


@both
def test_the_exact_value_is_the_sum_over_latents(source: RandomToys) -> None:
    problem = source.build(2)
    assert problem.exact == Exact()
    particles = problem.exact.propose(problem.policy, problem.obs, problem.action)
    found = problem.exact.estimate(problem.policy, problem.obs, problem.action, particles).log_prob
    expected = [
        math.log(sum(math.exp(log_joint_by_hand(problem, row, action, z)) for z in range(3)))
        for row, action in enumerate(problem.action)
    ]
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64))


def test_spans_are_of_uneven_length_and_padding_counts_for_nothing() -> None:
    problem = SPAN.build(4)
    assert isinstance(problem.obs, Span)
    assert problem.obs.mask.sum(1).tolist() == [3, 2, 1, 3, 2]
    assert bool(problem.obs.mask[:, 0].all())

    def value(action: Tensor) -> Tensor:
        exact = Exact()
        with torch.no_grad():
            guide = score_guide(problem.policy, problem.obs, action, support(problem.policy, problem.obs)).log_prob
            particles = exact.propose(problem.policy, problem.obs, action)
            return torch.cat([guide, exact.estimate(problem.policy, problem.obs, action, particles).log_prob[None]])

    padding = torch.where(problem.obs.mask, problem.action, 1 - problem.action)
    executed = torch.where(problem.obs.mask, 1 - problem.action, problem.action)
    assert torch.equal(value(padding), value(problem.action))
    assert not torch.allclose(value(executed), value(problem.action))


@both
def test_redrawn_latents_have_the_law_of_the_posterior(source: RandomToys) -> None:
    problem, draws = source.build(5), 4000
    assert isinstance(problem.redraw, EnumeratedPosterior)
    _, posterior = guide_and_posterior(problem, problem.action)
    torch.testing.assert_close(problem.redraw.log_posterior, posterior)
    with torch.no_grad():
        for table in problem.policy.decoder_parameters():
            table.add_(torch.randn(table.shape, dtype=table.dtype))  # it is the acting parameters' posterior that stays
    with seeded(0):
        found = torch.stack([problem.redraw()["z"] for _ in range(draws)])
    for z in range(3):
        chance = posterior[z].exp()
        spread = (chance * (1 - chance) / draws).sqrt()
        assert bool((((found == z).double().mean(0) - chance).abs() < 4.5 * spread).all())


@both
def test_with_the_exact_guide_importance_sampling_has_no_error_left(source: RandomToys) -> None:
    problem = replace(source, guide="exact").build(6)

    def parts(policy: LatentPolicy, obs: Observations, action: Tensor, estimator: Exact | PosteriorIS) -> Tensor:
        with seeded(0):
            particles = estimator.propose(policy, obs, action)
        return estimator.estimate(policy, obs, action, particles).log_prob.detach()

    rows = (problem.policy, problem.obs, problem.action)
    torch.testing.assert_close(parts(*rows, PosteriorIS(2, Guide())), parts(*rows, Exact()))


def test_replicates_of_spans_are_unbiased_for_the_enumerated_gradient() -> None:
    problem = replace(SPAN, guide="exact").build(6)
    rows = (problem.policy, problem.obs, problem.action)
    with seeded(0):
        # the exact posterior makes every weight the same, and sum of wbar grad log p is unbiased at any K
        sample, values = replicate_gradients(problem.policy, PosteriorIS(2, Guide()), *rows[1:], num_replicates=2000)
        exact, value = replicate_gradients(problem.policy, Exact(), *rows[1:], num_replicates=1)
    torch.testing.assert_close(values, value.expand(2000))
    spread = sample.std(0) / 2000**0.5
    assert bool(((sample.mean(0) - exact[0]).abs() <= 4.5 * spread + 1e-12).all())
    assert float(spread.max()) < 0.1 * float(exact.abs().max())


def test_it_is_a_source_that_says_what_it_is() -> None:
    assert isinstance(STEP, Source)
    assert "3 latents" in STEP.describe() and "steps" not in STEP.describe()
    trained = replace(SPAN, guide="trained", guide_objective="sleep")
    assert "of 3 steps" in trained.describe() and "sleep" in trained.describe() and "100 steps" in trained.describe()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_rows": 0}, "num_rows"),
        ({"num_latents": 0}, "num_latents"),
        ({"num_actions": 1}, "num_actions"),
        ({"span": 0}, "span"),
        ({"guide_steps": -1}, "guide_steps"),
        ({"scale": 0.0}, "scale"),
        ({"guide_learning_rate": math.nan}, "guide_learning_rate"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=f"`{told}`"):
        replace(STEP, **options)


@pytest.mark.production
def test_an_unknown_guide_quality_is_answered_with_a_suggestion() -> None:
    with pytest.raises(OptionError, match="did you mean prior"):
        RandomToys(guide="piror")  # type: ignore[arg-type]


@pytest.mark.production
def test_tables_of_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="guide_steps"):
        SpanSoftmaxPolicy(torch.zeros(1, 2), torch.zeros(1, 3, 2, 4), guide_steps=torch.zeros(1, 3, 2, 4))
    with pytest.raises(ShapeError, match="action"):
        SpanSoftmaxPolicy(torch.zeros(1, 2), torch.zeros(1, 3, 2, 4)).guide(
            Span(torch.zeros(1, 3, 1), torch.ones(1, 3).bool()), None
        )


def test_training_a_guide_moves_psi_alone_and_leaves_no_gradient() -> None:
    problem = STEP.build(0)
    before = [parameter.detach().clone() for parameter in problem.policy.prior_parameters()]
    start = problem.policy.guide_parameters()[0].detach().clone()
    with seeded(0):
        train_guide(problem.policy, problem.obs, problem.action, None, objective="sleep", steps=3, learning_rate=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.policy.prior_parameters(), strict=True))
    assert not torch.equal(start, problem.policy.guide_parameters()[0])
    assert isinstance(problem.policy, TabularLatentPolicy)
    assert all(parameter.grad is None for parameter in problem.policy.parameters())


@pytest.mark.parametrize("options", [{"steps": -1}, {"learning_rate": 0.0}])
def test_training_out_of_range_is_refused(options: dict[str, int]) -> None:
    problem = STEP.build(0)
    chosen = {"steps": 1, "learning_rate": 0.1, **options}
    with pytest.raises(OptionError, match=next(iter(options))):
        train_guide(
            problem.policy,
            problem.obs,
            problem.action,
            None,
            objective="sleep",
            steps=int(chosen["steps"]),
            learning_rate=chosen["learning_rate"],
        )


def test_every_action_by_its_probability_is_an_expectation() -> None:
    source = RandomToys(num_rows=3, num_latents=2, num_actions=3, actions="every")
    problem = source.build(0)
    drawn = RandomToys(num_rows=3, num_latents=2, num_actions=3).build(0)
    assert torch.equal(next(iter(problem.policy.prior_parameters())), next(iter(drawn.policy.prior_parameters())))
    assert problem.weights is not None
    assert problem.weights.reshape(3, 3).sum(1).tolist() == pytest.approx([1 / 3] * 3)
    assert problem.obs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and problem.action.tolist() == [0, 1, 2] * 3  # type: ignore[union-attr]
    # of a reward's offset nothing is left in the gradient, as the score's expectation is zero
    assert problem.exact is not None
    plain, offset = (once(PolicyGradient(reward_offset=c).pose(problem, problem.exact)) for c in (0.0, 5.0))
    assert float(plain.norm()) > 0.01
    assert torch.allclose(plain, offset, atol=1e-14)
    with pytest.raises(OptionError, match="rows of unequal weight"):
        GRPO().pose(problem, problem.exact)
    with pytest.raises(OptionError, match="drawn, or every where span is 1"):
        RandomToys(span=2, actions="every")
