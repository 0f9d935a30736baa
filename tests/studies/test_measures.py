"""What a cell measures, on a problem small enough to know the answers."""

import copy
import itertools
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.errors import RecordedLatentError
from latentpg.estimators import Estimator, Exact, PosteriorIS, Prior, make_estimator
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import Interval
from latentpg.policies import MixturePolicy
from latentpg.programs import log_joint, score_prior, support
from latentpg.rollout import check_record
from latentpg.studies import Cell, Line, Problem
from latentpg.studies.catalogue import OF_ESTIMATES
from latentpg.studies.measures import likelihood_evaluations, measure_cell, once
from latentpg.studies.references import EnumeratedPosterior
from latentpg.studies.retained import RedrawnLatent
from latentpg.studies.targets import Gradient
from tests.studies.toys import ToySource
from tests.studies.toys import cell as cell_at


def exact_gradient(problem: Problem) -> Tensor:
    return gradient(problem, Exact())


def gradient(problem: Problem, estimator: Estimator) -> Tensor:
    return once(Gradient().pose(problem, estimator))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return ToySource().build(3)


def measure(problem: Problem, cell: Cell, *, num_replicates: int = 400, seed: int = 0) -> dict[str, Interval]:
    found = measure_cell(cell, Gradient(), problem, num_replicates=num_replicates, num_timings=4, seed=seed)
    assert all(measured.cell == cell for measured in found)
    return {measured.measure: measured.interval for measured in found}


def expected_gradient(problem: Problem, num_particles: int) -> Tensor:
    """Sum PosteriorIS with prior proposals over every tuple of particles: rows are independent, so row by row."""
    policy, rows = cast(MixturePolicy, problem.policy), len(problem.action)
    points = support(policy, problem.obs)
    with torch.no_grad():
        log_prior = score_prior(policy, problem.obs, points).log_prob
    size = len(log_prior)
    total = torch.zeros((), dtype=torch.float64)
    joint = log_joint(policy, problem.obs, problem.action, points)
    for chosen in itertools.product(range(size), repeat=num_particles):
        index = torch.tensor(chosen)
        chance = log_prior[index].sum(0).exp()
        value = (joint[index] - log_prior[index]).logsumexp(0)
        total = total + (chance * value).sum()
    parameters = [*policy.prior_parameters(), *policy.decoder_parameters()]
    return torch.cat([part.flatten() for part in torch.autograd.grad(total / rows, parameters)])


def test_the_reference_is_the_gradient_of_the_enumerated_marginal(problem: Problem) -> None:
    policy = cast(MixturePolicy, problem.policy)
    value = log_joint(policy, problem.obs, problem.action, support(policy, problem.obs)).logsumexp(0).mean()
    parameters = [*policy.prior_parameters(), *policy.decoder_parameters()]
    direct = torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters)])
    torch.testing.assert_close(exact_gradient(problem), direct)


@pytest.mark.parametrize("num_particles", [1, 2, 4])
def test_a_bias_is_that_of_the_enumerated_estimator(problem: Problem, num_particles: int) -> None:
    truth = float((expected_gradient(problem, num_particles) - exact_gradient(problem)).norm())
    bias = measure(problem, cell_at(Line("posterior-is", "prior"), num_particles))["bias"]
    assert bias.low < truth < bias.high
    assert bias.low > 0.5 * truth  # so that an interval as wide as the world would fail


@pytest.mark.parametrize("cell", [cell_at(Line("joint-score")), cell_at(Line("conditional-is", "guide"), 3)])
def test_an_unbiased_estimator_shows_no_bias(problem: Problem, cell: Cell) -> None:
    found = measure(problem, cell)
    assert found["bias"].low == 0
    assert found["bias"].high < 0.35 * float(exact_gradient(problem).norm())


def test_the_recorded_draw_alone_would_show_a_bias(problem: Problem) -> None:
    """Without drawing the recorded latent anew, the measure would answer another question: it must be seen to."""
    policy = problem.policy
    fixed = gradient(problem, make_estimator("joint-score"))
    error = float((fixed - exact_gradient(problem)).norm())
    redrawn = measure(problem, cell_at(Line("joint-score")))["bias"]
    assert error > redrawn.high
    assert problem.redraw is not None
    redrawn_each = RedrawnLatent(make_estimator("joint-score"), problem.redraw)
    assert redrawn_each.propose(policy, problem.obs, problem.action).retained


def test_redrawn_latents_have_the_law_of_the_posterior(problem: Problem) -> None:
    redraw = problem.redraw
    assert isinstance(redraw, EnumeratedPosterior)
    draws = torch.stack([redraw()["z"] for _ in range(4000)])
    posterior = redraw.log_posterior.exp()
    frequency = torch.stack([(draws == value).double().mean(0) for value in range(3)])
    assert float((frequency - posterior).abs().max()) < 5 * 0.5 / 4000**0.5


