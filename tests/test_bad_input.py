"""Bad input of every kind: one error each, that says what was wrong, what was expected, what came and how to mend it.

These run without the checked annotations, whose hook would raise first with a message of its own.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import latentpg
from latentpg.errors import (
    EstimatorError,
    LatentPGError,
    OptionError,
    QuadratureError,
    RecordedLatentError,
    ShapeError,
    SiteError,
    SupportError,
    WeightError,
)
from latentpg.estimators import (
    ConditionalIS,
    Exact,
    Guide,
    JointScore,
    MarkovianIS,
    Mixture,
    Particles,
    PosteriorIS,
    Prior,
    Proposal,
    Quadrature,
    Reparameterized,
    SplitIS,
    WakeSleep,
    make_estimator,
    make_guide_objective,
)
from latentpg.estimators.guides import (
    IWAE,
    VIMCO,
    ConditionalWake,
    DoublyReparameterized,
    Recorded,
    StickingTheLanding,
    Wake,
)
from latentpg.policies import GaussianPolicy, MixturePolicy
from latentpg.programs import Span, act, draw_guide, log_joint, support

pytestmark = pytest.mark.production

OBS_SPACE = spaces.Box(-1.0, 1.0, (3,))
B, K = 5, 4


class Programs:
    """A policy out of two functions, without parameters: enough to run an estimator on."""

    def __init__(self, model: Callable[..., object], guide: Callable[..., object]) -> None:
        self.model, self.guide = model, guide

    def prior_parameters(self) -> list[torch.nn.Parameter]:
        return []

    decoder_parameters = guide_parameters = prior_parameters


def gaussian_model(obs: Tensor, action: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Normal(obs[..., 0], 1.0))
    pyro.sample("action", dist.Normal(z, 1.0), obs=action)


def gaussian_guide(obs: Tensor, action: Tensor) -> None:
    pyro.sample("z", dist.Normal(action, 1.0))


def categorical_model(obs: Tensor, action: Tensor | None = None) -> None:
    z = pyro.sample("z", dist.Categorical(logits=torch.zeros(obs.shape[0], 3)))
    pyro.sample("action", dist.Normal(z.to(obs.dtype), 1.0), obs=action)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def obs() -> Tensor:
    return torch.randn(B, 3)


@pytest.fixture
def discrete() -> MixturePolicy:
    return MixturePolicy(OBS_SPACE, spaces.Discrete(3), hidden=(8,))


@pytest.fixture
def gaussian() -> GaussianPolicy:
    return GaussianPolicy(OBS_SPACE, spaces.Box(-1.0, 1.0, (2,)), hidden=(8,))


def assert_teaches(error: BaseException, *phrases: str) -> None:
    """Look for the lines every error has, and for the words that name this mistake."""
    text = str(error)
    for label in ("expected:", "got:", "fix:"):
        assert label in text, f"no line `{label}` in:\n{text}"
    for phrase in phrases:
        assert phrase in text, f"`{phrase}` not in:\n{text}"


# ---------------------------------------------------------------------------------------------------------- shapes


def test_action_with_a_trailing_one_is_named_and_mended(discrete: MixturePolicy, obs: Tensor) -> None:
    action = torch.zeros(B, 1, dtype=torch.int64)
    for proposal in (Prior(), Guide()):
        estimator = PosteriorIS(K, proposal)
        with pytest.raises(ShapeError) as caught:
            estimator.estimate(discrete, obs, action, estimator.propose(discrete, obs, action))
        assert_teaches(caught.value, "`action`", "[5, 1]", "action.squeeze(-1)")


def test_action_of_other_rows_than_the_observations(discrete: MixturePolicy, obs: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        PosteriorIS(K).propose(discrete, obs, torch.zeros(B + 1, dtype=torch.int64))
    assert_teaches(caught.value, "[B=5, ...]", "[6]")


def test_observation_of_the_wrong_width(discrete: MixturePolicy) -> None:
    with pytest.raises(ShapeError) as caught:
        act(discrete, torch.zeros(B, 4))
    assert_teaches(caught.value, "[B, S=3]", "[5, 4]")


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(B, 1, dtype=torch.bool),
        torch.ones(B, 4, dtype=torch.bool),
        torch.ones(B, 2, 1, dtype=torch.bool),
        torch.ones(B, 2),
    ],
    ids=lambda mask: f"{list(mask.shape)} {mask.dtype}",
)
def test_mask_that_is_not_one_truth_a_step(discrete: MixturePolicy, mask: Tensor) -> None:
    """One of [B, 1] would broadcast: the guide's mean over two steps would be their sum."""
    span, action = Span(torch.zeros(B, 2, 3), mask), torch.zeros(B, 2, dtype=torch.int64)
    for run in (lambda: act(discrete, span), lambda: draw_guide(discrete, span, action, num_particles=2)):
        with pytest.raises(ShapeError) as caught:
            run()
        assert_teaches(caught.value, "`obs.mask`", f"[{B}, 2], torch.bool", f"{list(mask.shape)}, {mask.dtype}")


