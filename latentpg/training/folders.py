"""A run's folder from its configuration, and a configuration from a run's folder.

What a folder says is data: an environment's id that would import a module is refused unless the user has named it again
on the command line of the moment, and nothing else in it can name code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentpg.errors import LatentPGError, OptionError, StudyError
from latentpg.runs import Checkpoint, create_run_folder
from latentpg.runs.untrusted import RefusedError, parse_object, read_bounded, read_toml
from latentpg.training.config import TrainingConfig, check_trust, known_values, read_options, resolve
from latentpg.training.options import command_of

MAX_RESULT = 2**20
"""The largest file of a run's result that is read, in bytes."""

MAY_CHANGE = frozenset({"worker_timeout"})
"""Options that no number of a run hangs on, so that a run may go on with others."""


@dataclass(frozen=True)
class SavedRun:
    """A folder, the configuration of the run in it, and the seeds if it holds one run for each."""

    path: Path
    config: TrainingConfig
    seeds: tuple[int, ...] | None


def begin_run(config: TrainingConfig, *, out: Path | None, seeds: Sequence[int] | None = None) -> Path:
    """Make a new folder with the resolved configuration and the circumstances in it."""
    selection = config.selection
    values = known_values(config) if seeds is None else {**known_values(config), "seeds": list(seeds)}
    folder = create_run_folder(
        f"{selection.env.replace('/', '-').replace(':', '-')}-{selection.algo}",
        config=values,
        command=command_of(config, seeds),
        seed=config.run.seed,
        out=out,
        kind="name",
    )
    return folder.path


def seed_folder(path: Path, seed: int) -> Path:
    """Return where the run of a seed is, in a folder of several."""
    return path / f"seed-{seed}"


def open_run(path: Path, *, trusted: bool) -> SavedRun:
    """Read what run a folder holds; ``trusted`` lets its environment import a module."""
    path = path.expanduser().absolute()
    file = path / "config.toml"
    if not file.is_file():
        raise StudyError(
            "run folder",
            f"{path} holds no run",
            expected="the folder of an earlier `latentpg train`, with its config.toml",
            got="no config.toml" if path.is_dir() else "no such folder",
        )
    values = read_options(file)
    if "env" not in values:
        raise StudyError("run folder", f"{path} holds no training run", expected="`env` in config.toml", got="none")
    check_trust(str(values["env"]), trusted=trusted)
    return SavedRun(path, resolve(values, where=str(file)), _seeds_in(file))


def check_same(config: TrainingConfig, saved: Checkpoint) -> None:
    """Refuse to go on from a checkpoint of a run with other options."""
    known, now = _known_then(saved.facts.get("config")), known_values(config)
    differs = [
        f"{name} = {now.get(name)}, then {known.get(name)}"
        for name in {**known, **now}
        if now.get(name) != known.get(name) and name not in MAY_CHANGE
    ]
    if differs:
        raise refused_change(differs)


def _known_then(values: object) -> dict[str, Any]:
    """Return the options that a checkpoint was written under; those that came later have their defaults."""
    found = values if isinstance(values, dict) else {}
    try:
        return known_values(resolve(found))
    except LatentPGError:  # a name that has gone, or no configuration at all: to be compared as it is
        return found


def refused_change(differs: Sequence[str]) -> OptionError:
    """Build the error for a run that is to go on with other options than it began with."""
    return OptionError(
        "latentpg resume",
        "a run goes on with the options that it began with",
        expected="no option changed",
        got="; ".join(differs),
        fix="leave the options out, or begin a new run: latentpg train --config RUN/config.toml and what is to change",
    )


def has_finished(path: Path) -> bool:
    """Tell whether a run has taken all its steps and written its result."""
    try:
        return bool(parse_object(read_bounded(path / "result.json", limit=MAX_RESULT))["finished"])
    except (OSError, RefusedError, KeyError):
        return False


def _seeds_in(file: Path) -> tuple[int, ...] | None:
    seeds = read_toml(file).get("seeds")
    if seeds is None:
        return None
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise StudyError("run folder", f"{file}: `seeds`", expected="a list of integers >= 0", got=repr(seeds))
    return tuple(seeds)
