"""What a run leaves on disk.

A folder that is never overwritten, files that are whole or absent, and a record of the circumstances.
"""

from latentpg.runs.files import FORMAT_VERSION, publish, write_csv, write_json, write_parquet, write_toml
from latentpg.runs.folder import RunFolder, create_run_folder, open_run_folder
from latentpg.runs.record import describe_circumstances

__all__ = [
    "FORMAT_VERSION",
    "RunFolder",
    "create_run_folder",
    "describe_circumstances",
    "open_run_folder",
    "publish",
    "write_csv",
    "write_json",
    "write_parquet",
    "write_toml",
]
