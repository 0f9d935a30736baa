"""What a run leaves on disk.

A folder that is never overwritten, files that are whole or absent, checkpoints, and a record of the circumstances.
"""

from latentpg.runs.checkpoints import name_checkpoint, save_checkpoint
from latentpg.runs.files import FORMAT_VERSION, publish, write_csv, write_json, write_parquet, write_toml
from latentpg.runs.folder import RunFolder, create_run_folder, open_run_folder
from latentpg.runs.loading import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    named_checkpoint,
    newest_checkpoint,
)
from latentpg.runs.locks import at_work_in
from latentpg.runs.record import describe_circumstances

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "RunFolder",
    "at_work_in",
    "create_run_folder",
    "describe_circumstances",
    "list_checkpoints",
    "load_checkpoint",
    "name_checkpoint",
    "named_checkpoint",
    "newest_checkpoint",
    "open_run_folder",
    "publish",
    "save_checkpoint",
    "write_csv",
    "write_json",
    "write_parquet",
    "write_toml",
]
