"""The evidence lower bound and IWAE's as objectives: values and gradients exact, alterations off until asked for."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from latentpg.errors import EstimatorError, OptionError
from latentpg.estimators.guides import VIMCO, DoublyReparameterized
from latentpg.imitation import ImportanceBound, VariationalBound, guide_terms, unit_kl
from latentpg.imitation.bounds import floored
from latentpg.numerics.rng import seeded
from latentpg.programs import DiagNormal, conditionals, draw_guide, drawing, model_parameters
from latentpg.programs.distributions import MultiBernoulli
from tests.imitation.small import Given, Signs, close, gaussian, gradients, made_policy, observed, tabular, two_ways


@pytest.mark.parametrize("kl", ["closed-form", "sampled"])
def test_the_bound_and_its_gradient_are_those_of_the_closed_form(kl: str) -> None:
    """A linear-Gaussian policy and draws that are exact for quadratics: no sampling is left."""
    policy, rows = gaussian(2)
    parameters = list(policy.parameters())
    exact = policy.log_bound(observed(rows), rows.action)
    with drawing(Signs()):
        found = VariationalBound(4, kl=kl).losses(policy, rows.obs, rows.action)
    assert torch.allclose(-found.model, exact, atol=1e-10)
    assert torch.allclose(found.info["log_prob"], exact, atol=1e-10)
    assert close(gradients(-found.model.mean(), parameters), gradients(exact.mean(), parameters))
    assert found.guide is found.model


@pytest.mark.parametrize(("size", "kl"), [(1, "closed-form"), (2, "closed-form"), (2, "sampled")])
def test_a_discrete_latent_has_the_right_gradient_in_expectation(size: int, kl: str) -> None:
    """Summed over every tuple of the guide's draws, which is the expectation."""
    policy, rows = tabular(3, rows=4)
    parameters = list(policy.parameters())
    log_guide = policy.log_guide()[observed(rows), rows.action]
    joint = policy.log_joint()[observed(rows), :, rows.action]
    exact = (log_guide.exp() * (joint - log_guide)).sum(-1)
    total = torch.zeros((), dtype=torch.float64)
    for chosen in itertools.product(range(3), repeat=size):
        z = torch.tensor(chosen).unsqueeze(1).expand(size, rows.size)
        share = log_guide.T[list(chosen)].sum(0).exp().detach()
        with drawing(Given(z=z)):
            found = VariationalBound(size, kl=kl).losses(policy, rows.obs, rows.action)
        total = total + (share * found.model).sum()
    assert float(total.detach()) == pytest.approx(-float(exact.detach().sum()))
    assert close(gradients(-total, parameters), gradients(exact.sum(), parameters))


def test_a_mode_and_a_style_have_the_right_gradient_together() -> None:
    """At a fixed noise of the style the sum over modes is the exact expectation, the divergence of each apart."""
    policy, data = made_policy("two-level"), two_ways(episodes=2)
    obs, action = data.obs, data.action
    parameters = list(policy.parameters())
    with seeded(3):
        noise = torch.randn(1, len(obs), 1, dtype=torch.float64)
    total, exact = torch.zeros(()), torch.zeros(())
    for mode in range(2):
        z = torch.full((1, len(obs)), mode)
        with drawing(Given(mode=z, style=noise)):
            drawn = draw_guide(policy, obs, action, num_particles=1, pathwise=True)
            found = VariationalBound(1).losses(policy, obs, action)
        share = drawn.log_prob_by_site["mode"][0].exp()
        prior = conditionals(policy, obs, drawn.latents)
        inner = prior["action"].log_prob(action)[0] - kl_divergence(drawn.distributions["style"], prior["style"])[0]
        exact = exact + (share * (inner - kl_divergence(drawn.distributions["mode"], prior["mode"]))).sum()
        total = total + (share.detach() * found.model).sum()
    assert float(total.detach()) == pytest.approx(-float(exact.detach()))
    guide = policy.guide_parameters()
    assert close(gradients(-total, parameters), gradients(exact, parameters), 1e-9)
    assert max(float(g.abs().max()) for g in gradients(exact, guide)) > 1e-3


