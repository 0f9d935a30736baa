"""The lean distributions against the stock ones: densities, divergences, draws, enumeration, transforms."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions import kl_divergence

from latentpg.errors import ShapeError
from latentpg.estimators import Exact
from latentpg.programs import Categorical, DiagNormal, MultiBernoulli, MultiCategorical
from tests.programs.reference import Plain, bernstein, off_by

EXACT = 1e-12
SIZES = (2, 1, 3)
Pair = tuple[Any, Any]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lean_and_stock(kind: str, batch: tuple[int, ...], seed: int) -> Pair:
    """Give one distribution written twice; the stock one is made of torch's own parts."""
    if kind == "gaussian":
        loc, log_scale = numbers(*batch, 3, seed=seed), numbers(*batch, 3, seed=seed + 1)
        return DiagNormal(loc, log_scale), dist.Normal(loc, log_scale.exp()).to_event(1)
    logits = 2 * numbers(*batch, sum(SIZES) if kind == "dice" else 4, seed=seed)
    if kind == "categorical":
        return Categorical(logits), dist.Categorical(logits=logits)
    if kind == "coins":
        return MultiBernoulli(logits), dist.Bernoulli(logits=logits).to_event(1)
    return MultiCategorical(logits, SIZES), Product([dist.Categorical(logits=x) for x in logits.split(SIZES, -1)])


