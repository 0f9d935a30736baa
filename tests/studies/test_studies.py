"""Studies from their description to the report."""

import csv
import json
import re
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from rich.console import Console

from latentpg.errors import OptionError, StudyError
from latentpg.estimators import ESTIMATORS, SplitIS
from latentpg.numerics.statistics import Interval
from latentpg.programs import num_rows
from latentpg.runs import FORMAT_VERSION, create_run_folder
from latentpg.studies import (
    Facet,
    Line,
    Measured,
    Outputs,
    Source,
    Study,
    StudyResult,
    build_problem,
    facets,
    find,
    make_study,
    merge_skipped,
    named_studies,
    progress,
    run_study,
    summarize,
    tidy_rows,
    write_outputs,
)
from latentpg.studies.expectations import EXPECTATIONS, Kind
from latentpg.studies.gaussian_mixture import GaussianMixtureData
from latentpg.studies.plots import OF_ESTIMATES
from latentpg.studies.tables import _chance_of_misses, bias_slope, curve
from latentpg.studies.transitions import PolicyTransitions
from tests.studies.toys import ToySource, cell, toy_study


def run(study: Study) -> StudyResult:
    return run_study(study)


def small_quickstart(**changes: object) -> Study:
    study = make_study("quickstart")
    source = replace(cast(PolicyTransitions, study.source), num_rows=24, num_envs=4, guide_steps=5)
    small = replace(study, source=source, num_replicates=8, num_timings=4, axes={"num_particles": (1, 2, 8)})
    return replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Path, Outputs]:
    study = small_quickstart()
    result = run(study)
    command = "latentpg study quickstart --seed 0 <&>"
    out = tmp_path_factory.mktemp("run")
    folder = create_run_folder(study.name, config=study.config(), command=command, seed=0, out=out)
    return result, folder.path, write_outputs(result, folder, command=command)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_quickstart_puts_every_registered_estimator_to_the_test() -> None:
    study = make_study("quickstart")
    assert {line.estimator for line in study.lines} == set(ESTIMATORS) == set(EXPECTATIONS)
    assert study.num_particles == (1, 2, 4, 8, 16, 32, 64)
    for estimator in ("posterior-is", "conditional-is"):
        assert {line.proposal for line in study.lines if line.estimator == estimator} == {"prior", "guide", "mixture"}


def test_every_cell_is_measured_or_named(finished: tuple[StudyResult, Path, Outputs]) -> None:
    result, _, _ = finished
    measured = {m.cell.key for m in result.measured}
    skipped = {s.cell.key for s in result.skipped}
    assert measured | skipped == {cell.key for cell in result.study.cells()}
    assert not measured & skipped
    reasons = dict(merge_skipped(result.skipped))
    assert set(reasons) == {"markovian-is, guide, K = 1", "reparameterized, K = 1, 2, 8"}
    assert "never leaves its state" in reasons["markovian-is, guide, K = 1"]
    assert "discrete" in reasons["reparameterized, K = 1, 2, 8"]


def test_the_table_holds_every_measure_with_its_interval(finished: tuple[StudyResult, Path, Outputs]) -> None:
    result, folder, outputs = finished
    rows = read_table(outputs.table)
    assert outputs.table == folder / "table.csv"
    assert len(rows) == len(result.measured)
    for row in rows:
        low, value, high = float(row["low"]), float(row["value"]), float(row["high"])
        assert low <= value <= high
        assert row["unit"] and row["format_version"] == str(FORMAT_VERSION)
        if row["estimator"] in {"exact", "quadrature"} and row["measure"] in {"bias", "variance", "mse", "cosine"}:
            assert row["exact"] == "True"
    kept = [row for row in rows if row["estimator"] == "conditional-is" and row["num_particles"] == "8"]
    assert {row["measure"] for row in kept if row["proposal"] == "guide"} == {
        *("reference_norm", "bias", "noise_floor", "variance", "mse", "snr", "coordinate_snr", "cosine", "ess"),
        *("seconds", "likelihood_evaluations"),
    }


# with so few replicates no ratio of single coordinates is claimed, and its figure is left out
DRAWN = tuple(plot for plot in OF_ESTIMATES if plot.name != "coordinate_snr")


