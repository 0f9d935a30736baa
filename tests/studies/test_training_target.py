"""Training as a target of a study: what is repeated, what is looked at again, and what is measured."""

import math
from dataclasses import replace

import pytest
import torch

from latentpg.errors import OptionError, StudyError
from latentpg.estimators import Exact, WakeSleep
from latentpg.estimators.guides import Wake
from latentpg.numerics.rng import seeded
from latentpg.studies import Line, Study, facets, find, pages, run_study, summarize, tidy_rows
from latentpg.studies.gaussian_mixture import GaussianMixtureData, mixture_metrics
from latentpg.studies.problem import Problem
from latentpg.studies.procedures import Chosen, Traced
from latentpg.studies.skew_normal import SkewNormal, SkewNormalData
from latentpg.studies.training import fit
from latentpg.studies.training_target import Training
from tests.studies.toys import ToySource

PAIR = Line("wake-sleep", objective="wake")
EXACT = Line("exact", objective="wake")


def study(*lines: Line, **changes: object) -> Study:
    small = Study(
        name="small",
        title="A small training",
        source=GaussianMixtureData(num_rows=8, num_components=3, batch_size=4),
        targets={"training": Training(learning_rate=0.05)},
        lines=lines or (EXACT, PAIR),
        axes={"step": (2, 5), "num_particles": (2, 3)},
        x="step",
        panels="num_particles",
        num_replicates=4,
        num_timings=4,
    )
    return replace(small, **changes)  # type: ignore[arg-type]


def found(traced: list[Traced], measure: str, step: int) -> Traced:
    return next(each for each in traced if each.measure == measure and each.step == step)


def carry_out(problem: Problem, target: Training, chosen: Chosen, *steps: int, num_replicates: int = 4) -> list[Traced]:
    with seeded(0):
        return list(target.carry_out(problem, chosen, steps=steps, num_replicates=num_replicates))


def test_the_steps_of_one_run_are_one_piece_of_work() -> None:
    small = study()
    assert list(small.jobs()) == [
        "training | exact + wake",
        "training | wake-sleep + wake | num_particles=2",
        "training | wake-sleep + wake | num_particles=3",
    ]
    assert [len(cells) for cells in small.jobs().values()] == [2, 2, 2]
    assert len(list(small.cells())) == 6


def test_every_step_of_every_line_is_measured() -> None:
    result = run_study(study())
    names = {"weight_distance", "guide_distance", "guide_distance_to_model", "seconds"}
    for cell in result.study.cells():
        assert {m.measure for m in result.measured if m.cell == cell} == names
    rows = tidy_rows(result)
    assert {(row["estimator"], row["objective"], row["step"], row["num_particles"]) for row in rows} == {
        ("exact", "wake", 2, None),
        ("exact", "wake", 5, None),
        *(("wake-sleep", "wake", step, size) for step in (2, 5) for size in (2, 3)),
    }
    assert {row["num_replicates"] for row in rows} == {4} and not any(row["exact"] for row in rows)


def test_an_earlier_look_does_not_change_what_comes_later() -> None:
    problem = GaussianMixtureData(num_rows=8, num_components=3).build(0)
    chosen = Chosen(WakeSleep(3), Wake(3))
    often = carry_out(problem, Training(), chosen, 1, 2, 6)
    once = carry_out(problem, Training(), chosen, 6)
    assert found(often, "weight_distance", 6) == found(once, "weight_distance", 6)


def test_repetitions_are_apart_and_start_at_the_start() -> None:
    problem = GaussianMixtureData(num_rows=8, num_components=3).build(0)
    start = carry_out(problem, Training(), Chosen(Exact(), Wake()), 0)
    weights = found(start, "weight_distance", 0).interval
    assert weights.low == pytest.approx(weights.high)  # all priors start alike
    assert weights.value == pytest.approx(float(mixture_metrics(problem.policy, problem.action)["weight_distance"]))  # type: ignore[arg-type]
    guides = found(start, "guide_distance", 0).interval
    assert guides.high > 1.001 * guides.low  # and guides are drawn
    assert found(start, "guide_distance", 0).count == 4