def test_event_dimension_that_was_not_summed_in_the_decoder(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[..., :2], 1.0).to_event(1))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        pyro.sample("z", dist.Normal(action, 1.0).to_event(1))

    estimator, action = PosteriorIS(K), torch.zeros(B, 2)
    policy = Programs(model, guide)
    with pytest.raises(ShapeError) as caught:
        estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action))
    assert_teaches(caught.value, "event dimension not summed", "to_event(1)")


def test_event_dimension_that_was_not_summed_in_the_prior_or_the_guide(obs: Tensor) -> None:
    def unsummed(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[..., :2], 1.0))
        pyro.sample("action", dist.Normal(z, 1.0).to_event(1), obs=action)

    policy = Programs(unsummed, lambda obs, action: pyro.sample("z", dist.Normal(action, 1.0)))
    for proposal in (Prior(), Guide()):
        with pytest.raises(ShapeError) as caught:
            PosteriorIS(K, proposal).propose(policy, obs, torch.zeros(B, 2))
        assert_teaches(caught.value, "site `z`", "event dimension not summed", "to_event(1)")


def test_unsummed_log_proposal_and_misplaced_particles() -> None:
    with pytest.raises(ShapeError) as caught:
        Particles({"z": torch.zeros(8, 32, 6)}, torch.zeros(8, 32, 6))
    assert_teaches(caught.value, "`log_proposal`", "event dimension not summed")
    with pytest.raises(ShapeError) as caught:
        Particles({"z": torch.zeros(32, 8)}, torch.zeros(8, 32))
    assert_teaches(caught.value, "latent `z`", "particles first")


def test_recorded_latents_of_the_wrong_shape(gaussian: GaussianPolicy, obs: Tensor) -> None:
    with pytest.raises(ShapeError) as caught:
        ConditionalIS(K).propose(gaussian, obs, torch.zeros(B, 2), {"z": torch.zeros(B)})
    assert_teaches(caught.value, "latent `z`", "[1, 5]")


def test_program_that_cannot_broadcast_over_particles(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[..., :2], 1.0).to_event(1))
        loc = torch.cat([obs, z], -1).sum(-1)
        pyro.sample("action", dist.Normal(loc, 1.0), obs=action)

    policy = Programs(model, gaussian_guide)
    with pytest.raises(ShapeError) as caught:
        log_joint(policy, obs, torch.zeros(B), {"z": torch.zeros(K, B, 2)})
    assert_teaches(caught.value, "torch.cat", "flatten_particles=True")


# -------------------------------------------------------------------------------------------------------- particles


@pytest.mark.parametrize(
    "make",
    [
        lambda k: PosteriorIS(k),
        lambda k: ConditionalIS(k),
        lambda k: SplitIS(k),
        lambda k: SplitIS(8, k),
        lambda k: WakeSleep(k),
        lambda k: latentpg.ELBO(k),
        lambda k: Reparameterized(k),
        lambda k: MarkovianIS(k),
        lambda k: Quadrature(k),
        lambda k: VIMCO(k),
        lambda k: IWAE(k),
        lambda k: Wake(k),
    ],
)
@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_number_of_particles_that_is_no_number_of_particles(make: Callable[[object], object], count: object) -> None:
    with pytest.raises((OptionError, EstimatorError)) as caught:
        make(count)
    assert_teaches(caught.value, repr(count))


