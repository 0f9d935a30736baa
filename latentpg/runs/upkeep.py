"""What a folder of checkpoints needs around them: one writer at a time, old ones removed, leftovers cleared.

Whatever is removed is first renamed to a temporary name, and whatever is written is renamed from one, so that a process
killed at any moment leaves whole checkpoints and at most one temporary, which the next writer clears.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from latentpg.errors import CheckpointError
from latentpg.runs.files import FORMAT_VERSION, sync_folder
from latentpg.runs.manifest import is_step
from latentpg.runs.untrusted import RefusedError, parse_object, read_bounded

MAX_SLOT_FILE = 2**12
"""The largest file of a slot, in bytes."""

_TEMPORARY = re.compile(r"\.(step-[0-9]{10,19}|[a-z][a-z0-9-]*\.json\.\w+)(\.old)?\.tmp")
_SLOT = re.compile(r"[a-z][a-z0-9-]{0,31}")


def name_of(step: int) -> str:
    """Return the name of the folder of a step's checkpoint.

    >>> name_of(12345)
    'step-0000012345'
    """
    return f"step-{step:010d}"


def step_of(name: str) -> int | None:
    """Return the step that a folder's name says, or None if it is not such a name.

    >>> step_of("step-0000012345"), step_of("step-12345")
    (12345, None)
    """
    if not re.fullmatch("step-[0-9]{10,19}", name):
        return None
    step = int(name.removeprefix("step-"))
    return step if is_step(step) and name_of(step) == name else None


def is_slot(name: str) -> bool:
    """Tell whether a slot can be called this: a small letter, then letters, digits and hyphens, 32 at most."""
    return _SLOT.fullmatch(name) is not None and step_of(name) is None


def is_folder(path: Path) -> bool:
    """Tell whether this is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def steps_in(folder: Path) -> dict[int, Path]:
    """Return the folders in ``folder`` that are named as checkpoints are, by step, lowest first."""
    found = {step_of(name): folder / name for name in os.listdir(folder)} if folder.is_dir() else {}
    return {step: path for step, path in sorted((s, p) for s, p in found.items() if s is not None) if is_folder(path)}


def make_folder(folder: Path) -> None:
    """Make a folder and those it lies in, each flushed to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder of checkpoints, and clear what a killed one left.

    The lock is the folder's own and goes with the process, however that ends.
    """
    with _locked(folder):
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                remove(folder / name)
        yield


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it leads to."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a checkpoint; a process killed meanwhile leaves it whole, or a temporary."""
    moved = path.with_name(f".{path.name}.old.tmp")
    os.rename(path, moved)
    remove(moved)


def retire(folder: Path, *, newest: int, keep: int, protect: Collection[str]) -> None:
    """Remove all checkpoints up to step ``newest`` but the last ``keep``, those in a slot and those in ``protect``.

    Where a slot's file does not tell which checkpoint it means, nothing is removed: it could be any.
    """
    try:
        kept = {read_slot(path) for path in sorted(folder.glob("*.json")) if is_slot(path.stem)}
    except RefusedError:
        return
    candidates = [path for step, path in steps_in(folder).items() if step <= newest]
    for path in candidates[:-keep]:
        if path.name not in kept and path.name not in protect:
            discard(path)


def slot_file(folder: Path, slot: str) -> Path:
    """Return the place of a slot's file; a name that cannot be one is a :class:`~latentpg.errors.CheckpointError`."""
    if not is_slot(slot):
        expected = "a small letter, then small letters, digits and hyphens, such as best"
        raise CheckpointError("checkpoint slot", "its name", expected=expected, got=f"{slot!r:.80}")
    return folder / f"{slot}.json"


def read_slot(path: Path) -> str:
    """Return the name of the checkpoint that a slot's file means; raise :class:`RefusedError`."""
    body = parse_object(read_bounded(path, limit=MAX_SLOT_FILE))
    name = body.get("checkpoint")
    if body.keys() != {"format_version", "checkpoint"} or body["format_version"] != FORMAT_VERSION:
        raise RefusedError(f"it does not hold a checkpoint's name in format_version {FORMAT_VERSION}")
    if not isinstance(name, str) or step_of(name) is None:
        raise RefusedError(f"{name!r:.80} is not the name of a checkpoint")
    return name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not POSIX: two writers can then undo each other's work
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "wait for it, or another folder"
            raise CheckpointError("save_checkpoint()", f"another process is writing to {folder}", fix=fix) from None
        except OSError:
            pass  # a file system without locks: as above
        yield
    finally:
        os.close(handle)
