"""The folder of one run: made once, for one run, and never written over.

``config.toml`` holds the resolved configuration, ``run.json`` the circumstances it ran under; the rest is the run's
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from latentpg.errors import StudyError
from latentpg.runs.files import toml_of, write_json, write_toml
from latentpg.runs.record import describe_circumstances
from latentpg.runs.untrusted import RefusedError, parse_object, read_bounded

RUNS = Path("runs")
"""Where run folders go unless told otherwise, relative to the working directory."""

MAX_RECORD = 2**20
"""The largest file of a folder's own that is read, in bytes."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, as an absolute path, with the name of the study it belongs to."""

    path: Path
    name: str

    def file(self, name: str) -> Path:
        """Return the place of a file in it."""
        return self.path / name


def create_run_folder(
    name: str, *, config: Mapping[str, Any], command: str, seed: int, out: Path | None = None, kind: str = "study"
) -> RunFolder:
    """Make ``out``, or ``runs/<name>-<YYYYmmdd-HHMMSS>``, with the resolved configuration and the circumstances in it.

    Both files have the run's name under ``kind``. A folder that holds anything already is a
    :class:`~latentpg.errors.StudyError`.
    """
    path = _make_default(name) if out is None else _make_given(out)
    folder = RunFolder(path, name)
    try:
        write_toml(folder.file("config.toml"), {kind: name, **config})
        write_json(
            folder.file("run.json"),
            {kind: name, "command": command, "seed": seed, "started": _now(), **describe_circumstances()},
        )
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
    return folder


def open_run_folder(name: str, *, config: Mapping[str, Any], out: Path | None) -> RunFolder:
    """Open the folder of an earlier run of the same study with the same configuration, to go on with it."""
    if out is None:
        raise StudyError(
            "run folder", "which one to go on in was not said", expected="--out FOLDER --resume", got="--resume alone"
        )
    path = out.expanduser().absolute()
    try:
        found = read_bounded(path / "config.toml", limit=MAX_RECORD).decode()
    except (OSError, UnicodeDecodeError, RefusedError) as error:
        raise StudyError(
            "run folder",
            f"{path} holds no run to go on with",
            expected="the folder of an interrupted run of this study",
            got=str(error),
            fix="leave --resume out to begin a new run",
        ) from error
    if found != toml_of({"study": name, **config}):
        raise StudyError(
            "run folder",
            f"{path} is of another study, or of this one with other settings",
            expected=f"the configuration of study {name!r} as it is asked for now",
            got=_whose(path),
            fix="the same options as then, or another --out",
        )
    return RunFolder(path, name)


def _make_default(name: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1, 1000):  # two runs may start in the same second
        path = (RUNS / f"{name}-{stamp}{f'-{attempt}' if attempt > 1 else ''}").absolute()
        try:
            _mkdir(path, exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise StudyError("run folder", f"no free name for {name}-{stamp}", fix="--out with a folder of your own")


def _make_given(out: Path) -> Path:
    path = out.expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise StudyError(
            "run folder", f"{path} is a file", expected="a new or empty folder", got="a file", fix="another --out"
        )
    if path.is_dir() and any(path.iterdir()):
        raise StudyError(
            "run folder",
            f"{path} is not empty, and a run never writes over what is there",
            expected="a new or empty folder",
            got=_whose(path),
            fix="another --out, or none: each run then gets a new folder under runs/",
        )
    _mkdir(path, exist_ok=True)
    return path


def _mkdir(path: Path, *, exist_ok: bool) -> None:
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if path.exists():
            raise
        raise _unwritable(path, "a part of the path is a file") from None
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _unwritable(path: Path, why: str) -> StudyError:
    return StudyError(
        "run folder", f"{path} cannot be made", expected="a folder that can be written to", got=why, fix="another --out"
    )


def _whose(path: Path) -> str:
    """Tell what a folder holds: a run of some study, or something else."""
    try:
        record = parse_object(read_bounded(path / "run.json", limit=MAX_RECORD))
        named = f"of study {record['study']!r}" if "study" in record else f"named {record['name']!r}"
        return f"a run {named}, started {record['started']}"
    except (OSError, RefusedError, KeyError):
        names = sorted(entry.name for entry in path.iterdir())
        return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