@pytest.mark.parametrize("make", [lambda: VIMCO(1), lambda: Wake(1), lambda: MarkovianIS(1)])
def test_one_particle_where_one_cannot_learn(make: Callable[[], object]) -> None:
    with pytest.raises(EstimatorError) as caught:
        make()
    assert_teaches(caught.value, "K = 1", ">= 2")


def test_wake_on_stored_particles_of_one(discrete: MixturePolicy, obs: Tensor) -> None:
    acted = act(discrete, obs)
    particles = ConditionalIS(1).propose(discrete, obs, acted.action, acted.latents)
    with pytest.raises(EstimatorError) as caught:
        Wake().loss(discrete, obs, acted.action, particles=particles)
    assert_teaches(caught.value, "K >= 2")


# ---------------------------------------------------------------------------------------------------------- weights


def test_nan_weights_name_the_row(gaussian: GaussianPolicy, obs: Tensor) -> None:
    estimator, action = PosteriorIS(K, Prior()), torch.zeros(B, 2)
    particles = estimator.propose(gaussian, obs, action)
    poisoned = particles.log_proposal.clone()
    poisoned[1, 3] = torch.nan
    with pytest.raises(WeightError) as caught:
        estimator.estimate(gaussian, obs, action, Particles(particles.latents, poisoned))
    assert_teaches(caught.value, "NaN", "row 3")


def test_rows_without_any_weight(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(obs.shape[0], 2)))
        impossible = torch.tensor([0.0, -torch.inf])
        pyro.sample("action", dist.Categorical(logits=impossible.expand(*z.shape, 2)), obs=action)

    def guide(obs: Tensor, action: Tensor) -> None:
        pyro.sample("z", dist.Categorical(logits=torch.zeros(obs.shape[0], 2)))

    policy, action = Programs(model, guide), torch.tensor([0, 0, 1, 0, 1])
    for estimator in (PosteriorIS(K), Exact(), latentpg.ELBO(K)):
        with pytest.raises(WeightError) as caught:
            estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action))
        assert_teaches(caught.value, "-inf", "row 2", "2 such rows")


def test_parameters_that_are_nan_end_in_a_weight_error(discrete: MixturePolicy, obs: Tensor) -> None:
    acted = act(discrete, obs)
    particles = ConditionalIS(K).propose(discrete, obs, acted.action, acted.latents)
    with torch.no_grad():
        next(iter(discrete.decoder_parameters())).fill_(torch.nan)
    with pytest.raises(WeightError) as caught:
        ConditionalIS(K).estimate(discrete, obs, acted.action, particles)
    assert_teaches(caught.value, "NaN", "parameters")


# ---------------------------------------------------------------------------------------------------------- support


@pytest.mark.parametrize("value", [-1, 3])
def test_action_outside_the_support(discrete: MixturePolicy, obs: Tensor, value: int) -> None:
    action = torch.tensor([0, 1, value, 2, 0])
    for estimator in (Exact(), PosteriorIS(K, Prior())):
        with pytest.raises(SupportError) as caught:
            estimator.estimate(discrete, obs, action, estimator.propose(discrete, obs, action))
        assert_teaches(caught.value, "row 2", "policy coordinates")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
def test_action_of_a_type_that_counts_nothing(discrete: MixturePolicy, obs: Tensor, dtype: torch.dtype) -> None:
    action = torch.tensor([0, 1, 0, 1, 0]).to(dtype)
    for estimator in (Exact(), PosteriorIS(K, Prior())):
        with pytest.raises(SupportError) as caught:
            estimator.estimate(discrete, obs, action, estimator.propose(discrete, obs, action))
        assert_teaches(caught.value, "torch.int64", str(dtype), "value.long()")