def test_a_source_without_a_word_is_measured_by_what_is_exact() -> None:
    problem = ToySource().build(0)
    trained = carry_out(problem, Training(learning_rate=0.03), Chosen(Exact(), Wake()), 0, 30)
    before, after = (found(trained, "log_likelihood", step).interval.value for step in (0, 30))
    assert before < after < 0
    assert found(trained, "guide_divergence", 30).interval.value < found(trained, "guide_divergence", 0).interval.value
    # the same steps by hand
    again = ToySource().build(0)
    fit(
        again.policy,
        (again.obs, again.action),
        estimator=Exact(),
        objective=Wake(),
        num_steps=30,
        learning_rate=0.03,
        record_every=30,
        record=dict[str, float],
    )
    every = Exact().propose(again.policy, again.obs, again.action)
    log_pi = Exact().estimate(again.policy, again.obs, again.action, every).log_prob.mean().detach()
    assert float(log_pi) == pytest.approx(after)


def test_without_anything_exact_there_is_nothing_to_measure() -> None:
    problem = replace(ToySource().build(0), exact=None)
    with pytest.raises(StudyError, match="nothing exact is known"):
        run_study(study(axes={"step": (1,)}, panels=None, source=_Fixed(problem), lines=(EXACT,)))


def test_the_learning_rate_decays_as_stated() -> None:
    target = Training(learning_rate=0.3, decay_steps=10)
    assert [target.rate(step) for step in (0, 10, 20)] == pytest.approx([0.3, 0.15, 0.1])
    assert Training(learning_rate=0.3).rate(10**6) == 0.3


def test_rows_of_the_skew_normal_are_repetitions_and_their_averages_look_back() -> None:
    problem = SkewNormalData(num_rows=3).build(0)
    traced = carry_out(problem, Training(learning_rate=0.1), Chosen(WakeSleep(2), Wake(2)), 1, 4)
    assert found(traced, "fitted_variance", 4).count == 12
    truth = found(traced, "true_variance", 4)
    assert truth.exact and truth.interval.value == SkewNormal().variance
    # the first step of Adam is the whole rate in either direction: from the standard normal, a variance of exp(±0.2)
    assert problem.trainee is not None
    trainee = problem.trainee()
    assert [float(value) for value in trainee.measure()["fitted_variance"]] == [1.0] * 3

    def record() -> dict[str, float]:
        trainee.observe()
        return {}

    fit(
        trainee.policy,
        trainee.batches,
        estimator=WakeSleep(2),
        objective=Wake(2),
        num_steps=1,
        learning_rate=0.1,
        record_every=1,
        record=record,
    )
    logs = trainee.measure()["fitted_variance"].log().abs()
    # it was observed at the start and after the step; the last half of two is the second
    assert torch.allclose(logs, torch.full((3,), 0.2, dtype=torch.float64), atol=1e-4)


def test_summary_and_findings_tell_the_ends() -> None:
    result = run_study(study())
    assert [facet.label for facet in facets(result.study)] == ["training, num_particles=2", "training, num_particles=3"]
    assert [page.label for page in pages(result.study)] == ["training"]
    summary = summarize(result, facets(result.study)[0])
    assert summary.columns[:3] == ("estimator", "distance of the weights step=2", "distance of the weights step=5")
    assert [row[0] for row in summary.rows] == ["exact + wake", "wake-sleep + wake"]
    of_exact, of_pair = find(result)
    assert of_exact.agrees is None and "at K" not in of_exact.text.replace("(at", "")
    assert "at K = 2" in of_pair.text and "at K = 3" in of_pair.text and "(at step = 5)" in of_pair.text


@pytest.mark.parametrize("mistake", [{"step": 1.5}, {"step": True}, {"decay_steps": -1}, {"learning_rate": math.nan}])
@pytest.mark.production
def test_numbers_that_cannot_be_are_refused(mistake: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="target training"):
        Training(**mistake)  # type: ignore[arg-type]


class _Fixed:
    """A source whose problem is given."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def build(self, seed: int) -> Problem:
        """Return it."""
        return self.problem

    def describe(self) -> str:
        """Say so."""
        return "given rows"
