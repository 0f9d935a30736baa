"""Demonstrations in the HDF5 layout of robomimic.

``data/demo_0``, ``data/demo_1``, ... hold ``actions [T, A]``, ``obs/KEY`` for each part of the observation, and
usually ``rewards [T]``. Subsets that ``mask`` lists are left alone: split what was read. The layout
is that of A. Mandlekar et al., "What matters in learning from offline human demonstrations for robot
manipulation", 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError, Limits, check_total
from latentpg.data.hdf5 import Hdf5, columns_of, open_hdf5

if TYPE_CHECKING:
    import h5py


def read_robomimic(
    path: Path | str,
    *,
    obs_keys: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    limits: Limits | None = None,
) -> Demonstrations:
    """Read all demonstrations, in the order of their numbers, with the named parts of the observation side by side.

    Without ``obs_keys`` a demonstration file with one key takes that one, and any other names its keys in an error:
    which of them a policy may see is a choice.
    """
    path = Path(path)
    with open_hdf5(path, limits=limits or Limits()) as file:
        data = file.group(file.root, "data")
        names = numbered(file, data, "demo_")
        keys = _keys(file, file.group(file.group(data, names[0]), "obs"), obs_keys)
        obs, action, reward = [], [], []
        for name in names:
            demo = file.group(data, name)
            group = file.group(demo, "obs")
            parts = [columns_of(path, f"data/{name}/obs/{key}", file.array(group, key)) for key in keys]
            check_equal_lengths(path, f"data/{name}/obs", keys, parts)
            obs.append(np.concatenate(parts, 1))
            action.append(file.array(demo, "actions"))
            reward.append(file.array(demo, "rewards").astype(np.float64) if file.has(demo, "rewards") else None)
            check_total(path, f"steps of {name}", file.attribute(demo, "num_samples"), len(action[-1]))
        check_total(path, "steps", file.attribute(data, "total"), sum(map(len, action)))
    rewards = [each for each in reward if each is not None]
    return Demonstrations.from_episodes(
        obs, action, reward=rewards if len(rewards) == len(obs) else None, dtype=dtype, source=str(path)
    )


def numbered(file: Hdf5, group: h5py.Group, prefix: str) -> list[str]:
    """Return the names PREFIX0, PREFIX1, ... of a group, by their numbers; others are left alone."""
    numbers = sorted(
        (int(rest), name)
        for name in file.names(group)
        if name.startswith(prefix) and (rest := name[len(prefix) :]).isascii() and rest.isdigit() and len(rest) < 12
    )
    if not numbers:
        raise DataError(
            str(file.path),
            f"no episodes in `{group.name}`",
            expected=f"{prefix}0, {prefix}1, ...",
            got=", ".join(file.names(group)[:8]) or "nothing",
        )
    return [name for _, name in numbers]


def check_equal_lengths(path: Path, where: str, keys: Sequence[str], parts: Sequence[np.ndarray]) -> None:
    """Refuse parts of one observation that are not equally long."""
    if len({len(part) for part in parts}) > 1:
        raise DataError(
            str(path),
            f"the parts of `{where}` have different lengths",
            expected="as many steps in each",
            got=", ".join(f"`{key}` {len(part)}" for key, part in zip(keys, parts, strict=True)),
        )


def _keys(file: Hdf5, obs: h5py.Group, wanted: Sequence[str] | None) -> list[str]:
    present = file.names(obs)
    if wanted is None and len(present) == 1:
        return present
    if not wanted:
        raise DataError(
            str(file.path),
            "which parts of the observation to take is not told",
            expected="obs_keys, one or more",
            got=", ".join(present[:16]) or "no observations",
            fix=f"obs_keys={present[:2]!r}",
        )
    return list(wanted)