def test_action_of_a_smaller_integer_type(discrete: MixturePolicy, obs: Tensor) -> None:
    action = torch.tensor([0, 1, 2, 1, 0])
    found = [log_joint(discrete, obs, action.to(dtype), support(discrete, obs)) for dtype in (torch.int64, torch.uint8)]
    assert torch.equal(*found)


def test_float_actions_of_a_vector_of_categories(obs: Tensor) -> None:
    policy = MixturePolicy(OBS_SPACE, spaces.MultiDiscrete([2, 3]), hidden=(8,))
    with pytest.raises(SupportError) as caught:
        log_joint(policy, obs, torch.zeros(B, 2), support(policy, obs))
    assert_teaches(caught.value, "torch.int64", "torch.float32")


def test_action_that_is_not_a_number(gaussian: GaussianPolicy, obs: Tensor) -> None:
    action = torch.zeros(B, 2)
    action[4, 1] = torch.nan
    with pytest.raises(SupportError) as caught:
        PosteriorIS(K, Prior()).estimate(gaussian, obs, action, PosteriorIS(K, Prior()).propose(gaussian, obs, action))
    assert_teaches(caught.value, "row 4")


def test_guide_with_fewer_categories_than_the_prior(obs: Tensor) -> None:
    policy = Programs(
        categorical_model,
        lambda obs, action: pyro.sample("z", dist.Categorical(logits=torch.zeros(obs.shape[0], 2))),
    )
    with pytest.raises(SupportError) as caught:
        PosteriorIS(K).propose(policy, obs, torch.zeros(B))
    assert_teaches(caught.value, "latent `z`", "Mixture()")


def test_guide_with_a_hole_where_the_prior_has_mass(obs: Tensor) -> None:
    hole = torch.tensor([0.0, -torch.inf, 0.0])
    policy = Programs(
        categorical_model,
        lambda obs, action: pyro.sample("z", dist.Categorical(logits=hole.expand(obs.shape[0], 3))),
    )
    with pytest.raises(SupportError) as caught:
        ConditionalIS(K, Guide()).propose(policy, obs, torch.zeros(B), {"z": torch.zeros(B, dtype=torch.int64)})
    assert_teaches(caught.value, "misses part of the prior's support")
    Mixture().draw(policy, obs, torch.zeros(B), K)  # the defensive mixture covers it


def test_guide_on_half_the_line_of_a_gaussian_prior(obs: Tensor) -> None:
    policy = Programs(
        gaussian_model, lambda obs, action: pyro.sample("z", dist.LogNormal(torch.zeros_like(action), 1.0))
    )
    with pytest.raises(SupportError) as caught:
        WakeSleep(K).propose(policy, obs, torch.zeros(B))
    assert_teaches(caught.value, "latent `z`")


# ------------------------------------------------------------------------------------------------------------ sites


def test_sites_that_model_and_guide_name_differently(obs: Tensor) -> None:
    policy = Programs(gaussian_model, lambda obs, action: pyro.sample("zed", dist.Normal(action, 1.0)))
    for proposal in (Guide(), Mixture()):
        estimator, action = PosteriorIS(K, proposal), torch.zeros(B)
        with pytest.raises(SiteError) as caught:
            estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action))
        assert_teaches(caught.value, "zed")


def test_sites_of_another_event_shape_in_the_guide(obs: Tensor) -> None:
    """A vector where the model has a number would broadcast against it."""
    policy = Programs(
        gaussian_model, lambda obs, action: pyro.sample("z", dist.Normal(torch.zeros(B, 1), 1.0).to_event(1))
    )
    estimator, action = PosteriorIS(K, Guide()), torch.zeros(B)
    with pytest.raises(ShapeError) as caught:
        estimator.estimate(policy, obs, action, estimator.propose(policy, obs, action))
    assert_teaches(caught.value, "latent `z`")


