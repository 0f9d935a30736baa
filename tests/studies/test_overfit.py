"""Steps on stored particles: the first one written out, what is real of the gain, and what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError
from latentpg.estimators import (
    ELBO,
    ConditionalIS,
    Estimate,
    Estimator,
    Exact,
    JointScore,
    Particles,
    PosteriorIS,
    Prior,
)
from latentpg.numerics.rng import seeded
from latentpg.oracles import TabularLatentPolicy
from latentpg.programs import LatentPolicy, Latents, Observations
from latentpg.studies import Chosen, Line, Problem, Study, Traced, run_study
from latentpg.studies.overfit import Overfit
from latentpg.studies.toys import RandomToys

EXACT = 1e-10
"""Rounding of float64 sums of terms of order one."""

RATE = 0.05


@pytest.fixture(scope="module")
def problem() -> Problem:
    return RandomToys(num_rows=12, num_latents=3, num_actions=3).build(2)


@dataclass(frozen=True)
class Watched:
    """An estimator that notes which latents it was handed, and otherwise is the joint score of zeros."""

    handed: list[Latents | None] = field(default_factory=list)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        self.handed.append(latents)
        return JointScore().propose(policy, obs, action, latents or {"z": torch.zeros_like(action)})

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return JointScore().estimate(policy, obs, action, particles)


def carried_out(
    problem: Problem,
    estimator: Estimator,
    *,
    steps: Sequence[int] = (1,),
    num_replicates: int = 4,
    seed: int = 0,
    keeps: bool = True,
    **options: Any,  # noqa: ANN401 (a target's fields)
) -> Sequence[Traced]:
    target = Overfit(**{"learning_rate": RATE, **options})
    with seeded(seed):
        return target.carry_out(
            problem, Chosen(estimator, keeps_recorded=keeps), steps=steps, num_replicates=num_replicates
        )


def at(traced: Sequence[Traced], step: int) -> Mapping[str, Traced]:
    return {each.measure: each for each in traced if each.step == step}


def means(traced: Sequence[Traced], step: int) -> Mapping[str, float]:
    return {name: each.interval.value for name, each in at(traced, step).items()}


@pytest.mark.parametrize("surrogate", ["importance-weighted", "ppo-clip"])
def test_the_first_step_and_its_gains_written_out(problem: Problem, surrogate: str) -> None:
    """Adam's first step is the rate times the gradient's sign; the gradient is A times that of the recorded joint."""
    policy, rows, action = problem.policy, torch.arange(12), problem.action
    assert isinstance(policy, TabularLatentPolicy) and problem.redraw is not None
    rate = 0.5  # far enough for the clip
    target = Overfit(learning_rate=rate, surrogate=surrogate)  # type: ignore[arg-type]
    with seeded(7):
        found = target.repetition(problem, Redrawing(problem), [1])[1]
    with seeded(7):
        advantage = torch.randn(12, dtype=torch.float64)
        z, fresh = problem.redraw()["z"], problem.redraw()["z"]

    prior, decoder = policy.log_prior().exp().detach(), policy.log_decoder().exp().detach()
    towards_prior = -prior
    towards_prior[rows, z] += 1
    towards_decoder = torch.zeros_like(decoder)
    towards_decoder[rows, z] = -decoder[rows, z]
    towards_decoder[rows, z, action] += 1
    new = TabularLatentPolicy(
        policy.prior_logits + rate * (advantage[:, None] * towards_prior).sign(),
        policy.decoder_logits + rate * (advantage[:, None, None] * towards_decoder).sign(),
    )
    sizes = [(advantage[:, None] * each.reshape(12, -1)).abs() / 12 for each in (towards_prior, towards_decoder)]
    least = min(float(size[size > 0].min()) for size in sizes)
    near = rate * 1e-8 / least * 10  # what Adam's 1e-8 beneath the fraction can do, with a slope of 10 to spare
    assert near < 1e-3

    def gain(log_ratio: Tensor) -> float:
        ratio = log_ratio.exp()
        if surrogate == "ppo-clip":
            ratio = torch.where(advantage > 0, ratio.clamp(max=1.2), ratio.clamp(min=0.8))
        return float(((ratio - 1) * advantage).mean())

    joint = (new.log_joint() - policy.log_joint()).detach()
    marginal = (new.log_pi() - policy.log_pi()).detach()
    expected = {
        "stored_gain": gain(joint[rows, z, action]),
        "exact_gain": gain(marginal[rows, action]),
        "fresh_gain": gain(joint[rows, fresh, action]),
        "exact_kl": float((policy.log_pi().detach().exp() * -marginal).sum(1).mean()),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=near), name
    assert found["overfit_gap"] == found["stored_gain"] - found["exact_gain"]


@dataclass(frozen=True)
class Redrawing:
    """The joint score of latents drawn anew from the posterior."""

    problem: Problem

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        assert self.problem.redraw is not None
        return JointScore().propose(policy, obs, action, self.problem.redraw())

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return JointScore().estimate(policy, obs, action, particles)


def test_before_the_first_step_nothing_is_gained(problem: Problem) -> None:
    for estimator in (Exact(), ConditionalIS(3, Prior()), ELBO(2)):
        assert all(abs(value) < EXACT for value in means(carried_out(problem, estimator, steps=[0]), 0).values())


def test_the_exact_ratio_cannot_be_overfitted(problem: Problem) -> None:
    traced = at(carried_out(problem, Exact(), steps=[5], keeps=False), 5)
    assert traced["overfit_gap"].interval.value == 0.0 < traced["stored_gain"].interval.low
    assert traced["fresh_gain"].interval == traced["stored_gain"].interval
    assert {each.count for each in traced.values()} == {4} and not any(each.exact for each in traced.values())


def test_the_gap_grows_with_steps_and_falls_with_particles(problem: Problem) -> None:
    one, many = (
        carried_out(problem, ConditionalIS(size, Prior()), steps=[1, 10], num_replicates=12) for size in (1, 16)
    )
    assert at(one, 10)["overfit_gap"].interval.low > 2 * at(one, 1)["overfit_gap"].interval.high
    assert at(one, 10)["overfit_gap"].interval.low > 2 * at(many, 10)["overfit_gap"].interval.high
    assert at(many, 10)["overfit_gap"].interval.low > 0
    assert at(one, 10)["exact_gain"].interval.high < at(many, 10)["exact_gain"].interval.low


def test_particles_not_stepped_on_tell_what_is_real(problem: Problem) -> None:
    """They gain what the exact ratio does, in expectation, as the stored ones do not."""
    traced = at(carried_out(problem, ConditionalIS(2, Prior()), steps=[5], num_replicates=60), 5)
    fresh, exact, stored = (traced[name].interval for name in ("fresh_gain", "exact_gain", "stored_gain"))
    assert fresh.low < exact.value < fresh.high < stored.low


def test_looking_changes_nothing(problem: Problem) -> None:
    before = [parameter.clone() for parameter in problem.policy.parameters()]  # type: ignore[attr-defined]
    looked = carried_out(problem, ConditionalIS(2, Prior()), steps=[0, 1, 2, 3])
    assert means(looked, 3) == means(carried_out(problem, ConditionalIS(2, Prior()), steps=[3]), 3)
    after = problem.policy.parameters()  # type: ignore[attr-defined]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_what_keeps_a_latent_gets_fresh_ones_and_nothing_else_gets_any(problem: Problem) -> None:
    keeping, other = Watched(), Watched()
    carried_out(problem, keeping, num_replicates=5)
    drawn = [latents["z"] for latents in keeping.handed if latents is not None]
    assert len(drawn) == len(keeping.handed) == 10  # stored and fresh ones of each repetition
    assert len({tuple(z.tolist()) for z in drawn}) > 5
    carried_out(problem, other, keeps=False)
    assert other.handed == [None] * 8


def test_the_divergence_is_left_out_where_actions_cannot_be_listed(problem: Problem) -> None:
    assert "exact_kl" in means(carried_out(problem, JointScore()), 1)
    assert "exact_kl" not in means(carried_out(replace(problem, every_action=None), JointScore()), 1)


def test_a_source_without_a_reference_or_posterior_is_refused(problem: Problem) -> None:
    with pytest.raises(EstimatorError, match="nothing exact is known of this source"):
        carried_out(replace(problem, exact=None), PosteriorIS(2), keeps=False)
    unknown = replace(problem, redraw=None)
    with pytest.raises(EstimatorError, match="the posterior of this source cannot be drawn from"):
        carried_out(unknown, ConditionalIS(2))
    carried_out(unknown, PosteriorIS(2), keeps=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, "`step`"),
        ({"learning_rate": 0.0}, "`learning_rate`"),
        ({"epsilon": -0.1}, "`epsilon`"),
        ({"surrogate": "ppo"}, "unknown surrogate"),
    ],
)
@pytest.mark.production  # the type checker would refuse the unknown surrogate before we do
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Overfit(**options)


def test_a_study_measures_all_steps_of_one_run() -> None:
    study = Study(
        "overfit",
        "Overfit",
        RandomToys(num_rows=4),
        (Line("exact"), Line("conditional-is", "prior")),
        {"overfit": Overfit(learning_rate=RATE)},
        axes={"num_particles": (1, 2), "step": (1, 3)},
        panels="step",
        num_replicates=4,
    )
    assert len(study.jobs()) == 3 and len(list(study.cells())) == 6
    result = run_study(study)
    kept = [m for m in result.measured if m.measure == "overfit_gap" and m.cell.line.estimator == "conditional-is"]
    assert {(m.cell.num_particles, m.cell.at("step")) for m in kept} == {(1, 1), (1, 3), (2, 1), (2, 3)}
    assert all(m.count == 4 and not m.exact for m in kept)
