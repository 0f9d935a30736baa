"""A density of each row's own: the amortisation gap against closed forms, and fits without amortisation."""

from collections.abc import Callable
from typing import cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from latentpg.errors import OptionError, ShapeError, SiteError
from latentpg.imitation import (
    Cloner,
    FitOptions,
    FitRows,
    PerDatum,
    VariationalBound,
    amortisation_gap,
    fit,
    fit_per_datum,
)
from latentpg.numerics.rng import seeded
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.programs import Categorical, draw_guide, drawing
from tests.imitation.small import Signs, gaussian, made_policy, observed, tabular, two_ways


def guide_of(policy: LinearGaussianPolicy, rows: FitRows) -> MultivariateNormal:
    with torch.no_grad():
        fn = draw_guide(policy, rows.obs, rows.action, num_particles=1).distributions["z"]
    return MultivariateNormal(fn.mean, torch.diag_embed(fn.variance))


def best_factorised(posterior: MultivariateNormal) -> MultivariateNormal:
    """Return the closest Gaussian with independent coordinates: the same mean, the precision's own diagonal."""
    precision = posterior.precision_matrix.diagonal(dim1=-2, dim2=-1)
    return MultivariateNormal(posterior.mean, torch.diag_embed(1 / precision))


def test_the_gap_is_the_divergence_of_two_gaussians() -> None:
    """One dimension, where the best density is the posterior: the gap is KL(guide || posterior), row by row."""
    policy, rows = gaussian(1)
    posterior = policy.posterior(observed(rows), rows.action)
    exact = kl_divergence(guide_of(policy, rows), posterior).detach()
    with drawing(Signs()):
        found = amortisation_gap(policy, rows, num_steps=200, learning_rate=0.1, num_particles=2, num_draws=2)
    assert found.gap.value == pytest.approx(float(exact.mean()), abs=1e-4)
    assert found.gap.value > 0.5
    assert found.optimised.value == pytest.approx(
        float(policy.log_pi(observed(rows), rows.action).detach().mean()), abs=1e-6
    )
    assert found.amortised.value == pytest.approx(
        float(policy.log_bound(observed(rows), rows.action).detach().mean()), abs=1e-9
    )


def test_in_more_dimensions_what_no_factorised_density_reaches_is_no_gap() -> None:
    policy, rows = gaussian(2)
    posterior = policy.posterior(observed(rows), rows.action)
    exact = kl_divergence(guide_of(policy, rows), posterior) - kl_divergence(best_factorised(posterior), posterior)
    with drawing(Signs()):
        found = amortisation_gap(policy, rows, num_steps=200, learning_rate=0.1, num_particles=4, num_draws=4)
    assert found.gap.value == pytest.approx(float(exact.detach().mean()), abs=1e-4)


def test_real_draws_find_the_same_densities() -> None:
    """The path's noise vanishes at the posterior, so that real draws end there too, to a hundredth."""
    policy, rows = gaussian(1)
    posterior = policy.posterior(observed(rows), rows.action)
    with seeded(0):
        local = fit_per_datum(policy, rows, num_steps=250, learning_rate=0.1, num_particles=4)
    assert torch.allclose(local.first["z"], posterior.mean, atol=1e-2)
    assert torch.allclose(local.second["z"], 0.5 * posterior.variance.log(), atol=1e-2)


def test_the_gap_of_a_guide_that_is_right_is_nothing() -> None:
    policy, rows = gaussian(1)
    with torch.no_grad():
        states = torch.arange(3)
        posterior = policy.posterior(states, torch.zeros(3, 2, dtype=torch.float64))
        scale = (-2 * policy.log_noise).exp()[:, None, None]
        policy.guide_weight.copy_(posterior.covariance_matrix @ policy.weight.transpose(-1, -2) * scale)
        policy.guide_bias.copy_(posterior.mean)
        policy.guide_log_scale.copy_(0.5 * posterior.variance.log())
    with seeded(1):
        found = amortisation_gap(policy, rows, num_steps=100, num_draws=8)
    assert abs(found.gap.value) < 1e-3
    assert "amortisation gap" in found.lines()[1] and "a density of each row's own" in found.lines()[0]


def test_a_table_finds_each_rows_posterior() -> None:
    """Score-function climbing of categories: within .05 of each exact posterior probability."""
    policy, rows = tabular(3, rows=6)
    posterior = policy.log_posterior()[observed(rows), rows.action].exp().detach()
    with seeded(2):
        local = fit_per_datum(policy, rows, num_steps=250, learning_rate=0.1, num_particles=32)
    assert float((local.first["z"].detach().softmax(-1) - posterior).abs().max()) < 0.05
    assert "z" not in local.second


