"""What every estimator and guide objective owes its callers, whatever it estimates: shapes, types, rows, errors."""

import dataclasses

import pytest
import torch
from torch import Tensor

from latentpg.errors import EstimatorError, LatentPGError, OptionError, RecordedLatentError, WeightError
from latentpg.estimators import Estimate, Estimator, Particles, make_estimator, make_guide_objective
from latentpg.estimators.guides import GuideObjective
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import LatentPolicy, Latents, act, model_parameters, row_blocks
from tests.estimators import ESTIMATOR_CASES, GUIDE_CASES, EstimatorCase, GuideCase, Target

ROWS = (3, 4)  # K is 4: one with K and B apart, and one with K = B, where a wrong broadcast hides
ESTIMATORS = pytest.mark.parametrize("case", ESTIMATOR_CASES, ids=lambda case: case.id)
OBJECTIVES = pytest.mark.parametrize("case", GUIDE_CASES, ids=lambda case: case.id)
SIZED_ESTIMATORS = pytest.mark.parametrize(
    "case", [case for case in ESTIMATOR_CASES if not case.fixed_size], ids=lambda case: case.id
)
SIZED_OBJECTIVES = pytest.mark.parametrize(
    "case", [case for case in GUIDE_CASES if not case.fixed_size and case.particles is None], ids=lambda case: case.id
)
PATHWISE_OBJECTIVES = pytest.mark.parametrize(
    "case", [case for case in GUIDE_CASES if "step" not in case.kinds], ids=lambda case: case.id
)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    policy: LatentPolicy
    obs: Tensor
    action: Tensor
    latents: dict[str, Tensor]


def discrete(rows: int) -> Data:
    policy = TabularLatentPolicy.random(num_states=rows, num_latents=3, num_actions=2)
    acted = act(policy, torch.arange(rows))
    return Data(policy, torch.arange(rows), acted.action, dict(acted.latents))


def gaussian(rows: int) -> Data:
    policy = LinearGaussianPolicy.random(num_states=rows, latent_size=2, action_size=1)
    acted = act(policy, torch.arange(rows))
    return Data(policy, torch.arange(rows), acted.action, dict(acted.latents))


def data_for(case: EstimatorCase | GuideCase, rows: int) -> Data:
    return discrete(rows) if "step" in case.kinds else gaussian(rows)


def propose(case: EstimatorCase, data: Data) -> tuple[Estimator, Particles]:
    estimator = case.make(4)
    return estimator, estimator.propose(data.policy, data.obs, data.action, data.latents)


def estimate(estimator: Estimator, data: Data, particles: Particles) -> Estimate:
    return estimator.estimate(data.policy, data.obs, data.action, particles)


@ESTIMATORS
@pytest.mark.parametrize("rows", ROWS)
def test_shapes_and_types(case: EstimatorCase, rows: int) -> None:
    data = data_for(case, rows)
    estimator, particles = propose(case, data)
    result = estimate(estimator, data, particles)
    assert isinstance(estimator, Estimator)
    assert result.log_prob.shape == (rows,) and result.log_prob.dtype == torch.float64
    assert bool(torch.isfinite(result.log_prob).all())
    assert particles.num_rows == rows
    for name, value in particles.latents.items():
        assert value.shape[:2] == particles.log_proposal.shape
        if name in data.latents:
            assert value.dtype == data.latents[name].dtype
    for value in result.info.values():
        assert value.shape == (rows,) and not value.requires_grad


@ESTIMATORS
def test_particles_carry_no_gradient_and_the_estimate_reaches_every_model_parameter_and_no_other(
    case: EstimatorCase,
) -> None:
    data = data_for(case, 4)
    estimator, particles = propose(case, data)
    assert not particles.log_proposal.requires_grad
    assert not any(value.requires_grad for value in particles.latents.values())
    value = estimate(estimator, data, particles).log_prob.sum()
    for parameter in torch.autograd.grad(value, model_parameters(data.policy), retain_graph=True):
        assert bool((parameter != 0).any())
    guide = torch.autograd.grad(value, list(data.policy.guide_parameters()), allow_unused=True, materialize_grads=True)
    assert not any(bool((parameter != 0).any()) for parameter in guide)


@ESTIMATORS
def test_rows_do_not_interact(case: EstimatorCase) -> None:
    """A minibatch of stored particles, in any order, is the same rows of the whole."""
    data = data_for(case, 4)
    estimator, particles = propose(case, data)
    whole = estimate(estimator, data, particles).log_prob
    index = torch.tensor([2, 0])
    part = Data(data.policy, data.obs[index], data.action[index], {})
    assert torch.allclose(estimate(estimator, part, particles.rows(index)).log_prob, whole[index], rtol=1e-14)


@ESTIMATORS
def test_blocks_of_rows_change_nothing(case: EstimatorCase) -> None:
    data = data_for(case, 4)
    estimator, particles = propose(case, data)

    def gradients() -> tuple[Tensor, Tensor]:
        value = estimate(estimator, data, particles).log_prob
        parts = torch.autograd.grad(value.sum(), model_parameters(data.policy))
        return value, torch.cat([part.flatten() for part in parts])

    whole = gradients()
    with row_blocks(5):
        for one, other in zip(gradients(), whole, strict=True):
            assert torch.allclose(one, other, rtol=1e-13, atol=1e-15)


