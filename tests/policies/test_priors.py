"""Priors: the mixture's density and moments written out, and the choices that build one."""

import math

import pytest
import torch
from torch import Tensor, nn

from latentpg import seeded
from latentpg.errors import OptionError, ShapeError
from latentpg.policies.priors import (
    CodeLatent,
    CodePrior,
    GaussianLatent,
    GaussianPrior,
    MixturePrior,
    NormalMixture,
    StandardPrior,
)
from latentpg.programs import Categorical, DiagNormal

EXACT = 1e-12


def some_mixture(*batch: int) -> NormalMixture:
    """Three components in two dimensions, of their own in every row."""
    logits = torch.randn(*batch, 3, dtype=torch.float64)
    loc, log_scale = (torch.randn(*batch, 3, 2, dtype=torch.float64) for _ in range(2))
    return NormalMixture(logits, loc, 0.3 * log_scale)


def written_out(mixture: NormalMixture, row: int, value: Tensor) -> float:
    total = 0.0
    for m in range(3):
        density = float(mixture.logits[row].softmax(-1)[m])
        for i in range(2):
            mean, std = float(mixture.loc[row, m, i]), math.exp(float(mixture.log_scale[row, m, i]))
            density *= math.exp(-0.5 * ((float(value[i]) - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        total += density
    return math.log(total)


def test_the_mixtures_density_is_the_one_written_out() -> None:
    with seeded(0):
        mixture, value = some_mixture(4), torch.randn(5, 4, 2, dtype=torch.float64)
    wanted = torch.tensor(
        [[written_out(mixture, b, value[k, b]) for b in range(4)] for k in range(5)], dtype=torch.float64
    )
    torch.testing.assert_close(mixture.log_prob(value), wanted, atol=EXACT, rtol=EXACT)


def test_the_mixtures_density_is_torchs_own() -> None:
    with seeded(1):
        mixture, value = some_mixture(4), torch.randn(5, 4, 2, dtype=torch.float64)
    parts = torch.distributions.Independent(torch.distributions.Normal(mixture.loc, mixture.log_scale.exp()), 1)
    weights = torch.distributions.Categorical(logits=mixture.logits)
    torch_one = torch.distributions.MixtureSameFamily(weights, parts)
    torch.testing.assert_close(mixture.log_prob(value), torch_one.log_prob(value), atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(mixture.mean, torch_one.mean, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(mixture.variance, torch_one.variance, atol=1e-10, rtol=1e-10)


def test_draws_have_the_mixtures_moments_and_come_from_the_right_components() -> None:
    """Components far apart: the mean of a row's draws is within six standard errors of the mean written out."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64))
    loc = torch.tensor([[-10.0, 0.0], [0.0, 20.0], [30.0, 5.0]], dtype=torch.float64)
    scale = torch.tensor([[1.0, 2.0], [0.5, 1.0], [2.0, 0.1]], dtype=torch.float64)
    mixture, number = NormalMixture(logits, loc, scale.log()), 20_000
    assert mixture.batch_shape == (2,)
    with seeded(2):
        drawn = mixture.sample((number,))
    assert drawn.shape == (number, 2, 2)
    error = 6 / math.sqrt(number)
    weights = logits.exp()
    for row in range(2):
        nearest = torch.cdist(drawn[:, row], loc).argmin(-1)
        share = nearest.bincount(minlength=3) / number
        assert (share - weights[row]).abs().max() < 0.5 * error
        for m in range(3):  # components do not overlap, so that draws tell theirs
            mine = drawn[nearest == m, row]
            spread = scale[m] * 6 / math.sqrt(len(mine))
            assert bool(((mine.mean(0) - loc[m]).abs() < spread).all())
            assert bool(((mine.std(0) - scale[m]).abs() < spread).all())
    assert bool(((drawn.mean(0) - mixture.mean).abs() < error * mixture.variance.sqrt()).all())
    wanted = (weights.unsqueeze(-1) * loc).sum(1)
    torch.testing.assert_close(mixture.mean, wanted, atol=EXACT, rtol=EXACT)
    second = (weights.unsqueeze(-1) * (scale.square() + loc.square())).sum(1)
    torch.testing.assert_close(mixture.variance, second - wanted.square(), atol=1e-9, rtol=1e-9)


def test_one_component_is_a_gaussian() -> None:
    with seeded(3):
        loc, log_scale, value = (torch.randn(4, 2, dtype=torch.float64) for _ in range(3))
    mixture = NormalMixture(torch.zeros(4, 1, dtype=torch.float64), loc.unsqueeze(1), log_scale.unsqueeze(1))
    gaussian = DiagNormal(loc, log_scale)
    torch.testing.assert_close(mixture.log_prob(value), gaussian.log_prob(value), atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(mixture.variance, gaussian.variance, atol=EXACT, rtol=EXACT)


def test_no_path_leads_through_a_mixtures_draw() -> None:
    mixture = NormalMixture(
        torch.zeros(1, 3, requires_grad=True), torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2)
    )
    assert not mixture.has_rsample and not mixture.sample().requires_grad
    with pytest.raises(NotImplementedError):
        mixture.rsample()


def test_each_coordinate_has_its_own_marginal() -> None:
    """Written out for two components in two dimensions; the marginals of one component alone add up to it."""
    loc, log_scale = torch.tensor([[0.0, 1.0], [2.0, -1.0]]), torch.tensor([[0.0, -1.0], [0.5, 0.0]])
    mixture = NormalMixture(torch.tensor([0.25, 0.75]).log(), loc, log_scale)
    value = torch.tensor([[0.3, 0.2], [1.0, -2.0]])
    each = torch.distributions.Normal(loc, log_scale.exp()).log_prob(value.unsqueeze(1)).exp()
    expected = (0.25 * each[:, 0] + 0.75 * each[:, 1]).log()
    assert torch.allclose(mixture.coordinate_log_prob(value), expected, atol=1e-6)
    one = NormalMixture(torch.zeros(1), loc[:1], log_scale[:1])
    assert torch.allclose(one.coordinate_log_prob(value).sum(-1), one.log_prob(value), atol=1e-6)


def test_responsibilities_are_bayes_rule() -> None:
    with seeded(4):
        mixture, value = some_mixture(4), torch.randn(4, 2, dtype=torch.float64)
    found = mixture.responsibilities(value)
    parts = [DiagNormal(mixture.loc[:, m], mixture.log_scale[:, m]).log_prob(value).exp() for m in range(3)]
    joint = mixture.logits.softmax(-1) * torch.stack(parts, -1)
    torch.testing.assert_close(found, joint / joint.sum(-1, keepdim=True), atol=EXACT, rtol=EXACT)


def test_expanding_a_mixture_keeps_its_density() -> None:
    with seeded(5):
        mixture, value = some_mixture(4), torch.randn(7, 4, 2, dtype=torch.float64)
    larger = mixture.expand(torch.Size([7, 4]))
    assert larger.batch_shape == (7, 4) and larger.sample().shape == (7, 4, 2)
    torch.testing.assert_close(larger.log_prob(value), mixture.log_prob(value), atol=EXACT, rtol=EXACT)
    assert larger.mean.shape == (7, 4, 2)


@pytest.mark.production
def test_parts_of_a_mixture_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[\.\.\., M\], \[\.\.\., M, Z\] and \[\.\.\., M, Z\]"):
        NormalMixture(torch.zeros(2), torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="NormalMixture"):
        NormalMixture(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 1))


# ------------------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ("latent", "kind"),
    [
        (GaussianLatent(2, "standard"), StandardPrior),
        (GaussianLatent(2, "learned"), GaussianPrior),
        (GaussianLatent(2, "mixture", 5), MixturePrior),
        (CodeLatent(5), CodePrior),
    ],
)
def test_a_latent_builds_its_prior_with_one_distribution_a_row(latent: GaussianLatent | CodeLatent, kind: type) -> None:
    prior = latent.build_prior(3, (4,), nn.Tanh)
    assert type(prior) is kind
    p = prior(torch.randn(6, 3))
    assert p.batch_shape == (6,)
    assert p.event_shape == (() if isinstance(latent, CodeLatent) else (2,))
    q = latent.guide(torch.zeros(6, latent.num_guide_parameters))
    assert isinstance(q, Categorical if isinstance(latent, CodeLatent) else DiagNormal)
    assert (q.batch_shape, q.event_shape) == (p.batch_shape, p.event_shape)
    assert bool(list(prior.parameters())) == (kind is not StandardPrior)


def test_the_standard_prior_is_standard() -> None:
    prior = StandardPrior(2)(torch.randn(3, 4))
    assert isinstance(prior, DiagNormal)
    assert bool((prior.mean == 0).all()) and bool((prior.variance == 1).all())


def test_placed_components_weigh_the_same_in_every_state() -> None:
    prior = MixturePrior(3, 2, 4, (5,), nn.Tanh)
    loc, log_scale = torch.randn(4, 2), torch.randn(4, 2)
    assert not torch.equal(prior(torch.randn(6, 3)).weights, torch.full((6, 4), 0.25))
    prior.place(loc, log_scale)
    found = prior(torch.randn(6, 3))
    assert torch.equal(found.weights, torch.full((6, 4), 0.25))
    assert torch.equal(found.loc, loc) and torch.equal(found.log_scale, log_scale)
    assert all(parameter.requires_grad for parameter in prior.parameters())


@pytest.mark.production
def test_components_of_another_number_are_not_placed() -> None:
    with pytest.raises(ShapeError, match=r"\[M, Z\] = \[4, 2\] each"):
        MixturePrior(3, 2, 4, (5,), nn.Tanh).place(torch.zeros(5, 2), torch.zeros(5, 2))


@pytest.mark.production
def test_a_latent_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="`prior`"):
        GaussianLatent(prior="laplace")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="`size`"):
        GaussianLatent(0)
    with pytest.raises(OptionError, match="`num_components`"):
        GaussianLatent(num_components=0)
    with pytest.raises(OptionError, match="`num_codes`"):
        CodeLatent(0)
