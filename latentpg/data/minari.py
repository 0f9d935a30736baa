"""Demonstrations in the folder layout of Minari's HDF5 datasets.

``data/main_data.hdf5`` holds ``episode_0``, ``episode_1``, ... with ``observations``, ``actions``, ``rewards``;
observations of a ``Dict`` space are a group by name, of a ``Tuple`` space a group ``_index_0``, ``_index_1``, ...; an
episode has one observation more than actions. ``data/metadata.json`` says how many episodes and steps there are. It
also names an environment and the code that makes it: neither is looked at, nor imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError, Limits, check_total, read_json
from latentpg.data.hdf5 import Hdf5, columns_of, open_hdf5
from latentpg.data.robomimic import check_equal_lengths, numbered

if TYPE_CHECKING:
    import h5py

MAX_PARTS = 256
"""How many parts an observation may have."""


def read_minari(
    path: Path | str, *, dtype: torch.dtype = torch.float32, limits: Limits | None = None
) -> Demonstrations:
    """Read all episodes of a dataset's folder, in the order of their numbers.

    Parts of a ``Dict`` observation come in the order of their names, which is Gymnasium's own, and those of a
    ``Tuple`` in their order. The observation after an episode's last action is left out.
    """
    folder, limits = Path(path), limits or Limits()
    data = folder / "data" if (folder / "data").is_dir() else folder
    told = read_json(data / "metadata.json", kind="the metadata.json of a Minari dataset", limits=limits)
    if told.get("data_format", "hdf5") != "hdf5":
        raise DataError(
            str(folder), "not stored as HDF5", expected='data_format "hdf5"', got=repr(told["data_format"])[:80]
        )
    main = data / "main_data.hdf5"
    obs, action, reward = [], [], []
    with open_hdf5(main, limits=limits) as file:
        for name in numbered(file, file.root, "episode_"):
            episode = file.group(file.root, name)
            seen = _observations(file, episode)
            action.append(file.array(episode, "actions"))
            reward.append(file.array(episode, "rewards").astype(np.float64))
            if len(seen) != len(action[-1]) + 1:
                raise DataError(
                    str(main),
                    f"`{name}` has {len(seen)} observations and {len(action[-1])} actions",
                    expected="one observation more than actions",
                    got=f"{len(seen)} and {len(action[-1])}",
                    likely="a file cut short, or one that another program wrote",
                )
            obs.append(seen[:-1])
            check_total(main, f"steps of {name}", file.attribute(episode, "total_steps"), len(action[-1]))
    check_total(folder, "episodes", told.get("total_episodes"), len(obs))
    check_total(folder, "steps", told.get("total_steps"), sum(map(len, action)))
    return Demonstrations.from_episodes(obs, action, reward=reward, dtype=dtype, source=str(folder))


def _observations(file: Hdf5, episode: h5py.Group) -> np.ndarray:
    """Return a dataset as columns, or the columns of all parts of a group, and of groups in it, side by side."""
    pending: list[tuple[h5py.Group, str]] = [(episode, "observations")]
    parts: list[np.ndarray] = []
    names: list[str] = []
    while pending:
        parent, name = pending.pop(0)
        if len(parts) + len(pending) > MAX_PARTS:
            raise DataError(
                str(file.path),
                f"the observations of `{episode.name}` have too many parts",
                expected=f"at most {MAX_PARTS}",
                got="more, or a group that contains itself",
            )
        if file.is_group(parent, name):
            group = file.group(parent, name)
            inside = file.names(group)
            if inside and all(each.startswith("_index_") for each in inside):
                inside = numbered(file, group, "_index_")
            pending = [(group, each) for each in inside] + pending
            depth = str(group.name).count("/")
            if depth > MAX_PARTS:
                raise DataError(str(file.path), "a group that contains itself", got=str(group.name)[:80])
        else:
            names.append(f"{parent.name}/{name}")
            parts.append(columns_of(file.path, names[-1], file.array(parent, name)))
    if not parts:
        raise DataError(
            str(file.path), f"`{episode.name}` has no observations", expected="a dataset, or some in a group"
        )
    check_equal_lengths(file.path, f"{episode.name}/observations", names, parts)
    return np.concatenate(parts, 1)