class Product:
    """Independent categoricals of different sizes, by the definition."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.stack([part.log_prob(value[..., i]) for i, part in enumerate(self.parts)]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)


KINDS = ("gaussian", "categorical", "coins", "dice")
DISCRETE = KINDS[1:]
batches = st.sampled_from([(), (1,), (4,), (2, 3)])


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS), batch=batches, particles=st.sampled_from([(), (1,), (3,), (4,)]), seed=st.integers()
)
def test_density_entropy_and_shapes_are_those_of_the_stock_one(
    kind: str, batch: tuple[int, ...], particles: tuple[int, ...], seed: int
) -> None:
    lean, stock = lean_and_stock(kind, batch, seed % 2**40)
    value = lean.sample(particles)
    assert value.shape == particles + batch + lean.event_shape
    assert value.dtype == (torch.int64 if kind in ("categorical", "dice") else torch.float64)
    assert lean.log_prob(value).shape == particles + batch
    assert off_by(lean.log_prob(value), stock.log_prob(value)) < EXACT
    assert off_by(lean.entropy(), stock.entropy()) < EXACT
    if not isinstance(stock, Product):
        assert lean.batch_shape == stock.batch_shape and lean.event_shape == stock.event_shape
        assert str(lean.support) == str(stock.support)


@settings(max_examples=40)
@given(kind=st.sampled_from(KINDS), batch=batches, seed=st.integers(0, 10**6))
def test_divergence_is_the_stock_one(kind: str, batch: tuple[int, ...], seed: int) -> None:
    (p, stock_p), (q, stock_q) = lean_and_stock(kind, batch, seed), lean_and_stock(kind, batch, seed + 7)
    if isinstance(stock_p, Product):
        pairs = zip(stock_p.parts, stock_q.parts, strict=True)
        expected = torch.stack([kl_divergence(a, b) for a, b in pairs]).sum(0)
    else:
        expected = kl_divergence(stock_p, stock_q)
    assert off_by(kl_divergence(p, q), expected) < 1e-11
    assert float(kl_divergence(p, p).abs().max()) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("larger", [(4,), (3, 4), (2, 3, 4)])
def test_expanded_it_is_the_same_distribution(kind: str, larger: tuple[int, ...]) -> None:
    lean, _ = lean_and_stock(kind, (4,), 3)
    wide = lean.expand(larger)
    assert type(wide) is type(lean) and wide.batch_shape == larger and wide.event_shape == lean.event_shape
    value = lean.sample()
    assert off_by(wide.log_prob(value), lean.log_prob(value).expand(larger)) < EXACT
    assert wide.sample((5,)).shape == (5, *larger, *lean.event_shape)


def test_gaussian_broadcasts_its_parameters() -> None:
    loc, log_scale = numbers(5, 1, 3), numbers(3, seed=1)
    lean, stock = DiagNormal(loc, log_scale), dist.Normal(loc, log_scale.exp()).to_event(1)
    assert lean.batch_shape == (5, 1)
    value = numbers(2, 5, 4, 3, seed=2)
    assert off_by(lean.log_prob(value), stock.log_prob(value)) < EXACT
    for name in ("mean", "variance"):
        assert off_by(getattr(lean, name), getattr(stock, name)) < EXACT
    assert off_by(lean.entropy(), stock.entropy()) < EXACT
    reverse = DiagNormal(numbers(3), numbers(5, 3, seed=1))
    assert reverse.batch_shape == (5,) and reverse.rsample((2,)).shape == (2, 5, 3)


@pytest.mark.production
@pytest.mark.parametrize(
    "make",
    [
        lambda: DiagNormal(torch.zeros(3, 2), torch.zeros(3, 1)),
        lambda: DiagNormal(torch.tensor(0.0), torch.zeros(2)),
        lambda: MultiCategorical(torch.zeros(4, 6), (2, 3)),
    ],
)
def test_parameters_that_do_not_fit_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ShapeError):
        make()


# ----------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("kind", DISCRETE)
def test_every_value_comes_as_often_as_its_probability_says(kind: str) -> None:
    """Over 50,000 draws a row, against the enumerated probabilities, by a Bernstein bound at 1e-9."""
    draws, (lean, _) = 50_000, lean_and_stock(kind, (3,), 1)
    values = lean.enumerate_support()
    probability = lean.log_prob(values).exp()
    assert float((probability.sum(0) - 1).abs().max()) < EXACT
    sample = lean.sample((draws,))
    hits = sample.unsqueeze(1) == values.unsqueeze(0)
    if lean.event_shape:
        hits = hits.all(-1)
    frequency = hits.double().mean(0)
    assert bool(((frequency - probability).abs() < bernstein(probability, draws)).all())


def test_gaussian_draws_fill_the_quantiles_of_their_law() -> None:
    """Ten bins of equal probability a coordinate; and both of a pair are high a quarter of the time."""
    draws, (lean, _) = 50_000, lean_and_stock("gaussian", (2,), 4)
    sample = lean.sample((draws,))
    uniform = dist.Normal(lean.loc, lean.scale).cdf(sample)
    bins = torch.nn.functional.one_hot((uniform * 10).long().clamp(max=9), 10).double().mean(0)
    assert bool(((bins - 0.1).abs() < bernstein(torch.full_like(bins, 0.1), draws)).all())
    high = uniform > 0.5
    both = (high & high.roll(1, -1)).double().mean(0)
    assert bool(((both - 0.25).abs() < bernstein(torch.full_like(both, 0.25), draws)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", ["smallest", "largest"])
def test_an_impossible_category_is_never_drawn(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, noise: str) -> None:
    """Not even on the largest number that ``torch.rand`` gives, where rounded probabilities add up to less."""
    logits = torch.randn(5_000, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    impossible = torch.rand(5_000, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    impossible[:, 3] = False
    impossible[::2, -1] = True
    logits = logits.masked_fill(impossible, -torch.inf)
    extreme = 0.0 if noise == "smallest" else 1.0 - 2.0 ** -(24 if dtype == torch.float32 else 53)

    def rand(shape: tuple[int, ...], **options: Any) -> Tensor:  # noqa: ANN401 (torch's own)
        return torch.full(shape, extreme, **options)

    monkeypatch.setattr(torch, "rand", rand)
    fn = Categorical(logits)
    assert bool(fn.log_prob(fn.sample()).isfinite().all())


def test_pathwise_gaussian_draws_are_location_plus_scaled_noise() -> None:
    loc, log_scale = numbers(4, 2).requires_grad_(), numbers(4, 2, seed=1).requires_grad_()
    fn = DiagNormal(loc, log_scale)
    value = fn.rsample((3,))
    by_loc, by_log_scale = torch.autograd.grad(value.sum(), [loc, log_scale])
    assert torch.equal(by_loc, torch.full_like(loc, 3.0))
    assert off_by(by_log_scale, (value - loc).sum(0).detach()) < EXACT
    assert not fn.sample().requires_grad


# ------------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("kind", KINDS)
def test_under_vmap_every_replicate_draws_its_own(kind: str) -> None:
    lean, _ = lean_and_stock(kind, (40,), 2)
    parameters = [lean.loc, lean.log_scale] if kind == "gaussian" else [lean.logits]

    def replicate(index: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        del index
        fn: Any = (
            DiagNormal(*parameters)
            if kind == "gaussian"
            else MultiCategorical(parameters[0], SIZES)
            if kind == "dice"
            else type(lean)(parameters[0])
        )
        value = fn.sample((2,))
        return value, fn.log_prob(value)

    dims = (0, *[None] * len(parameters))
    mapped = torch.func.vmap(replicate, in_dims=dims, randomness="different")(torch.arange(6), *parameters)
    assert mapped[0].shape == (6, 2, 40, *lean.event_shape)
    assert len(mapped[0].reshape(6, -1).unique(dim=0)) == 6
    assert off_by(mapped[1], lean.log_prob(mapped[0])) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_the_density_is_the_stock_one_also_under_vmap(kind: str) -> None:
    lean, _ = lean_and_stock(kind, (), 5)
    value = lean.sample((8,))
    parameters = numbers(3, seed=8) if kind == "gaussian" else lean.logits

    def score(parameters: Tensor, value: Tensor) -> Tensor:
        if kind == "gaussian":
            return DiagNormal(parameters, parameters).log_prob(value)
        return (MultiCategorical(parameters, SIZES) if kind == "dice" else type(lean)(parameters)).log_prob(value)

    def stock_score(parameters: Tensor, value: Tensor) -> Tensor:
        if kind == "gaussian":
            return dist.Normal(parameters, parameters.exp()).log_prob(value).sum(-1)
        if kind == "coins":
            return dist.Bernoulli(logits=parameters).log_prob(value).sum(-1)
        if kind == "categorical":
            return dist.Categorical(logits=parameters).log_prob(value)
        return Product([dist.Categorical(logits=x) for x in parameters.split(SIZES, -1)]).log_prob(value)

    mapped = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0))(parameters, value)
    for i in range(8):
        leaf = parameters.clone().requires_grad_()
        expected = torch.autograd.grad(stock_score(leaf, value[i]), leaf)[0]
        assert off_by(mapped[i], expected) < EXACT


# ------------------------------------------------------------------------------------------------------ enumeration


@pytest.mark.parametrize("kind, count", [("categorical", 4), ("coins", 16), ("dice", math.prod(SIZES))])
def test_the_support_is_listed_once_in_both_forms(kind: str, count: int) -> None:
    lean, _ = lean_and_stock(kind, (3, 2), 0)
    short, full = lean.enumerate_support(expand=False), lean.enumerate_support()
    assert short.shape == (count, 1, 1, *lean.event_shape)
    assert full.shape == (count, 3, 2, *lean.event_shape)
    assert len(short.reshape(count, -1).unique(dim=0)) == count
    assert torch.equal(short.expand(full.shape), full)
    assert bool(lean.support.check(full).all())


def test_support_of_a_vector_of_categories_refuses_what_is_outside() -> None:
    check = MultiCategorical(torch.zeros(5), (2, 3)).support.check
    values = torch.tensor([[0, 0], [1, 2], [2, 0], [0, 3], [-1, 0]])
    assert check(values).tolist() == [True, True, False, False, False]
    assert check(torch.tensor([[0.5, 1.0]])).tolist() == [False]


def test_pyro_s_own_enumeration_sums_over_them() -> None:
    """TraceEnum_ELBO with every latent summed out and an empty guide is minus the exact log-marginal, to 1e-10."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        coins = pyro.sample("coins", MultiBernoulli(obs[:, :2]))
        total = coins.sum(-1)
        dice = pyro.sample("dice", MultiCategorical(total.unsqueeze(-1) * obs[..., :1] + torch.arange(5.0), (2, 3)))
        one = pyro.sample("one", Categorical(dice.sum(-1, keepdim=True).double() * torch.tensor([0.3, -0.1])))
        pyro.sample("action", DiagNormal((total + one).unsqueeze(-1) + obs[:, :2], obs[:, 1:]), obs=action)

    def in_plate(obs: Tensor, action: Tensor) -> None:
        with pyro.plate("rows", obs.shape[0], dim=-1):
            model(obs, action)

    obs, action, policy = numbers(4, 3).requires_grad_(), numbers(4, 2, seed=1), Plain(model)
    particles = Exact().propose(policy, obs, action)
    exact = Exact().estimate(policy, obs, action, particles).log_prob
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        config_enumerate(in_plate), lambda obs, action: None, obs, action
    )
    assert off_by(-loss, exact.sum()) < 1e-10
    gradients = [torch.autograd.grad(value, obs)[0] for value in (-loss, exact.sum())]
    assert off_by(*gradients) < 1e-10