@ESTIMATORS
def test_the_ratio_is_one_where_nothing_has_moved(case: EstimatorCase) -> None:
    data = data_for(case, 4)
    estimator, particles = propose(case, data)
    assert torch.equal(estimate(estimator, data, particles).log_prob, estimate(estimator, data, particles).log_prob)


@ESTIMATORS
def test_a_recorded_latent_is_asked_for_where_it_is_needed(case: EstimatorCase) -> None:
    data = data_for(case, 4)
    estimator = case.make(4)
    nothing: list[Latents | None] = [None, {}]
    for absent in nothing:
        if case.needs_recorded:
            with pytest.raises(RecordedLatentError, match="no recorded latent"):
                estimator.propose(data.policy, data.obs, data.action, absent)
        else:
            particles = estimator.propose(data.policy, data.obs, data.action, absent)
            assert bool(torch.isfinite(estimate(estimator, data, particles).log_prob).all())


@ESTIMATORS
def test_a_retained_latent_is_in_slot_0_and_its_weight_is_reported(case: EstimatorCase) -> None:
    data = data_for(case, 4)
    estimator, particles = propose(case, data)
    assert particles.retained == case.uses_recorded
    share = estimate(estimator, data, particles).info.get("recorded_weight")
    assert (share is not None) == case.uses_recorded
    if case.needs_recorded and "step" in case.kinds:
        assert torch.equal(particles.latents["z"][0], data.latents["z"])


@SIZED_ESTIMATORS
def test_too_few_particles_are_refused(case: EstimatorCase) -> None:
    for num_particles in range(case.fewest):
        with pytest.raises(OptionError if num_particles < 1 and case.fewest == 1 else LatentPGError):
            case.make(num_particles)
    with pytest.raises(LatentPGError):
        case.make(-1)
    case.make(case.fewest)


@ESTIMATORS
def test_a_broken_parameter_is_named_a_bad_weight(case: EstimatorCase) -> None:
    data = data_for(case, 4)
    estimator, particles = propose(case, data)
    with torch.no_grad():
        next(iter(data.policy.decoder_parameters()))[2] = torch.nan
    with pytest.raises(WeightError, match="row 2"):
        estimate(estimator, data, particles)


@ESTIMATORS
def test_a_case_is_its_configuration(case: EstimatorCase) -> None:
    assert case.make(4) == case.make(4)
    assert repr(case.make(4)).startswith(type(case.make(4)).__name__ + "(")
    assert dataclasses.is_dataclass(case.make(4)) and case.make(4).__dataclass_params__.frozen  # type: ignore[attr-defined]
    make_estimator(case.name)


def loss(case: GuideCase, data: Data) -> Tensor:
    objective = case.make(4)
    assert isinstance(objective, GuideObjective)
    particles = None
    if case.particles is not None:
        particles = case.particles(4).propose(data.policy, data.obs, data.action, data.latents)
    return objective.loss(data.policy, data.obs, data.action, particles=particles, latents=data.latents)


@OBJECTIVES
@pytest.mark.parametrize("rows", ROWS)
def test_a_guide_objective_gives_a_row_each_and_moves_every_guide_parameter(case: GuideCase, rows: int) -> None:
    data = data_for(case, rows)
    value = loss(case, data)
    assert value.shape == (rows,) and value.dtype == torch.float64 and bool(torch.isfinite(value).all())
    for parameter in torch.autograd.grad(value.sum(), list(data.policy.guide_parameters())):
        assert bool((parameter != 0).any())
    make_guide_objective(case.name)


@pytest.mark.parametrize(
    "case",
    [case for case in GUIDE_CASES if case.target in (Target.INCLUSIVE, Target.DREAM, Target.SELF_NORMALISED)],
    ids=lambda case: case.id,
)
def test_an_objective_of_the_inclusive_divergence_leaves_the_model_alone(case: GuideCase) -> None:
    """The model's part of it is constant; what a careless backward() would put into theta and phi is no gradient."""
    data = data_for(case, 4)
    loss(case, data).sum().backward()
    assert all(parameter.grad is None for parameter in model_parameters(data.policy))
    assert all(parameter.grad is not None for parameter in data.policy.guide_parameters())


@OBJECTIVES
def test_a_guide_objective_without_what_it_works_on_says_so(case: GuideCase) -> None:
    data = data_for(case, 4)
    if case.particles is not None:
        with pytest.raises(EstimatorError, match="no retained particles"):
            case.make(4).loss(data.policy, data.obs, data.action)
    elif case.uses_recorded:
        with pytest.raises(RecordedLatentError, match="no recorded latent"):
            case.make(4).loss(data.policy, data.obs, data.action)
    else:
        case.make(4).loss(data.policy, data.obs, data.action)


@PATHWISE_OBJECTIVES
def test_pathwise_objectives_refuse_a_discrete_latent(case: GuideCase) -> None:
    data = discrete(4)
    with pytest.raises(EstimatorError, match="no pathwise gradient"):
        case.make(4).loss(data.policy, data.obs, data.action)


@SIZED_OBJECTIVES
def test_a_guide_objective_refuses_too_few_particles(case: GuideCase) -> None:
    for num_particles in (*range(case.fewest), -1):
        with pytest.raises(LatentPGError):
            case.make(num_particles)
