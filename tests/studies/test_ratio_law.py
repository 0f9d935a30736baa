"""The law of the ratio, against every outcome of the library's own code, and what theory says of it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError
from latentpg.estimators import (
    ELBO,
    ConditionalIS,
    Estimator,
    Exact,
    Guide,
    JointScore,
    MarkovianIS,
    Mixture,
    PosteriorIS,
    Prior,
    Proposal,
    SplitIS,
    WakeSleep,
)
from latentpg.oracles import TabularLatentPolicy, enumerate_draws
from latentpg.policies import GaussianPolicy
from latentpg.programs import LatentPolicy, act
from latentpg.studies import Chosen, Line, Problem, Study, pages, ratio_law, run_study
from latentpg.studies.figures import caption_of
from latentpg.studies.plots import PLOTS
from latentpg.studies.ratio_law import RatioLaw
from latentpg.studies.targets import moved
from latentpg.studies.toys import RandomToys

EXACT = 1e-10
"""Rounding: what float64 sums of some thousand terms of order one may be off by."""

DRIFT, EPSILON = 0.8, 0.2
"""So far that ratios leave the clip's interval on both sides."""

SIZES = (1, 2, 3, 4, 6, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return RandomToys(num_rows=2, num_latents=3, num_actions=3).build(1)


def found(problem: Problem, estimator: Estimator, drift: float = DRIFT) -> Mapping[str, float]:
    target = RatioLaw(drift=drift, epsilon=EPSILON)
    traced = target.carry_out(problem, Chosen(estimator), steps=[0], num_replicates=4)
    assert all(each.exact and each.step is None and each.interval.low == each.interval.high for each in traced)
    return {each.measure: each.interval.value for each in traced}


def tables(policy: LatentPolicy) -> TabularLatentPolicy:
    assert isinstance(policy, TabularLatentPolicy)
    return policy


def by_every_outcome(problem: Problem, estimator: Estimator) -> Mapping[str, float]:
    """Act, propose and estimate on every outcome of the draws."""
    old, new, obs = problem.policy, moved(problem, DRIFT), problem.obs
    assert isinstance(obs, Tensor)

    def program(index: Tensor) -> Tensor:
        acted = act(old, obs[index])
        rows = obs[index], acted.action
        particles = estimator.propose(old, *rows, acted.latents)
        with torch.no_grad():
            after, before = (estimator.estimate(policy, *rows, particles).log_prob for policy in (new, old))
        return after - before

    every = enumerate_draws(program, num_rows=len(obs))
    ratio = every.result.exp()

    def mean(values: Tensor) -> Tensor:
        return every.expectation(values)

    return {
        "ratio_mean": float(mean(ratio).mean()),
        "ratio_variance": float((mean(ratio**2) - mean(ratio) ** 2).mean()),
        "ratio_kl": float(mean(-ratio.log()).mean()),
        "ratio_k3": float(mean(ratio - 1 - ratio.log()).mean()),
        "clip_plus": float(mean(ratio.clamp(max=1 + EPSILON)).mean()),
        "clip_minus": float(mean(-ratio.clamp(min=1 - EPSILON)).mean()),
    }


@pytest.mark.parametrize(
    "estimator",
    [
        Exact(),
        JointScore(),
        *(ConditionalIS(size, Prior()) for size in (1, 2, 3)),
        *(ConditionalIS(size, Guide()) for size in (2, 3)),
        ConditionalIS(2, Mixture(0.3)),
        *(PosteriorIS(size, Guide()) for size in (1, 2, 3)),
        PosteriorIS(2, Prior()),
        SplitIS(1, 2, Guide()),
        WakeSleep(2),
        ELBO(3),
    ],
    ids=str,
)
def test_the_law_is_that_of_the_librarys_own_code(problem: Problem, estimator: Estimator) -> None:
    assert found(problem, estimator) == pytest.approx(by_every_outcome(problem, estimator), abs=EXACT)


def test_the_marginal_is_that_of_the_tables(problem: Problem) -> None:
    old, new = (tables(policy).log_pi().detach() for policy in (problem.policy, moved(problem, DRIFT)))
    values = found(problem, Exact())
    assert values["ratio_kl"] == pytest.approx(float((old.exp() * (old - new)).sum(1).mean()), abs=EXACT)
    variance = (old.exp() * ((new - old).exp() - 1) ** 2).sum(1).mean()
    assert values["ratio_variance"] == pytest.approx(float(variance), abs=EXACT)


@pytest.mark.parametrize("proposal", [Prior(), Guide(), Mixture(0.5)], ids=str)
def test_retained_particles_lead_from_the_joint_down_to_the_marginal(problem: Problem, proposal: Proposal) -> None:
    joint, marginal = found(problem, JointScore()), found(problem, Exact())
    path = [found(problem, ConditionalIS(size, proposal)) for size in SIZES]
    assert path[0] == pytest.approx(joint, abs=EXACT)
    for name, sign in (
        ("ratio_variance", 1),
        ("ratio_kl", 1),
        ("ratio_k3", 1),
        ("clip_plus", -1),
        ("clip_minus", -1),
    ):
        values = [sign * each[name] for each in path]
        assert all(after < before for before, after in pairwise(values)), name
        assert values[-1] > sign * marginal[name]
        # what is left at K = 64 is less than a twentieth of the way
        assert values[-1] - sign * marginal[name] < 0.05 * (values[0] - sign * marginal[name])


def test_a_mean_of_one_is_kept_by_what_retains_and_by_nothing_else(problem: Problem) -> None:
    for kept in (Exact(), JointScore(), ConditionalIS(5, Prior()), ConditionalIS(5, Guide())):
        assert found(problem, kept)["ratio_mean"] == pytest.approx(1, abs=EXACT)
    for lost in (PosteriorIS(5, Prior()), PosteriorIS(5, Guide()), WakeSleep(5), ELBO(5)):
        assert abs(found(problem, lost)["ratio_mean"] - 1) > 1e-3


def test_more_particles_do_not_change_what_a_bound_says_on_average(problem: Problem) -> None:
    assert found(problem, ELBO(16))["ratio_kl"] == pytest.approx(found(problem, ELBO(1))["ratio_kl"], abs=EXACT)


def test_a_small_drift_leaves_digits(problem: Problem) -> None:
    """The divergence is half the variance to lowest order, which a difference of numbers near 1 would not show."""
    values = found(problem, ConditionalIS(4, Prior()), drift=1e-5)
    assert values["ratio_kl"] == pytest.approx(values["ratio_variance"] / 2, rel=1e-3)


def test_rows_may_come_in_pieces(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(problem, ConditionalIS(4, Prior()))
    monkeypatch.setattr(ratio_law, "AT_ONCE", 90)  # 15 sets of 3 values each: two rows at once of six
    assert found(problem, ConditionalIS(4, Prior())) == pytest.approx(whole, abs=EXACT)


def test_sources_that_cannot_be_enumerated_are_refused(problem: Problem) -> None:
    with pytest.raises(EstimatorError, match="actions of this source cannot be enumerated"):
        found(RandomToys(num_rows=2, span=2).build(0), Exact())
    with pytest.raises(EstimatorError, match="not all there are"):
        found(replace(problem, every_action=torch.arange(2)), Exact())
    obs = torch.zeros(2, 1)
    policy = GaussianPolicy(spaces.Box(-1, 1, (1,)), spaces.Discrete(2))
    with pytest.raises(EstimatorError, match="latents of this source cannot be enumerated"):
        found(Problem(policy, obs, torch.zeros(2, dtype=torch.int64), every_action=torch.arange(2)), JointScore())


def test_estimators_without_a_law_and_too_many_sets_are_refused(problem: Problem) -> None:
    with pytest.raises(EstimatorError, match="no law of the ratio is known for MarkovianIS"):
        found(problem, MarkovianIS(2))
    with pytest.raises(EstimatorError, match="too many sets of particles"):
        found(problem, ConditionalIS(1000))


def test_a_hole_in_the_proposal_is_refused(problem: Problem) -> None:
    policy = TabularLatentPolicy(
        tables(problem.policy).prior_logits, tables(problem.policy).decoder_logits, torch.zeros(2, 3, 3)
    )
    policy.guide_logits.data[0, 0, 0] = -torch.inf
    holed = replace(problem, policy=policy)
    assert found(holed, ConditionalIS(2, Prior()))["ratio_mean"] == pytest.approx(1, abs=EXACT)
    with pytest.raises(EstimatorError, match="probability zero"):
        found(holed, ConditionalIS(2, Guide()))


@pytest.mark.parametrize("name", ["drift", "epsilon"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(OptionError, match=f"`{name}`"):
        RatioLaw(**{name: 0.0})


def test_a_study_names_and_skips_what_has_no_law() -> None:
    study = Study(
        "law",
        "A law",
        RandomToys(num_rows=2),
        (Line("conditional-is", "prior"), Line("markovian-is", "prior")),
        {"ratio-law": RatioLaw()},
        axes={"num_particles": (2, 3), "drift": (0.1, 1.0)},
        skip_invalid=True,
    )
    result = run_study(study)
    assert {each.cell.line.estimator for each in result.skipped} == {"markovian-is"}
    assert {each.reason for each in result.skipped} == {"no law of the ratio is known for MarkovianIS"}
    values = {
        (m.cell.at("drift"), m.cell.num_particles): m.interval.value
        for m in result.measured
        if m.measure == "ratio_variance"
    }
    assert len(values) == 4 and values[1.0, 2] > values[1.0, 3] > values[0.1, 2] > values[0.1, 3]


def test_captions_claim_no_intervals_for_sums() -> None:
    study = Study("law", "A law", RandomToys(num_rows=2), (Line("joint-score"),), {"ratio-law": RatioLaw()})
    plot = next(plot for plot in PLOTS if plot.name == "ratio_kl")
    caption = caption_of(plot, run_study(study), pages(study)[0], command="a command")
    assert caption.endswith("; nothing is drawn, seed 0. Exact sums. Command: a command")
