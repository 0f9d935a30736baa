"""Record demonstrations: scripted and trained experts, played until enough of their episodes are good enough."""

from latentpg.recording.commands import RecordOptions, record_command, recorded_by
from latentpg.recording.experts import SCRIPTED, Script, load_function, modes_of, script_of, shown_by_script
from latentpg.recording.playing import (
    Played,
    Recorded,
    Wanted,
    episodes_of_function,
    episodes_of_policy,
    record,
)
from latentpg.recording.trained import TrainedExpert, load_expert

__all__ = [
    "SCRIPTED",
    "Played",
    "RecordOptions",
    "Recorded",
    "Script",
    "TrainedExpert",
    "Wanted",
    "episodes_of_function",
    "episodes_of_policy",
    "load_expert",
    "load_function",
    "modes_of",
    "record",
    "record_command",
    "recorded_by",
    "script_of",
    "shown_by_script",
]
