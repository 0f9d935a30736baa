"""Study files: what they say arrives, what a run keeps of them says the same, and every mistake gets one message."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentpg.errors import LatentPGError, OptionError, StudyError
from latentpg.estimators import ConditionalIS, Guide
from latentpg.runs import write_toml
from latentpg.runs.files import toml_of
from latentpg.studies import Line, Study, load_study, make_study, named_studies, parse_study
from latentpg.studies.files import MAX_BYTES, MAX_DOTS
from latentpg.studies.guide_target import GuideGradient
from latentpg.studies.targets import Gradient, Ratio
from latentpg.studies.toys import RandomToys

SOURCE = '[source]\nkind = "toys"\n'
LINE = '[[lines]]\nestimator = "posterior-is"\n'
FULL = """
title = "A title"
seed = 7
num_replicates = 8
num_timings = 5
x = "guide"
skip_invalid = true

[source]
kind = "toys"
num_rows = 4
scale = 2

[axes]
drift = [1, 0.5]
guide = ["prior", "exact"]
num_particles = [2, 4]

[[targets]]
kind = "gradient"
parameters = "theta"
[[targets]]
name = "far"
kind = "ratio"
drift = 1
[[targets]]
kind = "guide-gradient"
only = ["guide_logits"]

[[lines]]
estimator = "conditional-is"
proposal = "guide"
[[lines]]
objective = "elbo-score"
"""


def through_a_run_folder(study: Study, folder: Path) -> Study:
    """Write the configuration as a run does, and read it as a study file."""
    write_toml(folder / "config.toml", {"study": study.name, **study.config()})
    return load_study(folder / "config.toml")


def test_everything_a_file_says_arrives() -> None:
    study = parse_study(FULL, name="mine")
    assert study == Study(
        name="mine",
        title="A title",
        source=RandomToys(num_rows=4, scale=2.0),
        targets={
            "gradient": Gradient("theta"),
            "far": Ratio(1.0),
            "guide-gradient": GuideGradient(("guide_logits",)),
        },
        lines=(Line("conditional-is", "guide"), Line("elbo-score", role="objective")),
        axes={"drift": (1.0, 0.5), "guide": ("prior", "exact"), "num_particles": (2, 4)},
        x="guide",
        num_replicates=8,
        num_timings=5,
        seed=7,
        skip_invalid=True,
    )
    # drift concerns the ratio alone, K the estimator and the objective, the guide everyone
    assert [sum(cell.target == name for cell in study.cells()) for name in study.targets] == [4, 8, 4]
    assert type(study.axes["drift"][0]) is float  # one type on an axis: a command line spells it back the same


def test_what_a_file_leaves_out_is_as_of_a_study() -> None:
    study = parse_study(SOURCE + LINE, name="mine")
    assert study == Study("mine", "mine", RandomToys(), (Line("posterior-is"),))
    assert study.targets == {"gradient": Gradient()}


def test_the_first_axis_goes_to_the_right_unless_told() -> None:
    axes = "[axes]\nnum_latents = [2, 3]\nnum_particles = [1]\n"
    assert parse_study(SOURCE + axes + LINE, name="a").x == "num_latents"
    assert parse_study('x = "num_particles"\n' + SOURCE + axes + LINE, name="a").x == "num_particles"


@pytest.mark.parametrize("name", named_studies())
def test_a_named_study_has_cells_and_survives_its_run_folder(name: str, tmp_path: Path) -> None:
    study = make_study(name)
    keys = [cell.key for cell in study.cells()]
    assert keys and len(set(keys)) == len(keys)
    again = through_a_run_folder(study, tmp_path)
    assert again == study and repr(again.config()) == repr(study.config())


def test_a_file_survives_its_run_folder(tmp_path: Path) -> None:
    study = parse_study(FULL, name="mine")
    again = through_a_run_folder(study, tmp_path)
    assert again == study and again.name == "mine" and repr(again.config()) == repr(study.config())


@given(
    st.integers(0, 2**63),
    st.text(st.characters(codec="utf-8")),
    st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=4, unique=True),
)
def test_every_seed_title_and_number_survives(seed: int, title: str, scales: list[float]) -> None:
    source, lines = RandomToys(), (Line("conditional-is", "guide"),)
    study = Study("a", title, source, lines, seed=seed, axes={"scale": tuple(scales)}, x="scale")
    assert parse_study(toml_of({"study": "a", **study.config()}), name="b") == study


def test_options_of_a_line_reach_its_estimator() -> None:
    text = LINE.replace("posterior", "conditional") + 'num_particles = 3\nproposal = "guide"\n'
    study = parse_study(SOURCE + "[axes]\nguide = ['exact']\n" + text, name="a")
    (cell,) = study.cells()
    assert cell.build() == ConditionalIS(3, proposal=Guide())


NESTED = "[" * 300 + "]" * 300
MISTAKES: dict[str, tuple[str, str]] = {
    "key": ('titel = "a"\n' + SOURCE + LINE, "did you mean title"),
    "no source": (LINE, "unknown source"),
    "source": ('[source]\nkind = "toy"\n' + LINE, "did you mean toys"),
    "source's option": (SOURCE + "num_row = 3\n" + LINE, "did you mean num_rows"),
    "source's type": (SOURCE + 'num_rows = "3"\n' + LINE, "an integer"),
    "source's other type": (SOURCE + "scale = true\n" + LINE, "a number"),
    "source's word": (SOURCE + 'guide = "exakt"\n' + LINE, "did you mean exact"),
    "source's range": (SOURCE + "num_rows = 0\n" + LINE, "an integer >= 1"),
    "source's nesting": (SOURCE + f"scale = {NESTED}\n" + LINE, "a number"),
    "source no table": ("source = 3\n" + LINE, "a table [source]"),
    "target": (SOURCE + '[[targets]]\nkind = "gradiant"\n' + LINE, "did you mean gradient"),
    "target's option": (SOURCE + '[[targets]]\nkind = "ratio"\ndirft = 1.0\n' + LINE, "did you mean drift"),
    "target's type": (SOURCE + '[[targets]]\nkind = "ratio"\ndrift = "far"\n' + LINE, "a number"),
    "target's word": (SOURCE + '[[targets]]\nkind = "gradient"\nparameters = "teta"\n' + LINE, "did you mean theta"),
    "target's list": (
        SOURCE + '[[targets]]\nkind = "guide-gradient"\nonly = "x"\n[[lines]]\nobjective = "elbo"\n',
        "a list, each text",
    ),
    "target's name": (SOURCE + '[[targets]]\nname = 3\nkind = "value"\n' + LINE, "text"),
    "two targets": (SOURCE + '[[targets]]\nkind = "value"\n[[targets]]\nkind = "value"\n' + LINE, "value twice"),
    "targets no tables": ("targets = [1]\n" + SOURCE + LINE, "tables [[targets]]"),
    "no lines": (SOURCE, "`lines`"),
    "lines no tables": ("lines = 1\n" + SOURCE, "tables [[lines]]"),
    "line of nothing": (SOURCE + '[[lines]]\nproposal = "guide"\n', "`estimator`, `objective` or both"),
    "line of both": (SOURCE + LINE + 'objective = "elbo"\n', "a target of the kind training"),
    "objective beside": (SOURCE + LINE + 'objective = "elbow"\n', "did you mean elbo"),
    "training alone": (SOURCE + LINE + '[[targets]]\nkind = "training"\n', "than guide-gradient and training"),
    "training without a pair": (
        SOURCE + LINE + '[[targets]]\nkind = "training"\n[[targets]]\nkind = "value"\n',
        "a line with `estimator` and `objective`",
    ),
    "step of a training": (SOURCE + LINE + '[[targets]]\nkind = "training"\nstep = -1\n', "an integer >= 0"),
    "rate of a training": (SOURCE + LINE + '[[targets]]\nkind = "training"\nlearning_rate = 0\n', "a number > 0"),
    "panels": ('panels = "drift"\n' + SOURCE + LINE, "an axis other than x"),
    "panels of x": ('panels = "num_particles"\n' + SOURCE + LINE, "an axis other than x"),
    "panels' type": ("panels = 1\n" + SOURCE + LINE, "text"),
    "figures": ('figures = ["biass"]\n' + SOURCE + LINE, "did you mean bias"),
    "figures' type": ('figures = "bias"\n' + SOURCE + LINE, "a list of words"),
    "target without a name": (SOURCE + LINE + '[[targets]]\nkind = "value"\nname = ""\n', "leave `name` out"),
    "true for a version": ("format_version = true\n" + SOURCE + LINE, "format_version"),
    "1.0 for a version": ("format_version = 1.0\n" + SOURCE + LINE, "format_version"),
    "estimator": (SOURCE + '[[lines]]\nestimator = "posterior-si"\n', "did you mean posterior-is"),
    "estimator's type": (SOURCE + "[[lines]]\nestimator = 3\n", "text"),
    "estimator's option": (SOURCE + LINE + "num_particle = 3\n", "did you mean num_particles"),
    "estimator's option's type": (SOURCE + LINE + 'num_particles = "3"\n', "an integer"),
    "estimator's date": (SOURCE + LINE + "num_particles = 2000-01-01\n", "an integer"),
    "objective": (SOURCE + '[[lines]]\nobjective = "elbow"\n', "did you mean elbo"),
    "objective's option": (SOURCE + '[[lines]]\nobjective = "iwae"\nnum_particle = 3\n', "did you mean num_particles"),
    "proposal": (SOURCE + LINE + 'proposal = "gide"\n', "did you mean guide"),
    "proposal's type": (SOURCE + LINE + "proposal = 3\n", "text"),
    "proposal of none": (SOURCE + '[[lines]]\nestimator = "exact"\nproposal = "guide"\n', "no options"),
    "two lines": (SOURCE + LINE + LINE, "posterior-is"),
    "line without target": (SOURCE + LINE + '[[lines]]\nobjective = "elbo"\n', "line `elbo` belongs to no target"),
    "target without line": (
        SOURCE + '[[targets]]\nkind = "value"\n[[targets]]\nkind = "guide-gradient"\n' + LINE,
        "target `guide-gradient` belongs to no line",
    ),
    "axis of nothing": ("[axes]\nnum_row = [1]\n" + SOURCE + LINE, "did you mean num_rows"),
    "axis no list": ("[axes]\nnum_rows = 1\n" + SOURCE + LINE, "a list of numbers or of words"),
    "axis empty": ("[axes]\nnum_rows = []\n" + SOURCE + LINE, "one or more"),
    "axis twice the same": ("[axes]\nnum_rows = [4, 4]\n" + SOURCE + LINE, "all distinct"),
    "axis's type": ('[axes]\nnum_rows = ["four"]\n' + SOURCE + LINE, "an integer"),
    "axis's mixture": ('[axes]\nguide = ["prior", 1]\n' + SOURCE + LINE, "one of random, prior"),
    "axis's word": ('[axes]\nguide = ["prior", "exakt"]\n' + SOURCE + LINE, "did you mean exact"),
    "axis's range": ("[axes]\nnum_rows = [4, 0]\n" + SOURCE + LINE, "an integer >= 1"),
    "axis's NaN": ("[axes]\nscale = [nan]\n" + SOURCE + LINE, "a number > 0"),
    "axis's nesting": (f"[axes]\nnum_particles = {NESTED}\n" + SOURCE + LINE, "a list of numbers"),
    "K": ("[axes]\nnum_particles = [0]\n" + SOURCE + LINE, "an integer >= 1"),
    "axes no table": ("axes = 1\n" + SOURCE + LINE, "a table [axes]"),
    "x": ('x = "num_rows"\n' + SOURCE + LINE, "one of the axes"),
    "x's type": ("x = []\n" + SOURCE + LINE, "text"),
    "seed": ("seed = 1.5\n" + SOURCE + LINE, "an integer >= 0"),
    "seed's sign": ("seed = -1\n" + SOURCE + LINE, "an integer >= 0"),
    "replicates": ("num_replicates = true\n" + SOURCE + LINE, "an integer >= 4"),
    "timings": ("num_timings = 1\n" + SOURCE + LINE, "an integer >= 4"),
    "skip_invalid": ('skip_invalid = "no"\n' + SOURCE + LINE, "true or false"),
    "title": ("title = 3\n" + SOURCE + LINE, "text"),
    "name outside": ('study = "../../x"\n' + SOURCE + LINE, "a name that a folder can have"),
    "no name": ('study = ".."\n' + SOURCE + LINE, "a name that a folder can have"),
    "version": ("format_version = 2\n" + SOURCE + LINE, "format_version"),
    "not TOML": ("title = ", "not TOML"),
    "twice": ('title = "a"\ntitle = "b"\n', "not TOML"),
    "long number": (f"seed = {'9' * 5000}\n", "not TOML"),
    "deep": ("x = " + "[" * 60_000, "not TOML"),
    "dots": (f"a{'.a' * (MAX_DOTS + 1)} = 1", "too many dots"),
}


@pytest.mark.production
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message(mistake: str) -> None:
    text, hint = MISTAKES[mistake]
    with pytest.raises((StudyError, OptionError)) as caught:
        parse_study(text, name="mine")
    message = str(caught.value)
    assert hint in message
    assert len(message) < 1200 and len(message.splitlines()) <= 5


def without_end(path: Path) -> None:
    os.mkfifo(path)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 50 * 2**30)  # sparse: takes no room


FILES: dict[str, tuple[Any, str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "cannot be read"),
    "pipe": (without_end, "cannot be read"),
    "too large": (lambda path: path.write_text("#" * (MAX_BYTES + 1)), "too large"),
    "huge": (huge, "too large"),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
    "mistake": (lambda path: path.write_text("titel = 1"), "did you mean title"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    make, hint = FILES[kind]
    make(path)
    with pytest.raises(StudyError) as caught:
        make_study(str(path))
    assert hint in str(caught.value) and str(path) in str(caught.value)


def test_a_file_is_called_by_its_name_and_the_name_chooses_it(tmp_path: Path) -> None:
    path = tmp_path / "guides at work.toml"
    path.write_text("#" * (MAX_BYTES - len(SOURCE + LINE) - 1) + "\n" + SOURCE + LINE)  # as large as may be
    assert make_study(str(path)).name == "guides at work"


def test_an_unknown_study_is_suggested() -> None:
    with pytest.raises(StudyError, match="did you mean quickstart"):
        make_study("quikstart")


def test_no_number_of_a_file_is_lost_on_the_way(tmp_path: Path) -> None:
    smallest = math.nextafter(0.1, 1)
    study = parse_study(SOURCE + f"scale = {smallest!r}\n" + LINE, name="a")
    again = through_a_run_folder(study, tmp_path)
    assert isinstance(again.source, RandomToys) and again.source.scale == smallest != 0.1


@given(st.text(max_size=200) | st.text("=[]{}\"'.\n#axlines01 ", max_size=200))
def test_any_text_is_a_study_or_one_of_our_errors(text: str) -> None:
    for whole in (text, SOURCE + LINE + text):
        try:
            parse_study(whole, name="any")
        except LatentPGError:
            pass