class OtherOrder(nn.Module):
    """Two Gaussian sites, of which the second hangs on the first, and a guide that samples them the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def model(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        x = pyro.sample("x", DiagNormal(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))
        y = pyro.sample("y", DiagNormal(self.slope * x, torch.zeros(1, dtype=torch.float64)))
        return pyro.sample("action", DiagNormal(y + obs, torch.zeros(1, dtype=torch.float64)), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        y = pyro.sample("y", DiagNormal(obs, torch.zeros(1, dtype=torch.float64)))
        pyro.sample("x", DiagNormal(0.3 * y, torch.zeros(1, dtype=torch.float64)))

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.slope]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []

    def guide_parameters(self) -> list[nn.Parameter]:
        return []


def test_sites_in_another_order_are_not_paired_in_closed_form() -> None:
    policy, obs = OtherOrder(), torch.ones(5, 1, dtype=torch.float64)
    with seeded(0):
        terms = guide_terms(policy, obs, obs, num_particles=3)
    with seeded(0):
        sampled = guide_terms(policy, obs, obs, num_particles=3, closed_form=False)
    assert terms.kl.shape == (3, 5, 1)
    assert torch.equal(terms.kl, sampled.kl)


def units(q: Distribution, p: Distribution) -> Tensor:
    found = unit_kl(q, p)
    assert found is not None
    return found


def test_units_of_a_gaussian_add_up_to_its_divergence() -> None:
    with seeded(1):
        q, p = (DiagNormal(torch.randn(4, 3), torch.randn(3)) for _ in range(2))
    assert torch.allclose(units(q, p).sum(-1), kl_divergence(q, p), rtol=1e-5)
    one, other = (dist.Normal(fn.loc, fn.scale).to_event(1) for fn in (q, p))
    assert torch.allclose(units(one, other), units(q, p), rtol=1e-5)
    assert units(MultiBernoulli(torch.zeros(4, 2)), MultiBernoulli(torch.ones(4, 2))).shape == (4, 1)
    assert unit_kl(q, dist.StudentT(3.0 * torch.ones(4, 3)).to_event(1)) is None
    scalar = units(dist.Normal(torch.zeros(4), 1.0), dist.Normal(torch.ones(4), 1.0))
    assert scalar.tolist() == [[0.5]] * 4


def test_beta_weighs_the_divergence_and_the_metric_stays_the_bound() -> None:
    policy, rows = gaussian(1)
    found = {}
    for beta in (1.0, 3.0):
        with drawing(Signs()):
            found[beta] = VariationalBound(2, beta=beta).losses(policy, rows.obs, rows.action)
    assert torch.allclose(found[3.0].model - found[1.0].model, 2 * found[1.0].info["kl"])
    assert torch.equal(found[3.0].info["log_prob"], found[1.0].info["log_prob"])


def test_beta_comes_up_as_asked() -> None:
    assert VariationalBound(beta=2.0).weight(0.0) == 2.0
    linear = VariationalBound(beta=2.0, anneal="linear", anneal_share=0.2)
    assert [linear.weight(p) for p in (0.0, 0.1, 0.2, 0.9)] == pytest.approx([0.0, 1.0, 2.0, 2.0])
    cyclical = VariationalBound(anneal="cyclical", cycles=2, anneal_share=0.5)
    assert [cyclical.weight(p) for p in (0.0, 0.125, 0.25, 0.45, 0.5, 0.625, 0.9)] == pytest.approx(
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0]
    )


def test_free_nats_are_the_maximum_of_mean_and_floor_and_have_no_gradient_below() -> None:
    """Units of mean .2, .6 and 2 with a floor of .5: (.5, .6, 2), and gradients 0, 1/2, 1/2 a row."""
    kl = torch.tensor([[[0.1, 0.2, 1.0], [0.3, 1.0, 3.0]]], requires_grad=True)
    total = floored(kl, 0.5).sum(-1).mean()
    assert float(total.detach()) == pytest.approx(0.5 + 0.6 + 2.0)
    (gradient,) = torch.autograd.grad(total, kl)
    assert gradient[0].tolist() == [[0.0, 0.5, 0.5]] * 2
    assert floored(kl, 0.0) is kl


def test_a_floor_above_every_unit_leaves_the_likelihood_alone() -> None:
    policy, rows = gaussian(1)
    with drawing(Signs()):
        found = VariationalBound(2, free_nats=1e3).losses(policy, rows.obs, rows.action)
    prior = gradients(found.model.mean(), policy.prior_parameters())
    assert all(float(g.abs().max()) == 0.0 for g in prior)
    assert float(found.info["kl"].max()) < 1e3


@pytest.mark.parametrize(("name", "objective"), [("dreg", DoublyReparameterized), ("vimco", VIMCO)])
def test_the_k_particle_bound_teaches_its_guide_by_the_objective_named(name: str, objective: type) -> None:
    policy, rows = gaussian(2)
    with seeded(4):
        found = ImportanceBound(3, guide=name).losses(policy, rows.obs, rows.action)
    with seeded(4):
        torch.randn(3, rows.size, 2, dtype=torch.float64)  # what the model's particles took
        expected = objective(3).loss(policy, rows.obs, rows.action)
    assert found.guide is not None and torch.allclose(found.guide, expected)
    assert found.guide is not found.model
    assert all(float(g.abs().sum()) > 0 for g in gradients(found.model.mean(), model_parameters(policy)))


def test_the_k_particle_bound_lies_above_the_evidence_lower_bound_and_below_the_truth() -> None:
    policy, rows = gaussian(1)
    exact = float(policy.log_pi(observed(rows), rows.action).detach().mean())
    lower = float(policy.log_bound(observed(rows), rows.action).detach().mean())
    found = {}
    for size in (1, 8):
        with seeded(5), torch.no_grad():
            each = [ImportanceBound(size).losses(policy, rows.obs, rows.action).model.mean() for _ in range(300)]
        bounds = -torch.stack(each)
        found[size] = (float(bounds.mean()), 4 * float(bounds.std()) / math.sqrt(300))
    assert abs(found[1][0] - lower) < found[1][1] < 0.3 * (exact - lower)
    assert lower + found[8][1] < found[8][0] < exact - found[8][1]


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: VariationalBound(beta=-1.0), OptionError, "`beta`"),
        (lambda: VariationalBound(free_nats=math.inf), OptionError, "`free_nats`"),
        (lambda: VariationalBound(anneal="steep"), OptionError, "`anneal`"),
        (lambda: VariationalBound(kl="exact"), OptionError, "`kl`"),
        (lambda: VariationalBound(anneal_share=0.0), OptionError, "`anneal_share`"),
        (lambda: VariationalBound(0), OptionError, "`num_particles`"),
        (lambda: VariationalBound(cycles=0), OptionError, "`cycles`"),
        (lambda: ImportanceBound(0), OptionError, "`num_particles`"),
        (lambda: ImportanceBound(guide="stl"), OptionError, "`guide`"),
        (lambda: ImportanceBound(1, guide="vimco"), EstimatorError, "no other particle"),
        (lambda: losses_of_a_discrete_latent(ImportanceBound(4)), EstimatorError, "no pathwise gradient"),
    ],
)
def test_choices_out_of_range_are_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def losses_of_a_discrete_latent(objective: ImportanceBound) -> object:
    policy, rows = tabular()
    return objective.losses(policy, rows.obs, rows.action)
