"""Replicate gradients: R of them under ``vmap`` are what a loop over R would give.

Draws cannot be repeated inside ``vmap``, so the loop and the replicates are compared in two ways: by a source that
answers every draw with fixed values, which makes any estimator deterministic and the comparison exact; and by real
draws, whose means are held together by a bound with the true range.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.errors import EstimatorError, LatentPGError, OptionError, RecordedLatentError, SupportError, WeightError
from latentpg.estimators import (
    ConditionalIS,
    Exact,
    PosteriorIS,
    Prior,
    Reparameterized,
    replicate_gradients,
    replicate_guide_gradients,
)
from latentpg.estimators.guides import ELBOGuide, Recorded, Wake
from latentpg.estimators.replicates import replicate as draw_replicates
from latentpg.numerics.rng import seeded
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import GaussianPolicy, MixturePolicy
from latentpg.programs import DiagNormal, LatentPolicy, Latents, act, drawing, model_parameters
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, EstimatorCase, GuideCase
from tests.programs.reference import Plain

OBS = spaces.Box(-1.0, 1.0, (3,))
ROWS, K, R = 3, 4, 5
EXACT = 1e-12


@dataclass(frozen=True, eq=False)
class Data:
    policy: MixturePolicy | GaussianPolicy
    obs: Tensor
    action: Tensor
    latents: Latents


def data(policy: MixturePolicy | GaussianPolicy) -> Data:
    policy = policy.double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.5)  # smooth enough for quadrature
    obs = torch.randn(ROWS, 3, dtype=torch.float64)
    acted = act(policy, obs)
    return Data(policy, obs, acted.action, acted.latents)


def mixture() -> Data:
    return data(MixturePolicy(OBS, spaces.Discrete(3), num_components=3, hidden=(4,)))


def gaussian() -> Data:
    return data(GaussianPolicy(OBS, spaces.Box(-1.0, 1.0, (2,)), latent_size=2, hidden=(4,)))


KINDS: dict[str, Callable[[], Data]] = {"mixture": mixture, "gaussian": gaussian}
ONLY: dict[str, str] = {"exact": "mixture", "quadrature": "gaussian", "reparameterized": "gaussian"}
"""Estimators that serve one kind of latent alone."""

RUNS = [
    pytest.param(case, kind, id=f"{case.id}-{kind}")
    for case in ESTIMATOR_CASES
    for kind in KINDS
    if ONLY.get(case.name, kind) == kind
]
GUIDE_RUNS = [
    pytest.param(case, kind, id=f"{case.id}-{kind}")
    for case in GUIDE_CASES
    for kind in KINDS
    if case.particles is None and ("step" in case.kinds or kind == "gaussian")
]
DETERMINISTIC = ("exact", "quadrature", "joint-score", "recorded")


def fixed(name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
    """Answer a draw with values that depend on nothing but its name, shape and parameters."""
    shape = torch.Size(sample_shape) + fn.batch_shape + fn.event_shape
    count = torch.arange(math.prod(shape)) + len(name)
    if not fn.has_rsample:
        values = fn.enumerate_support(expand=False).flatten()
        return values[(count * 0.618034 % 1.0 * len(values)).long()].reshape(shape)
    value = fn.mean + fn.stddev * (3.0 * count).sin().reshape(shape)
    return value if pathwise else value.detach()


def flat(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters)])


def one_gradient(case: EstimatorCase, given: Data) -> tuple[Tensor, Tensor]:
    estimator = case.make(K)
    particles = estimator.propose(given.policy, given.obs, given.action, given.latents)
    value = estimator.estimate(given.policy, given.obs, given.action, particles).log_prob.mean()
    return flat(value, model_parameters(given.policy)), value.detach()


def one_guide_gradient(case: GuideCase, given: Data) -> tuple[Tensor, Tensor]:
    value = case.make(K).loss(given.policy, given.obs, given.action, latents=given.latents).mean()
    return flat(value, list(given.policy.guide_parameters())), value.detach()


def replicates(case: EstimatorCase, given: Data, count: int = R, **options: int) -> tuple[Tensor, Tensor]:
    return replicate_gradients(
        given.policy, case.make(K), given.obs, given.action, given.latents, num_replicates=count, **options
    )


def guide_replicates(case: GuideCase, given: Data, count: int = R) -> tuple[Tensor, Tensor]:
    return replicate_guide_gradients(
        given.policy, case.make(K), given.obs, given.action, given.latents, num_replicates=count
    )


# -------------------------------------------------------------------------------------------- one draw, every estimator


@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_each_replicate_is_the_loop_s_gradient_at_the_same_draws(case: EstimatorCase, kind: str) -> None:
    """Shapes and the order of parameters with it: phi, then theta, each as the policy lists them."""
    given = KINDS[kind]()
    with drawing(fixed):
        gradient, value = one_gradient(case, given)
        gradients, values = replicates(case, given)
    assert gradients.shape == (R, sum(p.numel() for p in model_parameters(given.policy))) and values.shape == (R,)
    assert gradients.dtype == values.dtype == torch.float64
    assert not gradients.requires_grad and not values.requires_grad
    assert bool((gradient != 0).any())
    assert float((gradients - gradient).abs().max()) < EXACT * max(1.0, float(gradient.abs().max()))
    assert float((values - value).abs().max()) < EXACT * max(1.0, float(value.abs()))


@pytest.mark.parametrize(("case", "kind"), GUIDE_RUNS)
def test_each_guide_replicate_is_the_loop_s_gradient_at_the_same_draws(case: GuideCase, kind: str) -> None:
    given = KINDS[kind]()
    with drawing(fixed):
        gradient, value = one_guide_gradient(case, given)
        gradients, values = guide_replicates(case, given)
    assert gradients.shape == (R, sum(p.numel() for p in given.policy.guide_parameters())) and values.shape == (R,)
    assert not gradients.requires_grad and not values.requires_grad
    assert bool((gradient != 0).any())
    assert float((gradients - gradient).abs().max()) < EXACT * max(1.0, float(gradient.abs().max()))
    assert float((values - value).abs().max()) < EXACT * max(1.0, float(value.abs()))


@pytest.mark.parametrize(("case", "kind"), RUNS)
def test_replicates_draw_apart_and_a_seed_repeats_them_all(case: EstimatorCase, kind: str) -> None:
    given = KINDS[kind]()
    with seeded(1):
        first = replicates(case, given)
    with seeded(1):
        second = replicates(case, given)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    apart = (first[0][1:] - first[0][0]).abs().amax(-1)
    if case.name in DETERMINISTIC:
        gradient, value = one_gradient(case, given)
        assert float((first[0] - gradient).abs().max()) < EXACT and float((first[1] - value).abs().max()) < EXACT
    else:
        assert int((apart > 1e-6).sum()) >= R - 2  # few draws of a discrete latent fall together now and then


@pytest.mark.parametrize(("case", "kind"), GUIDE_RUNS)
def test_guide_replicates_draw_apart_and_a_seed_repeats_them_all(case: GuideCase, kind: str) -> None:
    given = KINDS[kind]()
    with seeded(1):
        first = guide_replicates(case, given)
    with seeded(1):
        second = guide_replicates(case, given)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    apart = (first[0][1:] - first[0][0]).abs().amax(-1)
    if case.name in DETERMINISTIC:
        assert bool((apart < EXACT).all())
    else:
        assert int((apart > 1e-6).sum()) >= R - 2


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_the_size_of_a_chunk_changes_no_deterministic_gradient(chunk: int) -> None:
    given = mixture()
    exact = next(case for case in ESTIMATOR_CASES if case.name == "exact")
    gradient, value = one_gradient(exact, given)
    gradients, values = replicates(exact, given, 7, chunk_size=chunk)
    assert gradients.shape[0] == values.shape[0] == 7
    assert float((gradients - gradient).abs().max()) < EXACT and float((values - value).abs().max()) < EXACT


def test_chunks_draw_apart_too() -> None:
    """The same stream in every chunk would show as repeated replicates."""
    given = mixture()
    gradients, _ = replicate_gradients(
        given.policy, PosteriorIS(K), given.obs, given.action, num_replicates=6, chunk_size=2
    )
    assert len({tuple(row.tolist()) for row in gradients}) == 6


def test_the_policy_is_left_as_it_was() -> None:
    given = mixture()
    before = {name: parameter.clone() for name, parameter in given.policy.named_parameters()}
    replicate_gradients(given.policy, PosteriorIS(K), given.obs, given.action, num_replicates=2)
    assert all(parameter.grad is None for parameter in given.policy.parameters())
    assert all(isinstance(parameter, nn.Parameter) for parameter in given.policy.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in given.policy.named_parameters())


def test_the_prior_without_parameters_leaves_theta_alone() -> None:
    policy = GaussianPolicy(OBS, spaces.Discrete(2), latent_size=2, prior="standard", hidden=(4,))
    obs = torch.randn(ROWS, 3)
    gradients, _ = replicate_gradients(policy, PosteriorIS(K), obs, act(policy, obs).action, num_replicates=2)
    assert gradients.shape == (2, sum(parameter.numel() for parameter in policy.decoder_parameters()))
    assert gradients.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------- real draws

ALPHA = 1e-9


def bernstein_radius(sample: Tensor, width: Tensor) -> Tensor:
    """Bound |sample mean - expectation| in each column, of a known range, all at once (Maurer and Pontil, 2009)."""
    n = sample.shape[0]
    log_term = math.log(4 * sample.shape[1] * 2 / ALPHA)  # two samples are bounded
    return (2 * sample.var(0) * log_term / n).sqrt() + 7 * width * log_term / (3 * (n - 1))


def test_means_over_replicates_and_over_a_loop_are_those_of_one_law() -> None:
    """A self-normalised gradient lies between the scores of the latents: a range known without looking at draws.

    The same bound tells one from four particles, so that it is not too wide to say anything.
    """
    torch.manual_seed(1)
    policy = TabularLatentPolicy.random(num_states=1, num_latents=3, num_actions=2, scale=3.0)
    obs, action = torch.tensor([0]), torch.tensor([1])
    table = policy.log_prior()[0] + policy.log_decoder()[0, :, 1]
    scores = torch.stack([flat_with_zeros(entry, policy) for entry in table])
    width = scores.amax(0) - scores.amin(0)

    def loop(estimator: PosteriorIS, count: int) -> Tensor:
        rows = []
        for _ in range(count):
            particles = estimator.propose(policy, obs, action)
            log_prob = estimator.estimate(policy, obs, action, particles).log_prob.mean()
            rows.append(flat(log_prob, model_parameters(policy)))
        return torch.stack(rows)

    one_by_one = loop(PosteriorIS(4, Prior()), 2_000)
    distance = {}
    for size in (4, 1):
        sample, _ = replicate_gradients(policy, PosteriorIS(size, Prior()), obs, action, num_replicates=20_000)
        radius = bernstein_radius(sample, width) + bernstein_radius(one_by_one, width)
        distance[size] = (sample.mean(0) - one_by_one.mean(0)).abs() - radius
    assert bool((distance[4] <= 0).all())
    assert bool((distance[1] > 0).any())


def flat_with_zeros(value: Tensor, policy: LatentPolicy) -> Tensor:
    parts = torch.autograd.grad(value, model_parameters(policy), retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_policy_that_is_no_module_is_refused() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        raise AssertionError("nothing is run")

    with pytest.raises(OptionError, match=r"an nn\.Module") as caught:
        replicate_gradients(Plain(model), Exact(), torch.zeros(2, 3), torch.zeros(2), num_replicates=2)
    assert "from_pyro(model, guide)" in str(caught.value)


class Listed(nn.Module):
    """A policy that lists parameters which are none of its own, or none at all."""

    def __init__(self, listed: list[nn.Parameter]) -> None:
        super().__init__()
        self._listed = (listed,)

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", dist.Normal(obs[:, 0], 1.0))

    def prior_parameters(self) -> list[nn.Parameter]:
        return self._listed[0]

    guide_parameters = prior_parameters

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []


@pytest.mark.parametrize("listed", [[], [nn.Parameter(torch.zeros(()))]])
def test_parameters_that_the_module_has_not_are_refused(listed: list[nn.Parameter]) -> None:
    policy = Listed(listed)
    with pytest.raises(OptionError, match=r"among `policy\.parameters\(\)`"):
        replicate_gradients(policy, PosteriorIS(K), torch.zeros(2, 3), torch.zeros(2), num_replicates=2)
    with pytest.raises(OptionError, match=r"among `policy\.parameters\(\)`"):
        replicate_guide_gradients(policy, Wake(K), torch.zeros(2, 3), torch.zeros(2), num_replicates=2)


@pytest.mark.production
@pytest.mark.parametrize("count", [0, -1, 2.5, "3"])
def test_a_number_of_replicates_that_is_none_is_refused(count: Any) -> None:  # noqa: ANN401 (a mistake)
    given = mixture()
    with pytest.raises(OptionError, match="`num_replicates`"):
        replicate_gradients(given.policy, Exact(), given.obs, given.action, num_replicates=count)
    with pytest.raises(OptionError, match="`num_replicates`"):
        replicate_guide_gradients(given.policy, Wake(K), given.obs, given.action, num_replicates=count)
    with pytest.raises(OptionError, match="`chunk_size`"):
        replicate_gradients(given.policy, Exact(), given.obs, given.action, num_replicates=2, chunk_size=count)


def test_mistakes_that_vmap_hides_are_found_before_it() -> None:
    """Half a coin has a score; so has no number, and an index beyond the table is an error of another kind."""
    policy = MixturePolicy(OBS, spaces.MultiBinary(2), num_components=3, hidden=(4,))
    with pytest.raises(SupportError, match="in row 0"):
        replicate_gradients(policy, PosteriorIS(K), torch.zeros(2, 3), torch.full((2, 2), 0.5), num_replicates=2)
    given = mixture()
    with pytest.raises(SupportError, match="9 in row 2"):
        replicate_gradients(given.policy, Exact(), given.obs, torch.tensor([0, 1, 9]), num_replicates=2)
    given = gaussian()
    action = given.action.clone()
    action[1, 0] = torch.nan
    with pytest.raises(SupportError, match="in row 1"):
        replicate_gradients(given.policy, PosteriorIS(K), given.obs, action, num_replicates=2)


class Steep(nn.Module):
    """NaN in its gradient alone: the value of sqrt at zero is finite, its slope is not."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", DiagNormal(obs[:, :1], torch.zeros(1)))
        pyro.sample("action", DiagNormal(z + self.shift.sqrt(), torch.zeros(1)), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", DiagNormal(obs[:, :1] + self.shift.sqrt(), torch.zeros(1)))

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.shift]

    guide_parameters = prior_parameters

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []


