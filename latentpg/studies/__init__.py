"""Grids of experiments: what is measured, with which intervals, and how it is shown."""

from latentpg.studies.catalogue import MEASURES
from latentpg.studies.files import load_study, make_study, named_studies, parse_study
from latentpg.studies.measures import Measured
from latentpg.studies.outputs import Outputs, write_outputs
from latentpg.studies.problem import Problem, Source, Trainee
from latentpg.studies.procedures import Chosen, Procedure, Traced
from latentpg.studies.progress import progress
from latentpg.studies.run import StudyResult, build_problem, merge_skipped, run_study
from latentpg.studies.spec import TARGETS, Cell, Line, Study, Target
from latentpg.studies.tables import Facet, facets, find, pages, summarize, tidy_rows
from latentpg.studies.workers import one_thread

__all__ = [
    "MEASURES",
    "TARGETS",
    "Cell",
    "Chosen",
    "Facet",
    "Line",
    "Measured",
    "Outputs",
    "Problem",
    "Procedure",
    "Source",
    "Study",
    "StudyResult",
    "Target",
    "Traced",
    "Trainee",
    "build_problem",
    "facets",
    "find",
    "load_study",
    "make_study",
    "merge_skipped",
    "named_studies",
    "one_thread",
    "pages",
    "parse_study",
    "progress",
    "run_study",
    "summarize",
    "tidy_rows",
    "write_outputs",
]