def test_a_vector_in_the_guide_where_the_model_has_a_number_of_bounded_support(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Gamma(torch.ones(B), 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    guide = dist.Gamma(torch.ones(B, 1), 1.0).to_event(1)
    policy = Programs(model, lambda obs, action: pyro.sample("z", guide))
    for proposal in (Guide(), Mixture()):
        with pytest.raises(ShapeError) as caught:
            PosteriorIS(K, proposal).propose(policy, obs, torch.zeros(B))
        assert_teaches(caught.value, "latent `z`")


def test_model_without_an_action_site(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[..., 0], 1.0))
        pyro.sample("act", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(SiteError) as caught:
        log_joint(Programs(model, gaussian_guide), obs, torch.zeros(B), {"z": torch.zeros(K, B)})
    assert_teaches(caught.value, 'pyro.sample("action", ..., obs=action)', "act")


def test_model_that_forgets_to_observe_the_action(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[..., 0], 1.0))
        pyro.sample("action", dist.Normal(z, 1.0))

    with pytest.raises(SiteError) as caught:
        log_joint(Programs(model, gaussian_guide), obs, torch.zeros(B), {"z": torch.zeros(K, B)})
    assert_teaches(caught.value, "obs=action")


def test_enumeration_of_a_continuous_site(gaussian: GaussianPolicy, obs: Tensor) -> None:
    with pytest.raises(SiteError) as caught:
        Exact().propose(gaussian, obs, torch.zeros(B, 2))
    assert_teaches(caught.value, "latent `z` is continuous", "Quadrature")


def test_enumeration_of_an_infinite_site(obs: Tensor) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Poisson(torch.ones(obs.shape[0])))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    with pytest.raises(SiteError) as caught:
        support(Programs(model, gaussian_guide), obs)
    assert_teaches(caught.value, "infinite")


@pytest.mark.parametrize("objective", [IWAE(K), DoublyReparameterized(K), StickingTheLanding(K)])
def test_pathwise_objective_through_a_categorical(discrete: MixturePolicy, obs: Tensor, objective: IWAE) -> None:
    with pytest.raises(EstimatorError) as caught:
        objective.loss(discrete, obs, torch.zeros(B, dtype=torch.int64))
    assert_teaches(caught.value, "latent `z`", "Categorical")


def test_pathwise_estimator_through_a_categorical(discrete: MixturePolicy, obs: Tensor) -> None:
    with pytest.raises(EstimatorError) as caught:
        Reparameterized(K).propose(discrete, obs, torch.zeros(B, dtype=torch.int64))
    assert_teaches(caught.value, "latent `z`", "discrete latent")


# ------------------------------------------------------------------------------------------------- recorded latents


@pytest.mark.parametrize("value", [-1, 9])
@pytest.mark.parametrize("proposal", [Prior(), Guide(), Mixture()], ids=repr)
def test_recorded_category_that_the_policy_does_not_have(
    discrete: MixturePolicy, obs: Tensor, proposal: Proposal, value: int
) -> None:
    action, recorded = torch.zeros(B, dtype=torch.int64), torch.tensor([0, 1, value, 2, value])
    with pytest.raises(SupportError) as caught:
        ConditionalIS(K, proposal).propose(discrete, obs, action, {"z": recorded})
    assert_teaches(caught.value, "latent `z`", f"{value} in row 2 (2 such rows)", "act(policy, obs).latents")
    with pytest.raises(SupportError):
        Recorded().loss(discrete, obs, action, latents={"z": recorded})