def test_sites_of_both_kinds_have_a_density_each() -> None:
    policy, data = made_policy("two-level"), two_ways(episodes=2)
    rows = FitRows(data.obs, data.action, data.episode)
    part = torch.tensor([4, 0])
    with seeded(3):
        local = PerDatum(policy, rows)
        drawn = draw_guide(local.at(policy, part), data.obs[part], data.action[part], num_particles=5)
    assert local.first["mode"].shape == (rows.size, 2) and local.second["style"].shape == (rows.size, 1)
    logits = cast(Categorical, drawn.distributions["mode"]).logits
    assert torch.allclose(logits, local.first["mode"][[4, 0]].log_softmax(-1))
    assert {name: list(value.shape) for name, value in drawn.latents.items()} == {"mode": [5, 2], "style": [5, 2, 1]}


class Scalar(nn.Module):
    """A stock scalar Gaussian latent, in a program that runs as flattened rows."""

    flatten_particles = True

    def __init__(self, *, kind: str = "normal") -> None:
        super().__init__()
        self.kind, self.slope = kind, nn.Parameter(torch.tensor(1.0))

    def model(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        z = pyro.sample("z", self._site(obs))
        joined = torch.cat([obs, z.unsqueeze(-1)], -1)
        return pyro.sample("action", dist.Normal(self.slope * joined.sum(-1), 1.0), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", self._site(obs))

    def _site(self, obs: Tensor) -> TorchDistributionMixin:
        loc = obs[:, 0]
        return dist.Normal(loc, 1.0) if self.kind == "normal" else dist.Gamma(loc.exp(), 1.0)

    def prior_parameters(self) -> list[nn.Parameter]:
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        return [self.slope]

    def guide_parameters(self) -> list[nn.Parameter]:
        return []


def test_flattened_rows_find_their_own_densities() -> None:
    """Of z ~ N(s, 1) and a ~ N(s + z, 1) the posterior is N(a/2, 1/2), whatever place its row has in the batch."""
    policy = Scalar()
    rows = FitRows(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, -1.0, 3.0]), torch.arange(3))
    with seeded(4):
        local = fit_per_datum(policy, rows, num_steps=200, learning_rate=0.1, num_particles=4)
    assert local.first["z"].tolist() == pytest.approx([0.5, -0.5, 1.5], abs=1e-2)
    assert local.second["z"].exp().square().tolist() == pytest.approx([0.5] * 3, abs=1e-2)


def test_a_fit_without_amortisation_beats_a_guide_that_cannot_move() -> None:
    """Theta climbs by rows' own densities; the guide follows by regression on their draws."""
    found = {}
    options = FitOptions(
        num_epochs=80, batch_size=12, learning_rate=0.02, guide_learning_rate=0.05, valid_particles=256
    )
    for name in ("own", "frozen"):
        policy, rows = gaussian(1)
        own = PerDatum(policy, rows) if name == "own" else None
        if own is None:
            for parameter in policy.guide_parameters():
                parameter.requires_grad_(False)
        before = [p.detach().clone() for p in policy.guide_parameters()]
        fit(policy, rows, objective=VariationalBound(4), options=options, seed=0, per_datum=own)
        found[name] = float(policy.log_pi(observed(rows), rows.action).detach().mean())
        moved = [not torch.equal(a, b) for a, b in zip(before, policy.guide_parameters(), strict=True)]
        assert all(moved) if name == "own" else not any(moved)
    assert found["own"] > found["frozen"] + 0.1


def test_only_the_rows_of_a_minibatch_have_a_gradient() -> None:
    policy, rows = gaussian(1)
    local = PerDatum(policy, rows)
    part = torch.tensor([3, 7])
    some = rows.take(part)
    loss = VariationalBound().losses(local.at(policy, part), some.obs, some.action).model.sum()
    (gradient,) = torch.autograd.grad(loss, [local.first["z"]])
    assert gradient.flatten().nonzero().flatten().tolist() == [3, 7]


def test_the_guide_is_taught_even_where_nothing_else_teaches_it() -> None:
    policy, rows = gaussian(1)
    cloner = Cloner(policy, rows, objective=VariationalBound(), seed=0, per_datum=PerDatum(policy, rows))
    before = policy.guide_bias.detach().clone()
    assert "train/guide_loss" in cloner.update()
    assert not torch.equal(before, policy.guide_bias)


def with_gamma() -> object:
    return PerDatum(Scalar(kind="gamma"), FitRows(torch.ones(2, 1), torch.zeros(2), torch.arange(2)))


def on_other_rows() -> object:
    policy, rows = gaussian(1)
    view = PerDatum(policy, rows).at(policy, torch.tensor([0, 1]))
    return draw_guide(view, observed(rows)[:3], rows.action[:3], num_particles=2)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (with_gamma, SiteError, "has no density of its own here"),
        (on_other_rows, ShapeError, "the B=2 rows that this guide was made for"),
        (lambda: fit_per_datum(*gaussian(), num_steps=0), OptionError, "`num_steps`"),
        (lambda: fit_per_datum(*gaussian(), num_particles=0), OptionError, "`num_particles`"),
        (lambda: fit_per_datum(*gaussian(), learning_rate=0.0), OptionError, "`learning_rate`"),
    ],
)
def test_what_cannot_be_done_is_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()
