"""Tables of studies with several axes and targets: each cell is shown in every facet that it belongs to."""

from collections.abc import Callable
from itertools import product

import pytest

from latentpg.numerics.statistics import Interval
from latentpg.studies import Cell, Facet, Line, Measured, Study, StudyResult, Target, facets, find, summarize, tidy_rows
from latentpg.studies.tables import curve
from latentpg.studies.targets import Gradient, Ratio, Value
from latentpg.studies.toys import RandomToys

EXACT, JOINT, KEPT = Line("exact"), Line("joint-score"), Line("conditional-is", "guide")


def made_up(study: Study, value: Callable[[Cell], float] = lambda cell: 0.25) -> StudyResult:
    """Give every cell of a study a bias of our choice around which its interval lies, a reference and a time."""
    measured = []
    for cell in study.cells():
        bias = value(cell)
        for measure, interval in (
            ("reference_norm", Interval(2.0, 2.0, 2.0)),
            ("bias", Interval(bias, bias / 2, 2 * bias)),
            ("seconds", Interval(0.001, 0.001, 0.001)),
        ):
            measured.append(Measured(cell, measure, interval, exact=measure == "reference_norm"))
    return StudyResult(study, {}, tuple(measured), (), 0.0)


def wide(x: str = "num_particles") -> Study:
    return Study(
        name="wide",
        title="Wide",
        source=RandomToys(num_rows=4),
        lines=(EXACT, JOINT, KEPT),
        targets={"gradient": Gradient(), "ratio": Ratio()},
        axes={"num_particles": (1, 2, 4), "drift": (0.1, 0.3), "guide": ("prior", "exact")},
        x=x,
        num_replicates=4,
    )


def place(cell: Cell) -> tuple[object, ...]:
    return cell.target, cell.line.label, cell.at("num_particles"), cell.at("drift"), cell.at("guide")


def test_a_cell_lies_on_the_axes_that_concern_it() -> None:
    guides, sizes, drifts = ("prior", "exact"), (1, 2, 4), (0.1, 0.3)
    expected: set[tuple[object, ...]] = {
        ("gradient", line.label, None, None, g) for line, g in product((EXACT, JOINT), guides)
    }
    expected |= {("ratio", line.label, None, d, g) for line, d, g in product((EXACT, JOINT), drifts, guides)}
    expected |= {("gradient", KEPT.label, k, None, g) for k, g in product(sizes, guides)}
    expected |= {("ratio", KEPT.label, k, d, g) for k, d, g in product(sizes, drifts, guides)}
    places = [place(cell) for cell in wide().cells()]
    assert len(places) == len(set(places))
    assert set(places) == expected


def test_a_facet_is_a_target_at_a_place_on_every_axis_that_concerns_it_but_one() -> None:
    guides, drifts = ("prior", "exact"), (0.1, 0.3)
    assert facets(wide()) == [
        *(Facet("gradient", (("guide", g),)) for g in guides),
        *(Facet("ratio", (("drift", d), ("guide", g))) for d, g in product(drifts, guides)),
    ]
    assert facets(wide())[-1].label == "ratio, drift=0.3, guide=exact"
    # no K concerns the two first lines; their cells make no facet of their own
    assert set(facets(wide("guide"))) == {
        *(Facet("gradient", (("num_particles", k),)) for k in (1, 2, 4)),
        *(Facet("ratio", (("num_particles", k), ("drift", d))) for k, d in product((1, 2, 4), drifts)),
    }


@pytest.mark.parametrize("x", ["num_particles", "drift", "guide"])
def test_every_facet_shows_every_line_and_every_cell_is_shown(x: str) -> None:
    study = wide(x)
    result = made_up(study)
    shown = {place(m.cell) for f in facets(study) for line in study.lines for m in curve(result, f, line, "bias")}
    assert shown == {place(cell) for cell in study.cells()}
    for facet in facets(study):
        for line in study.lines:
            points = curve(result, facet, line, "bias")
            concerned = x in {name for m in points for name, _ in m.cell.settings}
            assert [m.cell.at(x) for m in points] == (list(study.axes[x]) if concerned else [None])


