"""One process at a time writes into a run's folder.

A lock of the operating system on a file of the folder: it is gone with the process that holds it, however that ends, so
nothing has to be cleared after a kill. Worker processes do not inherit it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentpg.errors import StudyError

try:
    import fcntl
except ImportError:  # no POSIX system: folders are not locked there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file that is locked: empty, and it stays where it is."""


@contextmanager
def at_work_in(folder: Path) -> Iterator[None]:
    """Keep other processes from going on with the run in a folder, inside the scope.

    If one is at work there already, that is a :class:`~latentpg.errors.StudyError`. Where a folder or its file system
    allows no lock, there is none: whoever may not write there is told so by what is written first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, at_work_in(Path(folder)):
    ...     [path.name for path in Path(folder).iterdir()]
    ['.lock']
    """
    handle = _opened(folder)
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _opened(folder: Path) -> int | None:
    try:
        return None if fcntl is None else os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError:
        return None


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # either, says POSIX, if another process has it
        raise StudyError(
            "run folder",
            f"another process is at work in {folder}",
            expected="one at a time",
            got="a second one",
            fix="wait until the other has ended, or stop it",
        ) from error
    except OSError:
        return  # a file system without locks
