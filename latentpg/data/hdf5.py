"""Read HDF5 that may be broken or hostile: own contents only, of bounded size, by built-in filters.

An HDF5 file may point into other files of this machine: by external and soft links, by virtual datasets, by external
storage. It may ask for filters that are loaded as plugins, and declare a dataset of any size without holding it. All
of that is refused before the first number is read. The parser itself, the HDF5 library, is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentpg.data.guards import Budget, DataError, Limits, check_file
from latentpg.errors import LatentPGError

if TYPE_CHECKING:
    import h5py

KIND = "an HDF5 file"
"""What is expected, in messages."""

BUILT_IN_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
"""Deflate, shuffle, Fletcher-32, szip, n-bit, scale-offset, and the LZF that h5py brings; others would be plugins."""


@contextmanager
def open_hdf5(path: Path, *, limits: Limits) -> Iterator[Hdf5]:
    """Open a file to read; whatever the library says about a broken one becomes a :class:`DataError`."""
    real = check_file(path, kind=KIND, limits=limits)
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            str(path), "h5py is not installed", expected=KIND, fix="pip install 'latentpg[data]'"
        ) from error
    try:
        with h5py.File(real, "r") as file:
            yield Hdf5(path, file, Budget(path, limits))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, MemoryError) as error:
        if isinstance(error, LatentPGError):
            raise
        raise DataError(
            str(path),
            "cannot be read",
            expected=KIND,
            got=str(error) or type(error).__name__,
            likely="a file cut short, or one of another kind",
        ) from error


class Hdf5:
    """An open file, of which names are looked up one by one, and each array is checked before it is read."""

    def __init__(self, path: Path, root: h5py.Group, budget: Budget) -> None:
        """Take the file and what may be read of it."""
        self.path, self.root, self.budget = path, root, budget

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """Return a group inside of another."""
        found = self._own(parent, name)
        if not hasattr(found, "keys"):
            raise DataError(str(self.path), f"`{_join(parent, name)}` is not a group")
        return found

    def array(self, parent: h5py.Group, name: str) -> np.ndarray:
        """Return a dataset of numbers, checked before it is read."""
        found, where = self._own(parent, name), _join(parent, name)
        if not hasattr(found, "shape"):
            raise DataError(str(self.path), f"`{where}` is not a dataset", got="a group")
        if found.shape is None or found.dtype.kind not in "fiub" or found.dtype.hasobject:
            raise DataError(str(self.path), f"`{where}` holds no numbers", expected="numbers", got=f"{found.dtype}")
        if found.is_virtual or found.external:
            raise DataError(
                str(self.path),
                f"`{where}` lies in another file",
                expected="a dataset within the file",
                got="a virtual dataset" if found.is_virtual else "external storage",
                fix="copy the file with its contents, by h5repack say",
            )
        plist = found.id.get_create_plist()
        foreign = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())} - BUILT_IN_FILTERS
        if foreign:
            raise DataError(
                str(self.path),
                f"`{where}` is compressed by a filter that would have to be loaded",
                expected="gzip, LZF, szip, or none",
                got=f"filter {', '.join(map(str, sorted(foreign)))}",
            )
        if found.chunks:  # one is unpacked as a whole, whatever little of it is used
            self.budget.limits.check_shape(self.path, where, (1, math.prod(found.chunks)), found.dtype.itemsize)
        self.budget.spend(where, found.shape, found.dtype.itemsize)
        return np.asarray(found[()])

    def names(self, group: h5py.Group) -> list[str]:
        """Return what a group holds, by name; no more than the limits allow episodes."""
        self.budget.limits.check_episodes(self.path, len(group))
        return sorted(group.keys())

    def attribute(self, group: h5py.Group, name: str) -> Any:  # noqa: ANN401 (what somebody wrote)
        """Return an attribute that is one number, or ``None``."""
        if name not in group.attrs:
            return None
        kept = group.attrs.get_id(name)
        if math.prod(kept.shape) != 1 or kept.dtype.kind not in "iu":
            return None
        return int(np.asarray(group.attrs[name]).reshape(()))

    def has(self, parent: h5py.Group, name: str) -> bool:
        """Tell whether a group holds a name, without following where it may lead."""
        return bool(name) and "/" not in name and name != "." and parent.id.links.exists(name.encode())

    def is_group(self, parent: h5py.Group, name: str) -> bool:
        """Tell a group from a dataset."""
        return hasattr(self._own(parent, name), "keys")

    def _own(self, parent: h5py.Group, name: str) -> Any:  # noqa: ANN401 (a group or a dataset)
        """Return what lies in the file itself under a name, and not what a link leads to."""
        import h5py

        where = _join(parent, name)
        # h5py's own `in` and `get` open what a link leads to before they tell that it is a link
        if not self.has(parent, name):
            held = ", ".join(sorted(parent)[:8])
            raise DataError(str(self.path), f"no `{where}`", expected=f"`{name}`", got=held or "an empty group")
        kind = parent.id.links.get_info(name.encode()).type
        if kind != h5py.h5l.TYPE_HARD:
            soft = kind == h5py.h5l.TYPE_SOFT
            raise DataError(
                str(self.path),
                f"`{where}` is a link, which was not followed: it could lead to any file of this machine",
                expected="a group or a dataset within the file",
                got=f"{'a soft' if soft else 'an external'} link",
                fix="copy the file with its contents, by h5repack say",
            )
        return parent[name]


def _join(parent: h5py.Group, name: str) -> str:
    return f"{parent.name or ''}/{name}".replace("//", "/")


def columns_of(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return ``[T]`` or ``[T, n]`` floating-point numbers as ``[T, n]``; images and categories are refused."""
    if values.ndim not in (1, 2) or values.dtype.kind != "f":
        raise DataError(
            str(path),
            f"`{name}` cannot be a part of an observation",
            expected="floating-point numbers [T] or [T, n]",
            got=f"{values.dtype} {list(values.shape)}",
            likely="an image" if values.ndim > 2 else "categories",
            fix="name other keys: obs_keys=[...]; one-hot categories",
        )
    return values.reshape(len(values), -1)