def test_a_curve_holds_the_cells_of_its_own_place_alone() -> None:
    study = wide()
    result = made_up(study)
    points = curve(result, Facet("ratio", (("drift", 0.3), ("guide", "exact"))), KEPT, "bias")
    assert [place(m.cell) for m in points] == [("ratio", KEPT.label, k, 0.3, "exact") for k in (1, 2, 4)]
    # in the facets of K the exact line is the same in each
    level = [curve(result, f, EXACT, "bias") for f in facets(wide("guide")) if f.target == "gradient"]
    assert len(level) == 3 and not any(m.cell.at("num_particles") for points in level for m in points)


def test_a_summary_reads_its_own_facet() -> None:
    """Biases made up to tell their cell: K in percent of the length 2, ten times that at the far drift."""

    def bias(cell: Cell) -> float:
        return 0.02 * (cell.num_particles or 7) * (10 if cell.at("drift") == 0.3 else 1)

    result = made_up(wide(), bias)
    near, far = (Facet("ratio", (("drift", d), ("guide", "prior"))) for d in (0.1, 0.3))
    assert summarize(result, near).columns[:5] == ("estimator", "expected", "bias K=1", "bias K=2", "bias K=4")
    assert [row[2:5] for row in summarize(result, near).rows] == [("7 %",) * 3, ("7 %",) * 3, ("1 %", "2 %", "4 %")]
    assert [row[2:5] for row in summarize(result, far).rows] == [
        ("70 %",) * 3, ("70 %",) * 3, ("10 %", "20 %", "40 %"),
    ]  # fmt: skip
    of_words = summarize(made_up(wide("guide")), facets(wide("guide"))[0])
    assert of_words.columns[2:5] == ("bias guide=prior", "bias guide=exact", "noise guide=exact")


def test_what_was_not_measured_is_a_dash() -> None:
    whole = made_up(wide())
    left = tuple(m for m in whole.measured if m.cell.num_particles != 2 and m.measure != "reference_norm")
    result = StudyResult(whole.study, {}, left, (), 0.0)
    row = summarize(result, facets(whole.study)[0]).rows[-1]
    assert row[0] == "conditional-is, guide" and row[3] == "–" and set(row[5:]) == {"–"}


def test_every_line_of_every_facet_is_held_against_its_claim() -> None:
    study = wide()
    found = find(made_up(study, lambda cell: 0.0 if cell.at("guide") == "exact" else 1.0))
    assert [(f.facet, f.line) for f in found] == [(f, line) for f in facets(study) for line in study.lines]
    for each in found:
        if each.line is EXACT:
            assert each.agrees is (("guide", "exact") in each.facet.settings)


def test_the_tidy_table_has_a_column_an_axis_and_nothing_where_it_does_not_concern() -> None:
    rows = tidy_rows(made_up(wide()))
    assert len(rows) == 3 * len(list(wide().cells()))
    assert all({"num_particles", "drift", "guide"} <= row.keys() for row in rows)
    assert {row["drift"] for row in rows if row["target"] == "gradient"} == {None}
    assert {row["num_particles"] for row in rows if row["estimator"] == "joint-score"} == {None}


def test_targets_of_one_kind_are_facets_of_their_own() -> None:
    targets: dict[str, Target] = {"theta": Gradient("theta"), "phi": Gradient("phi"), "value": Value()}
    study = Study("a", "a", RandomToys(), (KEPT,), targets, axes={"num_particles": (1, 2)}, num_replicates=4)
    result = made_up(study, lambda cell: {"theta": 0.02, "phi": 0.2, "value": 2.0}[cell.target])
    assert [facet.label for facet in facets(study)] == ["theta", "phi", "value"]
    assert [summarize(result, facet).rows[0][2] for facet in facets(study)] == ["1 %", "10 %", "100 %"]
    kinds = [summarize(result, facet).rows[0][1] for facet in facets(study)]
    assert kinds == ["unbiased", "unbiased", "bias falls as 1/K"]  # the value's logarithm is not linear