def test_gradients_that_are_not_finite_are_refused_and_counted() -> None:
    obs, action = torch.zeros(2, 3), torch.ones(2, 1)
    with pytest.raises(WeightError, match="3 of 3 replicates"):
        replicate_gradients(Steep(), PosteriorIS(K), obs, action, num_replicates=3)
    with pytest.raises(WeightError, match="call the estimator once outside"):
        replicate_guide_gradients(Steep(), ELBOGuide(K), obs, action, num_replicates=3)


def test_what_the_estimator_refuses_outside_it_refuses_inside() -> None:
    given = gaussian()
    refusals: list[tuple[type[LatentPGError], Callable[[], Any]]] = [
        (RecordedLatentError, lambda: replicate(ConditionalIS(K), given)),
        (EstimatorError, lambda: replicate(Reparameterized(K), mixture())),
        (LookupError, lambda: replicate(Exact(), given)),  # type: ignore[list-item]
    ]
    for error, run in refusals:
        with pytest.raises(error):
            run()
    with pytest.raises(RecordedLatentError):
        replicate_guide_gradients(given.policy, Recorded(), given.obs, given.action, num_replicates=2)


def replicate(estimator: Any, given: Data) -> Any:  # noqa: ANN401 (any estimator)
    return replicate_gradients(given.policy, estimator, given.obs, given.action, num_replicates=2)


def test_parameters_that_are_not_asked_for_keep_no_graph() -> None:
    """Or else every chunk's graph stays until the last: at K = 316 that was gigabytes."""
    with seeded(0):
        policy = MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), num_components=2, hidden=(4,))
    seen: list[tuple[bool, bool]] = []

    def function() -> Tensor:
        prior, other = next(policy.prior.parameters()), next(policy.decoder.parameters())
        seen.append((prior.requires_grad, other.requires_grad))
        return prior.sum() * other.sum()

    draw_replicates(policy, [next(iter(policy.prior.parameters()))], function, num_replicates=2)
    inside = seen[1:]  # the first run, outside, looks for mistakes
    assert inside and not any(other for _, other in inside)
