"""Cloning from a command: demonstrations in, a run folder with a policy, its measures, figures and a report out.

A run is put together from named parts (:mod:`latentpg.cloning.parts`), prepared from its data
(:mod:`latentpg.cloning.preparing`), fitted epoch by epoch (:mod:`latentpg.cloning.loop`) and measured
(:mod:`latentpg.cloning.measures`). What it leaves is read by :func:`latentpg.training.cloned.read_cloned`.
"""

from latentpg.cloning.acting import Played, play
from latentpg.cloning.config import CloningConfig, resolve, tuned_options
from latentpg.cloning.drawing import DrawnFigure, draw_figures
from latentpg.cloning.folders import SavedCloning, begin_run, open_run
from latentpg.cloning.loop import Cloned, clone
from latentpg.cloning.measures import Collapse, Measured, Scale, measure
from latentpg.cloning.options import ImitateCommand, command_of, parse_imitate
from latentpg.cloning.outcomes import Outcome, act_out
from latentpg.cloning.parts import CloningOptions, CloningSelection
from latentpg.cloning.places import PLACES, Place
from latentpg.cloning.preparing import Prepared, prepared
from latentpg.cloning.report import write_report
from latentpg.cloning.seeds import run_seeds, summarize
from latentpg.cloning.sources import demonstrations_of, spaces_of

__all__ = [
    "PLACES",
    "Cloned",
    "CloningConfig",
    "CloningOptions",
    "CloningSelection",
    "Collapse",
    "DrawnFigure",
    "ImitateCommand",
    "Measured",
    "Outcome",
    "Place",
    "Played",
    "Prepared",
    "SavedCloning",
    "Scale",
    "act_out",
    "begin_run",
    "clone",
    "command_of",
    "demonstrations_of",
    "draw_figures",
    "measure",
    "open_run",
    "parse_imitate",
    "play",
    "prepared",
    "resolve",
    "run_seeds",
    "spaces_of",
    "summarize",
    "tuned_options",
    "write_report",
]