def test_every_figure_has_its_three_files_and_its_caption(finished: tuple[StudyResult, Path, Outputs]) -> None:
    result, folder, outputs = finished
    assert len(outputs.figures) == len(DRAWN)
    for plot in DRAWN:
        assert (folder / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
        svg = (folder / f"{plot.name}.svg").read_text("utf-8")
        assert "8 replicates, seed 0" in svg and f"format_version {FORMAT_VERSION}" in svg
        assert "latentpg study quickstart --seed 0" in svg
        rows = read_table(folder / f"{plot.name}.csv")
        curves = {row["curve"] for row in rows}
        drawn = {line.label for line in result.lines} - {"exact", "quadrature"}
        assert drawn - ({"elbo"} if plot.name == "ess" else set()) <= curves
    shown = [row for row in read_table(folder / "bias.csv") if row["curve"] == "posterior-is, prior"]
    measured = curve(result, Facet("gradient"), Line("posterior-is", "prior"), "bias")
    for row, each in zip(shown, measured, strict=True):
        assert float(row["value"]) == pytest.approx(each.interval.value / result.norm(each.cell))


def test_the_report_needs_nothing_beside_it(finished: tuple[StudyResult, Path, Outputs]) -> None:
    result, folder, outputs = finished
    page = outputs.report.read_text("utf-8")
    assert outputs.report == folder / "report.html"
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,30})', page)
    assert len(sources) == len(DRAWN)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"@import|url\(|<script|<link", page)
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)  # every placeholder was filled
    assert "seed 0 &lt;&amp;&gt;" in page and "<&>" not in page
    for line in result.lines:
        assert line.label in page
    for text in ("reparameterized, K = 1, 2, 8", "as expected", 'env_id = "CartPole-v1"', "num_replicates = 8"):
        assert text in page.replace("&quot;", '"')


def test_the_run_folder_says_how_it_was_made(finished: tuple[StudyResult, Path, Outputs]) -> None:
    result, folder, _ = finished
    config = tomllib.loads((folder / "config.toml").read_text("utf-8"))
    assert config["study"] == "quickstart"
    assert config["source"]["num_rows"] == 24
    assert len(config["lines"]) == len(result.study.lines)
    assert {"estimator": "markovian-is", "proposal": "guide", "num_sweeps": 1} in config["lines"]
    found = json.loads((folder / "result.json").read_text("utf-8"))
    assert make_study(str(folder / "config.toml")).config() == result.study.config()
    assert {entry["line"] for entry in found["findings"]} == {line.label for line in result.lines}
    assert not [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_the_same_seed_gives_the_same_table_but_for_times(finished: tuple[StudyResult, Path, Outputs]) -> None:
    def lasting(result: StudyResult) -> list[dict[str, object]]:
        return [row for row in tidy_rows(result) if row["measure"] != "seconds"]

    first = finished[0]
    torch.rand(17)
    assert lasting(run(small_quickstart())) == lasting(first)


def test_another_seed_gives_other_rows_and_other_draws() -> None:
    results = [run(replace(small_quickstart(seed=seed), lines=(Line("joint-score"),))) for seed in (0, 1)]
    assert len({result.norm(cell(Line("joint-score"))) for result in results}) == 2


def test_a_cell_does_not_depend_on_the_cells_beside_it() -> None:
    alone = run(toy_study(Line("posterior-is", "prior"), num_particles=(4,)))
    among = run(toy_study())
    place = cell(Line("posterior-is", "prior"), 4)
    assert alone.interval(place, "mse") == among.interval(place, "mse")


def test_what_a_target_draws_once_hangs_on_the_studys_seed() -> None:
    """A source that says nothing of the seed, as the mixture data do, is given it all the same."""
    study = replace(toy_study(), source=GaussianMixtureData(num_rows=4), seed=7)
    assert build_problem(study).seed == 7


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(toy_study(Line("exact")))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_study_of_exact_estimators_alone_has_no_figures(tmp_path: Path) -> None:
    study = toy_study(Line("exact"), Line("quadrature"))
    folder = create_run_folder(study.name, config=study.config(), command="x", seed=0, out=tmp_path)
    outputs = write_outputs(run(study), folder, command="x")
    assert outputs.figures == ()
    assert outputs.report.exists()


def test_both_sets_of_split_is_have_k_particles() -> None:
    assert cell(Line("split-is", "guide"), 4).build() == SplitIS(4, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_replicates": 3},
        {"num_timings": 0},
        {"seed": -1},
        {"axes": {"num_particles": ()}},
        {"axes": {"num_particles": (4, 4)}},
        {"axes": {"num_particles": (0,)}},
        {"lines": ()},
        {"lines": (Line("elbo"), Line("elbo"))},
        {"lines": (Line("posterior-is", "prior"), Line("posterio-is"))},
        {"targets": {}},
        {"lines": (Line("posterior-is", "prior", {"num_particles": 3}),)},
        {"axes": {"num_particle": (4,)}, "x": "num_particle"},
        {"x": "drift"},
    ],
)
def test_a_study_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        list(replace(toy_study(), **changes).cells())  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"num_rows": 0}, {"num_envs": 0}, {"env_id": "CartPol-v1"}, {"policy": "mixtur"}])
def test_a_source_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        replace(PolicyTransitions(), **changes).build(0)  # type: ignore[arg-type]


