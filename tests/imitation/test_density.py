"""The Gaussian mixture: a density, a policy with nothing to observe, and EM's textbook case."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import Exact
from latentpg.imitation import (
    FitOptions,
    GaussianMixture,
    MaximumLikelihood,
    em_step,
    fit,
    fit_em,
    held_out,
    maximize_mixture,
    mixture_log_joint,
    point_rows,
)
from latentpg.numerics.rng import seeded
from latentpg.programs import act, draw_guide


def three_clouds(number: int = 120, *, seed: int = 0) -> Tensor:
    with seeded(seed):
        centre = torch.tensor([[-3.0, 0.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
        return centre[torch.arange(number) % 3] + 0.5 * torch.randn(number, 2, dtype=torch.float64)


def some_mixture(covariance: str = "full") -> GaussianMixture:
    with seeded(1):
        mixture = GaussianMixture(torch.randn(3, 2, dtype=torch.float64), covariance=covariance)
        with torch.no_grad():
            for parameter in mixture.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return mixture


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_it_is_the_density_it_says(covariance: str) -> None:
    mixture, points = some_mixture(covariance), three_clouds(12)
    expected = MixtureSameFamily(
        Categorical(mixture.weights()), MultivariateNormal(mixture.loc, scale_tril=mixture.scale_tril())
    ).log_prob(points)
    rows = point_rows(points)
    assert torch.allclose(mixture.log_pi(rows.obs, points), expected)
    particles = Exact().propose(mixture, rows.obs, points)
    assert torch.allclose(Exact().estimate(mixture, rows.obs, points, particles).log_prob, expected)
    assert torch.allclose(held_out(mixture, rows).likelihood.log_prob, expected.detach())
    assert act(mixture, rows.obs).action.shape == (12, 2)


def test_its_guide_is_the_posterior() -> None:
    mixture, points = some_mixture(), three_clouds(5)
    rows = point_rows(points)
    drawn = draw_guide(mixture, rows.obs, points, num_particles=4)
    joint = mixture_log_joint(points, mixture.logits.log_softmax(0), mixture.loc, mixture.scale_tril()).detach()
    expected = joint.log_softmax(0).gather(0, drawn.latents["z"])
    assert torch.allclose(drawn.log_prob, expected) and not drawn.log_prob.requires_grad


def test_the_m_step_is_arithmetic() -> None:
    """Points 0, 1, 4 with shares (1, 1/2, 0) and (0, 1/2, 1): means 1/3 and 3, variances 2/9 and 2."""
    points = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    share = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]], dtype=torch.float64)
    for covariance in ("full", "diagonal"):
        weight, loc, spread = maximize_mixture(points, share, torch.zeros(2, 1).double(), covariance=covariance)
        assert weight.tolist() == pytest.approx([0.5, 0.5])
        assert loc.flatten().tolist() == pytest.approx([1 / 3, 3.0])
        assert spread.flatten().tolist() == pytest.approx([2 / 9, 2.0])


def test_the_likelihood_never_falls_over_a_thousand_mixtures() -> None:
    """All at once: 1,000 random starts of 3 components on 1,000 random sets of 12 points, 15 closed EM steps each."""
    with seeded(2):
        points = torch.randn(1000, 12, 2, dtype=torch.float64) * (3 * torch.rand(1000, 1, 1, dtype=torch.float64))
        loc = torch.randn(1000, 3, 2, dtype=torch.float64)
        log_weight = torch.randn(1000, 3, dtype=torch.float64).log_softmax(-1)
    tril = torch.eye(2, dtype=torch.float64).expand(1000, 3, 2, 2)
    for covariance in ("full", "diagonal"):
        w, m, t, last = log_weight, loc, tril, None
        for _ in range(15):
            joint = mixture_log_joint(points, w, m, t)
            found = joint.logsumexp(-2).mean(-1)
            assert last is None or bool((found >= last - 1e-9).all())
            last = found
            weight, m, spread = maximize_mixture(points, joint.softmax(-2), m, covariance=covariance, floor=0.05)
            w, t = weight.clamp_min(1e-300).log(), torch.linalg.cholesky(spread)
        begun = mixture_log_joint(points, log_weight, loc, tril).logsumexp(-2).mean(-1)
        assert last is not None and bool((last > begun).all())


def test_the_floor_is_the_maximum_under_the_floor() -> None:
    """No other covariance with eigenvalues of at least the floor's square does better: 2,000 of them, near and far."""
    with seeded(3):
        points = torch.randn(6, 2, dtype=torch.float64) * torch.tensor([1.0, 0.01], dtype=torch.float64)
        turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64)).Q
    points, floor = points @ turn, 0.2
    share = torch.ones(1, 6, dtype=torch.float64)
    weight, loc, spread = maximize_mixture(points, share, torch.zeros(1, 2).double(), floor=floor)
    values = torch.linalg.eigvalsh(spread)[0]
    assert float(values[0]) == pytest.approx(floor**2) and float(values[1]) > 2 * floor**2

    def expected(covariance: Tensor) -> Tensor:
        many = len(covariance)
        where = points.expand(many, 6, 2), weight.log().expand(many, 1), loc.expand(many, 1, 2)
        return mixture_log_joint(*where, torch.linalg.cholesky(covariance).unsqueeze(1)).mean((-1, -2))

    with seeded(4):
        size = torch.cat([torch.full((1000, 1, 1), 0.05), torch.full((1000, 1, 1), 2.0)]).double()
        other = spread + size * torch.randn(2000, 2, 2, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(0.5 * (other + other.transpose(-1, -2)))
    other = (vectors * values.clamp_min(floor**2).unsqueeze(-2)) @ vectors.transpose(-1, -2)
    assert float(expected(other).max()) <= float(expected(spread).max()) + 1e-12


def test_a_component_without_points_stays_where_it_is() -> None:
    mixture = GaussianMixture(torch.tensor([[0.0], [1e6]], dtype=torch.float64))
    points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = fit_em(mixture, point_rows(points))
    assert mixture.loc.flatten().tolist() == [0.0, 1e6]
    assert float(mixture.log_diagonal.detach()[1]) == 0.0  # and as wide as it was
    assert float(mixture.weights().detach()[1]) == pytest.approx(0.0, abs=1e-300)
    assert math.isfinite(found.log_prob)
    assert found.log_prob == pytest.approx(-0.5 * math.log(2 * math.pi) - 0.5)


def test_gradients_and_em_come_to_the_same_maximum() -> None:
    rows = point_rows(three_clouds(60))
    with seeded(5):
        start = GaussianMixture.from_points(rows.action, num_components=3)
    by_em = fit_em(start, rows, num_steps=200, tolerance=1e-10)
    with seeded(5):
        other = GaussianMixture.from_points(rows.action, num_components=3)
    options = FitOptions(num_epochs=250, batch_size=60, learning_rate=0.1, evaluate_every=50)
    by_gradient = fit(other, rows, objective=MaximumLikelihood(), options=options, seed=0)
    assert by_gradient.best == pytest.approx(by_em.log_prob, abs=1e-3)
    assert torch.allclose(other.loc.sort(0).values, start.loc.sort(0).values, atol=0.02)
    assert em_step(other, rows).gain < 1e-3


def test_starts_are_points_far_from_each_other() -> None:
    """Two tight clouds of 50: two starts of the same one have a chance of less than 1e-6 a seed."""
    with seeded(6):
        points = torch.cat([torch.randn(50, 2), 1e5 + torch.randn(50, 2)]).double()
    for seed in range(20):
        with seeded(seed):
            loc = GaussianMixture.from_points(points, num_components=2).loc.detach()
        assert float((loc[0] - loc[1]).norm()) > 1e4
    with seeded(7):
        same = GaussianMixture.from_points(torch.zeros(4, 1, dtype=torch.float64), num_components=3, floor=0.1)
    assert float(same.log_diagonal.detach().max()) == pytest.approx(math.log(0.1))


@pytest.mark.production
@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: GaussianMixture(torch.zeros(3)), ShapeError, "`loc`"),
        (lambda: GaussianMixture(torch.zeros(3, 1), covariance="tied"), OptionError, "`covariance`"),
        (lambda: GaussianMixture(torch.zeros(3, 1), floor=0.0), OptionError, "`floor`"),
        (lambda: GaussianMixture.from_points(torch.zeros(3, 1), num_components=4), OptionError, "`num_components`"),
        (lambda: GaussianMixture(torch.zeros(3, 1)).guide(torch.zeros(2, 1), None), ShapeError, "`action`"),
    ],
)
def test_choices_out_of_range_are_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()