def test_an_exact_estimator_has_no_noise_and_says_so(problem: Problem) -> None:
    for name in ("exact", "quadrature"):
        found = measure_cell(cell_at(Line(name)), Gradient(), problem, num_replicates=10, num_timings=4, seed=0)
        for measured in found:
            if measured.measure != "seconds":
                assert measured.exact, measured.measure
                assert measured.interval.low == measured.interval.value == measured.interval.high
        values = {measured.measure: measured.interval.value for measured in found}
        assert values["bias"] <= 1e-12
        assert (values["variance"], values["noise_floor"]) == (0, 0)
        assert values["cosine"] == pytest.approx(1)


def test_measures_agree_with_each_other(problem: Problem) -> None:
    found = measure(problem, cell_at(Line("posterior-is", "prior"), 4), num_replicates=300)
    assert set(found) == set(OF_ESTIMATES)
    size = 300
    assert found["noise_floor"].value ** 2 * size == pytest.approx(found["variance"].value)
    # mean |g - g*|² = |mean - g*|² + (R - 1) / R · variance, and the bias is that length less the noise floor, squared
    squared = found["bias"].value ** 2 + found["noise_floor"].value ** 2
    assert found["mse"].value == pytest.approx(squared + found["variance"].value * (size - 1) / size)
    assert 1 <= found["ess"].low <= found["ess"].high <= 4
    assert -1 <= found["cosine"].low <= found["cosine"].high <= 1
    assert 0 < found["seconds"].low <= found["seconds"].value <= found["seconds"].high


def test_a_cell_is_the_same_whatever_ran_before_it(problem: Problem) -> None:
    cell = cell_at(Line("conditional-is", "mixture"), 2)
    first = measure(problem, cell, num_replicates=20, seed=5)
    torch.rand(1000)
    again = measure(problem, cell, num_replicates=20, seed=5)
    other = measure(problem, cell, num_replicates=20, seed=6)
    same = set(OF_ESTIMATES) - {"seconds"}
    assert {name: first[name] for name in same} == {name: again[name] for name in same}
    assert first["mse"] != other["mse"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("exact", {}),
        ("quadrature", {}),
        ("joint-score", {}),
        ("posterior-is", {"num_particles": 5, "proposal": "mixture"}),
        ("conditional-is", {"num_particles": 5}),
        ("split-is", {"num_particles": 2, "num_value_particles": 3}),
        ("elbo", {"num_particles": 5}),
        ("wake-sleep", {"num_particles": 5}),
        ("markovian-is", {"num_particles": 2, "num_sweeps": 3}),
    ],
)
def test_likelihood_evaluations_are_those_that_happen(problem: Problem, name: str, options: dict[str, object]) -> None:
    """A hook on the decoder's head counts the actions that are scored, where no particle is looked up in a table."""
    estimator = make_estimator(name, options)
    problem = replace(problem, policy=copy.deepcopy(problem.policy))
    policy = cast(MixturePolicy, problem.policy)
    policy.categories = {}
    counted = 0

    def count(module: nn.Module, arguments: object, output: Distribution) -> Distribution:
        def log_prob(value: Tensor) -> Tensor:
            nonlocal counted
            scored = score(value)
            counted += scored.numel()
            return scored

        score, output.log_prob = output.log_prob, log_prob  # type: ignore[method-assign]
        return output

    hook = policy.decoder.head.register_forward_hook(count)
    try:
        gradient(problem, estimator)
    finally:
        hook.remove()
    with seeded(0):
        claimed = likelihood_evaluations(estimator, problem)
    assert counted == claimed * len(problem.action)


def test_a_record_that_no_longer_fits_is_refused(problem: Problem) -> None:
    assert problem.latents is not None and isinstance(problem.obs, Tensor)
    with torch.no_grad():
        joint = log_joint(problem.policy, problem.obs, problem.action, {"z": problem.latents["z"].unsqueeze(0)})[0]
    assert check_record(problem.policy, problem.obs, problem.action, problem.latents, joint) == 0
    with pytest.raises(RecordedLatentError, match="no longer what it was"):
        check_record(problem.policy, problem.obs.flip(0), problem.action, problem.latents, joint)
    with pytest.raises(RecordedLatentError, match="row 2"):
        broken = joint.clone()
        broken[2] = torch.nan
        check_record(problem.policy, problem.obs, problem.action, problem.latents, broken)


def test_gradients_are_of_the_mean_over_rows(problem: Problem) -> None:
    assert isinstance(problem.obs, Tensor)
    halves = [Problem(problem.policy, problem.obs[part], problem.action[part]) for part in (slice(0, 3), slice(3, 6))]
    mean = torch.stack([exact_gradient(half) for half in halves]).mean(0)
    torch.testing.assert_close(mean, exact_gradient(problem))
    with seeded(0):
        assert gradient(problem, PosteriorIS(2, Prior())).shape == exact_gradient(problem).shape


def test_an_estimator_that_does_not_keep_the_recorded_latent_is_not_shown_it(problem: Problem) -> None:
    """A chain that began at the one latent on record would measure that record's luck."""
    assert problem.latents is not None
    line = Line("markovian-is", "guide", {"num_sweeps": 0})
    other = replace(problem, latents={"z": (problem.latents["z"] + 1) % 3})
    one, two = (measure(each, cell_at(line, 2), num_replicates=20) for each in (problem, other))
    assert one["mse"] == two["mse"]