def test_an_unknown_study_is_named_with_its_nearest() -> None:
    with pytest.raises(StudyError, match="did you mean quickstart"):
        make_study("quikstart")
    assert isinstance(make_study("quickstart").source, Source)
    assert {"quickstart", "snr", "ratio", "guide-quality"} <= set(named_studies())


def test_a_source_without_a_gradient_is_refused() -> None:
    with pytest.raises(StudyError, match="exact gradient vanishes"):
        run(replace(toy_study(), source=ToySource(num_actions=1)))


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "FrozenLake-v1"])
def test_other_environments_do_too(env_id: str) -> None:
    source = replace(PolicyTransitions(), env_id=env_id, num_rows=10, num_envs=3, guide_steps=2)
    problem = source.build(0)
    assert num_rows(problem.obs) == len(problem.action) == 10
    assert build_problem(replace(toy_study(), source=source)).facts["KL(posterior || prior) (nats)"]


@pytest.mark.parametrize(("policy", "reference"), [("gaussian", "quadrature"), ("two-level", "quadrature")])
def test_continuous_latents_act_too(policy: str, reference: str) -> None:
    source = PolicyTransitions(policy=policy, num_rows=12, num_envs=3, guide_steps=0, hidden=4, latent_size=1)
    problem = source.build(0)
    assert problem.exact is not None and reference in str(problem.facts["reference"])
    assert problem.redraw is None and problem.latents is not None
    lines = (Line("conditional-is", "guide"), Line("posterior-is", "guide"))
    result = run(replace(toy_study(*lines, num_replicates=8, num_particles=(2,)), source=source))
    told = {m.cell.line.estimator for m in result.measured if m.measure == "bias"}
    assert told == {"posterior-is"}  # without posterior draws nothing is said of the recorded latent


OWN_POLICY = """
import torch
from gymnasium import spaces
from latentpg.policies import MixturePolicy
def make():
    return MixturePolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), num_components=2, hidden=(4,))
def narrow():
    policy = make()
    policy.prior = torch.nn.Linear(3, 2)
    return policy
"""


def test_a_policy_of_ones_own_acts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_POLICY)
    source = PolicyTransitions(policy=f"{tmp_path}/own.py:make", num_rows=12, num_envs=3, guide_steps=2)
    assert source.describe() == "12 rows of CartPole-v1, policy own.py:make"
    assert "enumeration of 2" in str(source.build(0).facts["reference"])
    with pytest.raises(StudyError, match=r"does not act in CartPole-v1"):
        replace(source, policy=f"{tmp_path}/own.py:narrow").build(0)


def test_components_of_the_source_differ_for_every_seed() -> None:
    """The posterior is neither the prior nor a point, whatever the seed."""
    for seed in range(5):
        facts = replace(PolicyTransitions(), num_rows=64, guide_steps=0).build(seed).facts
        assert cast(float, facts["KL(posterior || prior) (nats)"]) > 0.05
        assert cast(float, facts["entropy of the posterior (nats)"]) > 0.2


# Findings: what is said of made-up measurements.


