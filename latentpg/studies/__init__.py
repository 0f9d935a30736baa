"""Grids of experiments: what is measured, with which intervals, and how it is shown."""

from latentpg.studies.measures import MEASURES, Measured
from latentpg.studies.named import STUDIES, make_study
from latentpg.studies.outputs import Outputs, write_outputs
from latentpg.studies.progress import progress
from latentpg.studies.run import StudyResult, build_problem, merge_skipped, one_thread, run_study
from latentpg.studies.spec import Cell, Line, Problem, Source, Study
from latentpg.studies.tables import find, summarize, tidy_rows

__all__ = [
    "MEASURES",
    "STUDIES",
    "Cell",
    "Line",
    "Measured",
    "Outputs",
    "Problem",
    "Source",
    "Study",
    "StudyResult",
    "build_problem",
    "find",
    "make_study",
    "merge_skipped",
    "one_thread",
    "progress",
    "run_study",
    "summarize",
    "tidy_rows",
    "write_outputs",
]
