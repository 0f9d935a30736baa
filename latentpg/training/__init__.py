"""Training from a configuration: the loop around a learner, what it leaves on disk, and how it goes on.

A run is put together from named parts (:mod:`latentpg.training.parts`); its options come from files and flags
(:mod:`latentpg.training.config`, :mod:`latentpg.training.options`). The loop evaluates, logs and saves
(:mod:`latentpg.training.loop`), and several seeds make a learning curve (:mod:`latentpg.training.curves`).
"""

from latentpg.training.build import Built, build
from latentpg.training.config import TrainingConfig, known_values, read_options, resolve, tuned_options
from latentpg.training.curves import (
    Curve,
    bootstrap_interval,
    draw_curve,
    evaluation_curve,
    interquartile_mean,
    learning_curve,
)
from latentpg.training.evaluate import Evaluation, act_by_decoder_mean, evaluate
from latentpg.training.folders import SavedRun, begin_run, open_run
from latentpg.training.log import MetricsLog, read_metrics, series
from latentpg.training.loop import Outcome, train
from latentpg.training.parts import RunOptions, Selection
from latentpg.training.policies import ChunkPart, EpisodePart, NetworkOptions, build_policy
from latentpg.training.preparing import prepared
from latentpg.training.seeds import go_on, run_seeds
from latentpg.training.signals import stopping
from latentpg.training.video import film_episodes

__all__ = [
    "Built",
    "ChunkPart",
    "Curve",
    "EpisodePart",
    "Evaluation",
    "MetricsLog",
    "NetworkOptions",
    "Outcome",
    "RunOptions",
    "SavedRun",
    "Selection",
    "TrainingConfig",
    "act_by_decoder_mean",
    "begin_run",
    "bootstrap_interval",
    "build",
    "build_policy",
    "draw_curve",
    "evaluate",
    "evaluation_curve",
    "film_episodes",
    "go_on",
    "interquartile_mean",
    "known_values",
    "learning_curve",
    "open_run",
    "prepared",
    "read_metrics",
    "read_options",
    "resolve",
    "run_seeds",
    "series",
    "stopping",
    "train",
    "tuned_options",
]