def made_up(kind: Kind, *biases: tuple[float, float, float]) -> StudyResult:
    """Return a result in which an estimator of a kind shows these biases, as (low, value, high), at K = 4, 8, ..."""
    name = {Kind.UNBIASED: "conditional-is", Kind.VANISHING: "posterior-is", Kind.BOUND: "elbo", Kind.EXACT: "exact"}[
        kind
    ]
    line = Line(name)
    sizes = tuple(4 * 2**power for power in range(len(biases)))
    study = toy_study(line, num_particles=sizes)
    measured = []
    for size, (low, value, high) in zip(sizes, biases, strict=True):
        place = cell(line, size if line.takes("num_particles") else None)
        measured.append(Measured(place, "reference_norm", Interval(2.0, 2.0, 2.0)))
        measured.append(Measured(place, "bias", Interval(value, low, high)))
        measured.append(Measured(place, "seconds", Interval(1.0, 1.0, 1.0)))
    return StudyResult(study, {}, tuple(measured), (), 0.0)


def test_intervals_off_zero_speak_against_an_unbiased_estimator() -> None:
    covers, misses = (0.0, 0.1, 0.2), (0.1, 0.2, 0.3)
    assert find(made_up(Kind.UNBIASED, *[covers] * 7))[0].agrees
    assert find(made_up(Kind.UNBIASED, *[covers] * 6, misses))[0].agrees  # one in seven: 30 %
    assert not find(made_up(Kind.UNBIASED, *[covers] * 4, *[misses] * 3))[0].agrees
    assert _chance_of_misses(1, 7) == pytest.approx(1 - 0.95**7)


def test_a_bias_that_stays_speaks_against_one_that_should_vanish() -> None:
    falling = [(0.9 / k, 1 / k, 1.1 / k) for k in (4, 8, 16)]
    assert find(made_up(Kind.VANISHING, *falling))[0].agrees
    assert not find(made_up(Kind.VANISHING, *[(0.9, 1.0, 1.1)] * 3))[0].agrees
    assert find(made_up(Kind.VANISHING, *[(0.0, 0.1, 1.1)] * 3))[0].agrees is None


def test_a_bound_keeps_its_bias() -> None:
    assert find(made_up(Kind.BOUND, (0.9, 1.0, 1.1), (0.95, 1.05, 1.2)))[0].agrees
    assert not find(made_up(Kind.BOUND, (0.9, 1.0, 1.1), (0.1, 0.2, 0.3)))[0].agrees


def test_an_exact_estimator_must_be_exact() -> None:
    assert find(made_up(Kind.EXACT, (0.0, 0.0, 0.0)))[0].agrees
    assert not find(made_up(Kind.EXACT, (0.1, 0.1, 0.1)))[0].agrees


def test_slopes_leave_out_what_the_noise_hides() -> None:
    result = made_up(Kind.VANISHING, (0.9, 1.0, 1.1), (0.45, 0.5, 0.55), (0.0, 0.4, 0.5))
    slope = bias_slope([m for m in result.measured if m.measure == "bias"])
    assert slope is not None
    assert slope.value == pytest.approx(-1)


def test_the_summary_has_one_row_a_line(finished: tuple[StudyResult, Path, Outputs]) -> None:
    result, _, _ = finished
    (facet,) = facets(result.study)
    summary = summarize(result, facet)
    assert [row[0] for row in summary.rows] == [line.label for line in result.lines]
    assert all(len(row) == len(summary.columns) for row in summary.rows)
    exact = dict(zip(summary.columns, summary.rows[0], strict=True))
    assert exact["bias K=1"] == "0"


def test_plain_progress_is_a_few_lines() -> None:
    console = Console(file=None, force_terminal=False, record=True, quiet=False, width=100)
    with progress(40, console=console) as advance:
        for number in range(40):
            advance(f"cell {number}")
    lines = console.export_text().strip().splitlines()
    assert 5 <= len(lines) <= 11
    assert lines[-1].startswith("40/40 cells") and "left" in lines[0]


def test_progress_on_a_terminal_is_a_bar_with_the_time_left() -> None:
    console = Console(force_terminal=True, width=100, record=True)
    shown = ""
    with progress(3, console=console) as advance:
        for number in range(3):
            advance(f"cell {number}")
            time.sleep(0.12)  # longer than the bar waits before it is drawn again
            shown += console.export_text(clear=False)
    assert "/3" in shown and "left" in shown and "cell 0" in shown
