"""Reading checkpoints, as if an enemy had written them.

The manifest is read first, bounded and held to its own digest; then each file is held to the manifest, and the header
of the tensors to the file, before anything in them is parsed. Reading runs nothing. What is not what was written (cut
short, changed, or made by somebody else) is a :class:`~latentpg.errors.DamagedCheckpointError`, and
:func:`newest_checkpoint` then goes back to the one before.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentpg.errors import CheckpointError, DamagedCheckpointError
from latentpg.runs.files import FORMAT_VERSION
from latentpg.runs.manifest import (
    FACTS,
    MANIFEST,
    MAX_FACTS,
    MAX_MANIFEST,
    TENSORS,
    FileEntry,
    Manifest,
    VersionError,
    decode_facts,
    decode_manifest,
    entry_of,
)
from latentpg.runs.tensors import check_header, decode_tensors
from latentpg.runs.untrusted import RefusedError, digest_of, read_bounded, read_whole, regular_file, size_of
from latentpg.runs.upkeep import is_folder, read_slot, slot_file, step_of, steps_in

MAX_BYTES = 2**30
"""The largest file of tensors that is written or read unless told otherwise."""

MAX_ATTEMPTS = 16
"""How many checkpoints :func:`newest_checkpoint` tries before it gives up."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A learner's state as tensors by name, the facts that were kept with it, and the step it was taken at."""

    state: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    step: int


def load_checkpoint(path: Path | str, *, max_bytes: int = MAX_BYTES) -> Checkpoint:
    """Read a checkpoint of this path after all of it was held to its manifest.

    The tensors come back bit for bit, on the processor; what is not whole is a
    :class:`~latentpg.errors.DamagedCheckpointError`, another version of the format or a file of more than ``max_bytes``
    a :class:`~latentpg.errors.CheckpointError`.
    """
    path = Path(path)
    with _told_as_unreadable(path):
        manifest = _manifest_of(path)
        if manifest.tensors.size > max_bytes:
            expected, got = f"<= {max_bytes} bytes of tensors", f"{manifest.tensors.size}"
            fix = "a larger max_bytes=, if you trust it"
            raise CheckpointError("load_checkpoint()", str(path), expected=expected, got=got, fix=fix)
        if manifest.facts.size > MAX_FACTS:
            raise RefusedError(f"{FACTS}: it has {manifest.facts.size} bytes, and at most {MAX_FACTS} are read")
        facts = _content(path / FACTS, manifest.facts, is_tensors=False)
        tensors = _content(path / TENSORS, manifest.tensors, is_tensors=True)
        with _of_file(TENSORS):
            state = decode_tensors(tensors)
        with _of_file(FACTS):
            return Checkpoint(state=state, facts=decode_facts(facts), step=manifest.step)


def list_checkpoints(folder: Path | str) -> tuple[Path, ...]:
    """Return the paths of the checkpoints in a folder, newest last, by their names alone: none is looked into.

    Links and temporaries are left out; a folder that is not there has none.
    """
    with _told_as_unreadable(Path(folder)):
        return tuple(steps_in(Path(folder).absolute()).values())


def newest_checkpoint(
    folder: Path | str, *, say: Callable[[str], None] = warnings.warn, max_bytes: int = MAX_BYTES
) -> Checkpoint:
    """Read the newest whole checkpoint; each damaged one that is passed over is told to ``say``.

    None at all is a :class:`~latentpg.errors.CheckpointError`. So is a newest one of another version, or one that may
    not be read: going back would lose what it holds.
    """
    found = list_checkpoints(folder)
    for path in found[::-1][:MAX_ATTEMPTS]:
        try:
            return load_checkpoint(path, max_bytes=max_bytes)
        except DamagedCheckpointError as error:
            say(f"going back to the checkpoint before {path.name}, which is damaged:\n{error}")
    raise CheckpointError(
        "newest_checkpoint()",
        f"{folder} holds no whole checkpoint",
        expected="a folder with at least one",
        got=f"{len(found)} damaged" if found else "none",
        fix="begin a new run" if found else "the folder that holds the step-… folders",
    )


def named_checkpoint(folder: Path | str, slot: str, *, max_bytes: int = MAX_BYTES) -> Checkpoint:
    """Read the checkpoint that a slot means; no other is taken for it if it is damaged."""
    place = slot_file(Path(folder), slot)
    with _told_as_unreadable(place):
        name = read_slot(place)
    return load_checkpoint(place.parent / name, max_bytes=max_bytes)


def _manifest_of(path: Path) -> Manifest:
    if not is_folder(path):
        raise RefusedError("it is a symbolic link or a file" if os.path.lexists(path) else "there is no such folder")
    with _of_file(MANIFEST):
        manifest = decode_manifest(read_bounded(path / MANIFEST, limit=MAX_MANIFEST))
    if step_of(path.name) not in (None, manifest.step):
        raise RefusedError(f"{MANIFEST}: it is of step {manifest.step}")
    return manifest


def _content(path: Path, entry: FileEntry, *, is_tensors: bool) -> bytes:
    """Return what a file holds once it is known to be what was written.

    The digest is taken piece by piece first, so that a large wrong file does not take its size in memory, and again of
    what was read, which might have changed meanwhile.
    """
    with _of_file(path.name), regular_file(path) as stream:
        if size_of(stream) != entry.size:
            raise RefusedError(f"it has {size_of(stream)} bytes instead of {entry.size}")
        if is_tensors:
            check_header(stream, size=entry.size)
        if digest_of(stream) != entry.sha256:
            raise RefusedError("it is not what was written: its digest differs")
        content = read_whole(stream, size=entry.size)
    if entry_of(content) != entry:
        raise RefusedError(f"{path.name}: it changed while it was read")
    return content


@contextmanager
def _of_file(name: str) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise RefusedError(f"{name}: {error}") from None


@contextmanager
def _told_as_unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise DamagedCheckpointError(
            "load_checkpoint()",
            f"{path} is no whole checkpoint",
            got=str(error),
            fix="the one before it: newest_checkpoint() takes it by itself",
        ) from None
    except VersionError as error:
        expected, got = f"format_version {FORMAT_VERSION}", f"format_version {error}"
        fix = "the version of latentpg that wrote it"
        what = f"{path} is of another version"
        raise CheckpointError("load_checkpoint()", what, expected=expected, got=got, fix=fix) from None
    except OSError as error:
        got = error.strerror or str(error)
        raise CheckpointError("load_checkpoint()", f"{path} cannot be read", got=got) from error
