"""Finished cells of a study, one small file a cell, so that a study that was cut off resumes with the missing ones.

A cell's file lies under ``cells/`` in the run folder and is named by a hash of the cell's key, so that no cell can be
there twice. It is written whole or not at all (:func:`latentpg.runs.publish`) and carries the fingerprint of the
study's configuration. What does not hold together (cut short, changed, or made by somebody else) is named and counts as
missing; a file of another study makes the whole folder be refused, because rows of two studies in one table would be
worse than none.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentpg.errors import StudyError
from latentpg.runs import FORMAT_VERSION, publish
from latentpg.studies.cellfile import (
    DamagedError,
    StoredCell,
    VersionError,
    checked_rows,
    decode,
    encode,
    fingerprint_of,
)

__all__ = ["MAX_BYTES", "CellStore", "StoredCell", "Survey", "fingerprint_of"]

MAX_BYTES = 4 * 2**20
"""The largest file of a cell: hundreds of times what one takes, and little enough to be read without harm."""


@dataclass(frozen=True)
class Survey:
    """Keys of finished cells, and by file name what is wrong with those that cannot be used."""

    finished: frozenset[str]
    damaged: Mapping[str, str]


@dataclass(frozen=True)
class CellStore:
    """The finished cells in the run folder ``folder`` of the study whose configuration has this fingerprint.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = CellStore(Path(folder), fingerprint_of({"seed": 0}))
    ...     store.write("elbo, K=2", [{"measure": "bias", "value": 0.25}], seconds=1.5)
    ...     print(store.finished(), store.read("elbo, K=2").rows)
    {'elbo, K=2'} ({'measure': 'bias', 'value': 0.25},)
    """

    folder: Path
    fingerprint: str

    @property
    def cells(self) -> Path:
        """The folder of the cells' files."""
        return self.folder / "cells"

    def path(self, key: str) -> Path:
        """Return the place of a cell's file, whether or not it is there."""
        return self.cells / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def survey(self) -> Survey:
        """Look into every file, one at a time; one of another study is a :class:`~latentpg.errors.StudyError`."""
        finished, damaged = set(), {}
        for path in sorted(self.cells.glob("*.json")):
            try:
                finished.add(self._load(path).key)
            except DamagedError as error:
                damaged[path.name] = str(error)
        return Survey(frozenset(finished), damaged)

    def finished(self) -> set[str]:
        """Return the keys of the cells that are there and whole."""
        return set(self.survey().finished)

    def read(self, key: str) -> StoredCell:
        """Return a finished cell; one that is missing or damaged is a :class:`~latentpg.errors.StudyError`."""
        try:
            return self._load(self.path(key))
        except DamagedError as error:
            raise StudyError(
                "study cells",
                f"cell {key!r} cannot be read",
                expected=f"the file that was written as {self.path(key)}",
                got=str(error),
                fix="run the study again with this folder: only missing cells are computed",
            ) from None

    def write(self, key: str, rows: Sequence[Mapping[str, Any]], seconds: float | int) -> None:
        """Publish a finished cell, in the place of an earlier file of the same cell."""
        content = encode(StoredCell(self.fingerprint, key, checked_rows(rows), seconds))
        if len(content) > MAX_BYTES:
            got = f"{len(content)} bytes, of {len(rows)} rows"
            raise StudyError("study cells", f"cell {key!r} is too large", expected=f"<= {MAX_BYTES} bytes", got=got)
        _make(self.cells)
        try:
            publish(self.path(key), content)
        except OSError as error:
            got = error.strerror or str(error)
            fix = "mend that and run the study again with this folder: finished cells are kept"
            raise StudyError("study cells", f"{self.path(key)} cannot be written", got=got, fix=fix) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running the same study in the same folder, and clear what a killed one left.

        The lock is the folder's own and goes with the process, however that ends.
        """
        _make(self.cells)
        with _locked(self.cells):
            for path in self.cells.glob(".*.tmp"):
                path.unlink(missing_ok=True)
            yield

    def _load(self, path: Path) -> StoredCell:
        try:
            cell = decode(_read_bounded(path))
        except VersionError as version:
            raise _foreign(path, f"format_version {FORMAT_VERSION}", f"format_version {version}") from None
        if cell.fingerprint != self.fingerprint:
            raise _foreign(path, f"configuration {self.fingerprint:.12}…", f"configuration {cell.fingerprint:.12}…")
        if path.name != self.path(cell.key).name:
            raise DamagedError(f"it holds the cell {cell.key!r:.80}, whose file has another name")
        return cell


def _read_bounded(path: Path) -> bytes:
    """Read a regular file of bounded size: neither a link elsewhere nor a pipe that never ends."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise DamagedError(error.strerror or str(error)) from None
    try:
        told = os.fstat(handle)
        if not stat.S_ISREG(told.st_mode):
            raise DamagedError("it is not a regular file")
        if told.st_size > MAX_BYTES:
            raise DamagedError(f"it has more than {MAX_BYTES} bytes")
        return os.read(handle, told.st_size)  # less, if it shrinks meanwhile: the digest then differs
    finally:
        os.close(handle)


def _foreign(path: Path, expected: str, got: str) -> StudyError:
    return StudyError(
        "run folder",
        f"{path} belongs to another study, or to the same one with other settings",
        expected=expected,
        got=got,
        fix="the settings the folder was made with, or another --out",
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = error.strerror or str(error)
        raise StudyError("run folder", f"{folder} cannot be made", expected="a folder to write to", got=got) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not POSIX: equal cells of two runs then overwrite each other, and no worse
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for it, or another --out"
            raise StudyError("run folder", f"another run is writing to {folder.parent}", fix=fix) from None
        except OSError:
            pass  # a file system without locks: as above
        yield
    finally:
        os.close(handle)
