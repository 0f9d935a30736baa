"""A run's folder from its configuration, and a configuration from a run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentpg.cloning.config import CloningConfig, resolve
from latentpg.cloning.options import command_of
from latentpg.cloning.preparing import Prepared
from latentpg.data.splits import PARTS
from latentpg.errors import OptionError, StudyError
from latentpg.runs import Checkpoint, create_run_folder, write_json
from latentpg.runs.untrusted import read_toml
from latentpg.training.cloned import is_cloning
from latentpg.training.config import check_trust, read_options
from latentpg.training.folders import refused_change


@dataclass(frozen=True)
class SavedCloning:
    """A folder, the configuration of the run in it, and the seeds if it holds one run for each."""

    path: Path
    config: CloningConfig
    seeds: tuple[int, ...] | None


def begin_run(
    config: CloningConfig, *, out: Path | None, seeds: Sequence[int] | None = None, built: Prepared | None = None
) -> Path:
    """Make a new folder with the resolved configuration and the circumstances in it.

    With what was ``built``, the configuration is as the data completed it, and the episodes of each part and the
    statistics of the training part are written too.
    """
    whole = config if built is None else built.config
    values = whole.known() if seeds is None else {**whole.known(), "seeds": list(seeds)}
    selection = config.selection
    source = selection.env or Path(selection.data).stem
    folder = create_run_folder(
        f"{source.replace('/', '-').replace(':', '-')}-{selection.policy}-{selection.objective}",
        config=values,
        command=command_of(config, seeds),
        seed=config.run.seed,
        out=out,
        kind="name",
    )
    if built is not None:
        episodes = {name: each.tolist() for name, each in zip(PARTS, built.split.episodes, strict=True)}
        write_json(folder.file("split.json"), {"seed": config.run.seed, **episodes})
        write_json(folder.file("normalisation.json"), built.normalization.as_dict())
    return folder.path


def open_run(path: Path, *, trusted: bool) -> SavedCloning:
    """Read what run a folder holds; ``trusted`` lets its environment import a module."""
    path = path.expanduser().absolute()
    if not is_cloning(path):
        raise StudyError(
            "run folder",
            f"{path} holds no cloning run",
            expected="the folder of an earlier `latentpg imitate`, with its config.toml",
            got="another folder" if path.is_dir() else "no such folder",
        )
    file = path / "config.toml"
    values = read_options(file)
    if values.get("env") is not None:
        check_trust(str(values["env"]), trusted=trusted)
    seeds = read_toml(file).get("seeds")
    if seeds is not None and (
        not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds)
    ):
        raise StudyError("run folder", f"{file}: `seeds`", expected="a list of integers >= 0", got=repr(seeds))
    return SavedCloning(path, resolve(values, where=str(file)), None if seeds is None else tuple(seeds))


def check_same(config: CloningConfig, saved: Checkpoint) -> None:
    """Refuse to go on from a checkpoint of a run with other options."""
    then, now = _known_then(saved.facts.get("config")), config.known()
    differs = [
        f"{name} = {now.get(name)}, then {then.get(name)}"
        for name in {**then, **now}
        if now.get(name) != then.get(name)
    ]
    if differs:
        raise refused_change(differs)


def _known_then(values: object) -> dict[str, Any]:
    """Return the options that a checkpoint was written under; those that came later have their defaults."""
    found = values if isinstance(values, dict) else {}
    try:
        return resolve(found).known()
    except OptionError:  # a name that has gone, or no configuration at all: to be compared as it is
        return found


def has_finished(path: Path) -> bool:
    """Tell whether a run has been fitted to its end and measured."""
    try:
        return bool(json.loads((path / "result.json").read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
