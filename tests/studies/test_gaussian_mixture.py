"""The twenty-component mixture: its densities, its measures and the source of its rows."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import Exact, WakeSleep
from latentpg.estimators.guides import Sleep, Wake
from latentpg.numerics.rng import seeded
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.programs import log_joint, score_guide, support
from latentpg.studies.gaussian_mixture import (
    STARTS,
    GaussianMixtureData,
    MixtureModel,
    draw_points,
    endless_batches,
    guide_distance,
    guide_distance_to_model,
    mixture_metrics,
    start_logits,
    true_weights,
    weight_distance,
)
from latentpg.studies.problem import Source
from latentpg.studies.references import EnumeratedPosterior
from latentpg.studies.training import fit


def log_joint_by_hand(weights: list[float], point: float) -> list[float]:
    return [
        math.log(weight) - 0.5 * ((point - 10 * c) / 5) ** 2 - math.log(5 * math.sqrt(2 * math.pi))
        for c, weight in enumerate(weights)
    ]


def posterior_by_hand(weights: list[float], point: float) -> list[float]:
    joint = [math.exp(value) for value in log_joint_by_hand(weights, point)]
    return [value / sum(joint) for value in joint]


def paper_weights() -> list[float]:
    return [(c + 5) / sum(range(5, 25)) for c in range(20)]


def start_weights() -> list[float]:
    unnormalized = [math.exp(0.5 * 2 * (19 - c)) for c in range(20)]
    return [weight / sum(unnormalized) for weight in unnormalized]


def as_double(points: list[float]) -> tuple[Tensor, Tensor]:
    action = torch.tensor(points, dtype=torch.float64)
    return torch.zeros(len(points), 1, dtype=torch.float64), action


@pytest.mark.parametrize(("start", "weights"), [("reversed", start_weights()), ("true", paper_weights())])
def test_the_model_is_the_papers(start: str, weights: list[float]) -> None:
    policy = MixtureModel(start=start).double()
    obs, action = as_double([-3.0, 17.5, 190.0])
    points = support(policy, obs)
    expected = torch.tensor([log_joint_by_hand(weights, float(point)) for point in action], dtype=torch.float64).T
    torch.testing.assert_close(log_joint(policy, obs, action, points), expected, rtol=1e-6, atol=1e-6)
    assert [tuple(parameter.shape) for parameter in policy.guide_parameters()] == [
        *((16, 1), (16,), (16, 16), (16,), (20, 16), (20,)),
    ]
    assert policy.decoder_parameters() == []
    by_guide = score_guide(policy, obs, action, points).log_prob.exp()
    torch.testing.assert_close(by_guide, policy.guide_net(action.unsqueeze(-1)).softmax(-1).T)


def test_the_starts() -> None:
    assert start_logits("reversed", 20).tolist() == [2.0 * c for c in reversed(range(20))]
    assert start_logits("ones", 4).tolist() == [1.0] * 4
    torch.testing.assert_close(MixtureModel(start="true").weights(), true_weights())
    assert true_weights().tolist() == pytest.approx(paper_weights())
    assert {start: tuple(start_logits(start, 5).shape) for start in STARTS} == dict.fromkeys(STARTS, (5,))


def test_data_come_from_the_true_weights() -> None:
    """Hoeffding, at odds of 1e-9: the mean of n numbers in a range r is within r sqrt(log(2e9) / 2n) of its own."""
    obs, action = draw_points(200_000)
    assert obs.shape == (200_000, 1) and action.shape == (200_000,)
    nearest = (action / 10).round().clamp(0, 19)  # errors of rounding nearly cancel: bounded below by enumeration
    chance = torch.tensor([0.5 * (1 + math.erf((d + 0.5) * 10 / 5 / math.sqrt(2))) for d in range(-21, 21)])
    cell = chance.diff().double()  # P(nearest centre is d away) for d = -20..20
    expected = 0.0
    for c, weight in enumerate(paper_weights()):
        expected += weight * sum(float(cell[d + 20]) * min(max(c + d, 0), 19) for d in range(-20, 21))
    assert abs(float(nearest.mean()) - expected) < 19 * math.sqrt(math.log(2e9) / 400_000)


def test_redrawn_latents_follow_the_posterior_exactly() -> None:
    policy = MixtureModel(num_components=4).double()
    obs, action = as_double([3.0, 14.0, 31.0])

    def program(row: Tensor) -> Tensor:
        return EnumeratedPosterior.of(policy, obs[row], action[row])()["z"]

    every = enumerate_draws(program, num_rows=3)
    law = every.expectation(torch.nn.functional.one_hot(every.result, 4).double())
    unnormalized = [math.exp(3 - c) for c in range(4)]
    weights = [weight / sum(unnormalized) for weight in unnormalized]
    expected = torch.tensor([posterior_by_hand(weights, float(point)) for point in action], dtype=torch.float64)
    torch.testing.assert_close(law, expected, rtol=1e-10, atol=1e-12)


def test_the_measures_against_sums_written_out() -> None:
    policy = MixtureModel().double()
    with torch.no_grad():
        for parameter in policy.guide_parameters():
            parameter.zero_()  # a uniform guide
    _, action = as_double([0.0, 55.0])

    def distance(weights: list[float]) -> float:
        rows = [posterior_by_hand(weights, float(point)) for point in action]
        return sum(math.sqrt(sum((0.05 - value) ** 2 for value in row)) for row in rows) / len(rows)

    between = math.sqrt(sum((a - b) ** 2 for a, b in zip(start_weights(), paper_weights(), strict=True)))
    assert float(weight_distance(policy)) == pytest.approx(between, rel=1e-6)
    assert float(guide_distance(policy, action)) == pytest.approx(distance(paper_weights()), rel=1e-6)
    assert float(guide_distance_to_model(policy, action)) == pytest.approx(distance(start_weights()), rel=1e-6)
    assert [float(value) for value in mixture_metrics(policy, action).values()] == pytest.approx(
        [between, distance(paper_weights()), distance(start_weights())], rel=1e-6
    )
    assert float(weight_distance(MixtureModel(start="true"))) < 1e-7


def test_the_source_builds_one_problem_a_seed() -> None:
    source = GaussianMixtureData(num_rows=7, num_components=5)
    assert isinstance(source, Source)
    first, again, other = source.build(3), source.build(3), source.build(4)
    assert torch.equal(first.action, again.action) and not torch.equal(first.action, other.action)
    assert isinstance(first.policy, MixtureModel) and isinstance(again.policy, MixtureModel)
    for ours, theirs in zip(first.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert first.latents is None and first.exact == Exact() and first.redraw is not None
    assert first.redraw()["z"].shape == (7,)
    measured = mixture_metrics(first.policy, first.action)
    assert first.facts == {name.replace("_", " "): float(value) for name, value in measured.items()}
    assert source.describe() == "7 points of a 5-component Gaussian mixture"
    # more rows are other rows of the same policy
    larger = replace(source, num_rows=9).build(3).policy
    assert isinstance(larger, MixtureModel) and torch.equal(
        larger.guide_net(first.obs), first.policy.guide_net(first.obs)
    )


def test_the_source_trains_by_enumeration_when_asked() -> None:
    source = GaussianMixtureData(num_rows=50, num_components=4, learning_rate=0.02)
    raw, trained = source.build(0).facts, replace(source, num_steps=60).build(0).facts
    assert all(float(trained[name]) < float(raw[name]) for name in raw)


def test_building_leaves_the_ambient_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    GaussianMixtureData(num_rows=3, num_steps=1).build(0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"num_rows": 0}, "num_rows"), ({"num_components": 1}, "num_components"), ({"num_steps": -1}, "num_steps")],
)
def test_counts_are_checked(options: dict[str, int], name: str) -> None:
    with pytest.raises(OptionError, match=rf"`{name}`"):
        GaussianMixtureData(**options)  # type: ignore[arg-type]


def test_an_unknown_start_is_refused_with_a_suggestion() -> None:
    with pytest.raises(OptionError, match="did you mean reversed"):
        GaussianMixtureData(start="reverse")
    with pytest.raises(OptionError, match="num_components"):
        MixtureModel(num_components=1)


def test_dreams_train_the_guide_without_observations() -> None:
    with seeded(0):
        policy = MixtureModel(num_components=3)
        before = [parameter.detach().clone() for parameter in policy.guide_parameters()]
        fit(
            policy,
            endless_batches(20, 3),
            estimator=WakeSleep(2),
            objective=Sleep(2),
            num_steps=2,
            learning_rate=0.01,
            record_every=2,
            record=dict[str, float],
        )
    assert not any(torch.equal(a, b) for a, b in zip(before, policy.guide_parameters(), strict=True))


@pytest.mark.slow
def test_wake_sleep_improves_with_particles() -> None:
    """Ten thousand steps from the reversed logits: at K = 2 the guide collapses, at K = 20 the weights are found."""
    found = {}
    for num_particles in (2, 20):
        with seeded(0):
            _, test = draw_points(500)
            policy = MixtureModel()
            fit(
                policy,
                endless_batches(),
                estimator=WakeSleep(num_particles),
                objective=Wake(num_particles),
                num_steps=10_000,
                learning_rate=0.005,
                record_every=10_000,
                record=dict[str, float],
            )
            found[num_particles] = mixture_metrics(policy, test)
    assert all(found[20][name] < 0.5 * found[2][name] for name in found[2])
