"""Demonstrations to learn from: read, checked, split, normalised, and cut into the rows an estimator takes."""

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.fitting import action_log_jacobian, check_policy, encode_for_spaces
from latentpg.data.guards import DataError, Limits
from latentpg.data.lasa import read_lasa
from latentpg.data.lerobot import read_lerobot
from latentpg.data.minari import read_minari
from latentpg.data.normalization import Normalization
from latentpg.data.npz import load_npz, read_npz, save_npz
from latentpg.data.robomimic import read_robomimic
from latentpg.data.rows import DemonstrationRows, chunk_rows, episode_rows
from latentpg.data.sources import read_demonstrations
from latentpg.data.splits import Split, largest_remainders, split_episodes

__all__ = [
    "DataError",
    "DemonstrationRows",
    "Demonstrations",
    "Limits",
    "Normalization",
    "Split",
    "action_log_jacobian",
    "check_policy",
    "chunk_rows",
    "encode_for_spaces",
    "episode_rows",
    "largest_remainders",
    "load_npz",
    "read_demonstrations",
    "read_lasa",
    "read_lerobot",
    "read_minari",
    "read_npz",
    "read_robomimic",
    "save_npz",
    "split_episodes",
]