def test_recorded_category_outside_a_vector_of_strangers_sites(obs: Tensor) -> None:
    """Rows are counted past the particles, and a scalar site is a vector's for Pyro's ``to_event``."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Categorical(logits=torch.zeros(B, 2, 3)).to_event(1))
        pyro.sample("action", dist.Normal(z.sum(-1).to(obs.dtype), 1.0), obs=action)

    latents = torch.zeros(K, B, 2, dtype=torch.int64)
    latents[3, 1, 0], latents[0, 4, 1] = 3, 5
    with pytest.raises(SupportError) as caught:
        log_joint(Programs(model, gaussian_guide), obs, torch.zeros(B), {"z": latents})
    assert_teaches(caught.value, "latent `z`", "[3, 0] in row 1 (2 such rows)")


def test_recorded_category_kept_as_a_float(discrete: MixturePolicy, obs: Tensor) -> None:
    action = torch.zeros(B, dtype=torch.int64)
    with pytest.raises(SupportError) as caught:
        ConditionalIS(K).propose(discrete, obs, action, {"z": torch.zeros(B)})
    assert_teaches(caught.value, "torch.int64", "torch.float32")


@pytest.mark.parametrize("estimator", [JointScore(), ConditionalIS(K), Reparameterized(K, retain=True)])
@pytest.mark.parametrize("latents", [None, {}])
def test_estimators_that_need_what_was_recorded(
    gaussian: GaussianPolicy, obs: Tensor, estimator: JointScore, latents: dict[str, Tensor] | None
) -> None:
    with pytest.raises(RecordedLatentError) as caught:
        estimator.propose(gaussian, obs, torch.zeros(B, 2), latents)
    assert_teaches(caught.value, "recorded", "MarkovianIS")


def test_objectives_that_need_what_was_recorded(gaussian: GaussianPolicy, obs: Tensor) -> None:
    action = torch.zeros(B, 2)
    with pytest.raises(RecordedLatentError):
        Recorded().loss(gaussian, obs, action)
    with pytest.raises(EstimatorError) as caught:
        ConditionalWake().loss(gaussian, obs, action)
    assert_teaches(caught.value, "ConditionalIS")
    fresh = PosteriorIS(K).propose(gaussian, obs, action)
    with pytest.raises(EstimatorError):
        ConditionalWake().loss(gaussian, obs, action, particles=fresh)


# ---------------------------------------------------------------------------------------------------- names, options


def test_unknown_estimator_and_typo_in_an_option() -> None:
    with pytest.raises(OptionError) as caught:
        make_estimator("conditonal-is")
    assert_teaches(caught.value, "did you mean conditional-is?")
    with pytest.raises(OptionError) as caught:
        make_estimator("conditional-is", {"num_partciles": 8})
    assert_teaches(caught.value, "`num_partciles`", "did you mean num_particles?")
    with pytest.raises(OptionError) as caught:
        make_estimator("posterior-is", {"proposal": "gide"})
    assert_teaches(caught.value, "did you mean guide?")
    with pytest.raises(OptionError) as caught:
        make_guide_objective("vimc")
    assert_teaches(caught.value, "did you mean vimco?")


def test_mixture_weight_outside_its_interval() -> None:
    for weight in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(OptionError) as caught:
            Mixture(weight)
        assert_teaches(caught.value, "`prior_weight`")


def test_quadrature_refuses_what_it_cannot_settle(obs: Tensor) -> None:
    """A guide ten standard deviations from a peaked posterior: the nodes miss it."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(obs.shape[0]), 1.0))
        pyro.sample("action", dist.Normal(z, 0.01), obs=action)

    policy = Programs(model, lambda obs, action: pyro.sample("z", dist.Normal(action + 3.0, 0.3)))
    with pytest.raises(QuadratureError) as caught:
        Quadrature(16).propose(policy, obs, torch.zeros(B))
    assert_teaches(caught.value, "16 nodes", "doubled")


def test_quadrature_refuses_four_dimensions(obs: Tensor) -> None:
    policy = GaussianPolicy(OBS_SPACE, spaces.Discrete(2), latent_size=4, hidden=(8,))
    with pytest.raises(EstimatorError) as caught:
        Quadrature(4).propose(policy, obs, torch.zeros(B, dtype=torch.int64))
    assert_teaches(caught.value, "at most 3")


def test_every_error_is_also_a_builtin() -> None:
    for name, error in vars(latentpg.errors).items():
        if isinstance(error, type) and issubclass(error, LatentPGError) and error is not LatentPGError:
            assert issubclass(error, (ValueError, TypeError, LookupError, ArithmeticError)), name
