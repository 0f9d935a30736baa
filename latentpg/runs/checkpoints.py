"""Writing checkpoints: where a learner stands, in a folder that is whole or absent.

``step-0000012345/`` holds ``tensors.safetensors``, ``facts.json`` and ``manifest.json`` with the size and SHA-256 of
both and a digest of its own. It is written under a temporary name, flushed to the disk, read back, and only then
renamed; older ones are removed after that. A process killed at any moment leaves every whole checkpoint loadable.

:mod:`latentpg.runs.loading` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from latentpg.errors import CheckpointError, DamagedCheckpointError
from latentpg.runs.files import sync_folder, write_json
from latentpg.runs.loading import MAX_ATTEMPTS, MAX_BYTES, load_checkpoint
from latentpg.runs.manifest import (
    FACTS,
    MANIFEST,
    MAX_MANIFEST,
    MAX_STEP,
    TENSORS,
    Manifest,
    encode_facts,
    encode_manifest,
    entry_of,
    is_step,
)
from latentpg.runs.tensors import encode_tensors
from latentpg.runs.untrusted import read_bounded
from latentpg.runs.upkeep import discard, held, make_folder, name_of, remove, retire, slot_file, step_of, steps_in


def save_checkpoint(
    folder: Path | str,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    step: int,
    keep: int = 3,
    protect: Collection[str] = (),
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write ``folder/step-<step>``, then remove older ones but the last ``keep``; return its path.

    What a slot means (:func:`name_checkpoint`) and the names in ``protect`` stay. A step is written once: where the
    same checkpoint is there already nothing is done, where another whole one of this or of a later step is there the
    save is refused, and a damaged one of this step makes way. Whatever fails leaves the earlier ones as they were.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint(folder, {"weight": torch.ones(2)}, {"algo": "ppo"}, step=7)
    ...     checkpoint = load_checkpoint(path)
    >>> path.name, checkpoint.step, checkpoint.state["weight"], checkpoint.facts
    ('step-0000000007', 7, tensor([1., 1.]), {'algo': 'ppo'})
    """
    _check_options(step, keep, protect)
    contents = {TENSORS: encode_tensors(state), FACTS: encode_facts(facts)}
    if len(contents[TENSORS]) > max_bytes:
        expected, got = f"<= {max_bytes} bytes", f"{len(contents[TENSORS])}"
        raise CheckpointError("save_checkpoint()", "`state`", expected=expected, got=got, fix="a larger max_bytes=")
    manifest = Manifest(step, tensors=entry_of(contents[TENSORS]), facts=entry_of(contents[FACTS]))
    contents[MANIFEST] = encode_manifest(manifest)
    path = Path(folder).absolute() / name_of(step)
    with _told_as_failed_save(path):
        make_folder(path.parent)
        with held(path.parent):
            if not _is_there(path, contents[MANIFEST], max_bytes):
                _refuse_after_later(path.parent, step, max_bytes)
                _publish(path, contents, max_bytes)
                _retire(path, step, keep, protect)
    return path


def name_checkpoint(path: Path | str, slot: str, *, max_bytes: int = MAX_BYTES) -> None:
    """Let a slot such as ``best`` mean this checkpoint, which retention then never removes.

    The slot is a file ``<slot>.json`` beside the checkpoints; what it meant before is let go.
    """
    path = Path(path).absolute()
    place = slot_file(path.parent, slot)
    if step_of(path.name) is None:
        expected = "the path that save_checkpoint() returned"
        raise CheckpointError("name_checkpoint()", "`path`", expected=expected, got=str(path))
    load_checkpoint(path, max_bytes=max_bytes)
    with _told_as_failed_save(place), held(path.parent):
        write_json(place, {"checkpoint": path.name})


def _check_options(step: int, keep: int, protect: Collection[str]) -> None:
    if not is_step(step):
        expected = f"an integer from 0 to {MAX_STEP}"
        raise CheckpointError("save_checkpoint()", "`step`", expected=expected, got=f"{step!r:.40}")
    if type(keep) is not int or keep < 1:
        raise CheckpointError("save_checkpoint()", "`keep`", expected="an integer >= 1", got=f"{keep!r:.40}")
    if isinstance(protect, str) or not all(isinstance(name, str) and step_of(name) is not None for name in protect):
        expected = f"names of checkpoints, such as {name_of(12345)}"
        fix = "name_checkpoint() for a slot such as best"
        raise CheckpointError("save_checkpoint()", "`protect`", expected=expected, got=f"{protect!r:.80}", fix=fix)


def _publish(path: Path, contents: Mapping[str, bytes], max_bytes: int) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.mkdir()
        for name, content in contents.items():
            _write(temporary / name, content)
        sync_folder(temporary)
        _check_reads_back(temporary, max_bytes)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):  # what stopped the save is to be told, and the next save clears the rest
            remove(temporary)
        raise
    sync_folder(path.parent)


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_reads_back(temporary: Path, max_bytes: int) -> None:
    """Refuse to publish what cannot be read, for it would push out what can."""
    try:
        load_checkpoint(temporary, max_bytes=max_bytes)
    except DamagedCheckpointError as error:
        fix = "look after the disk; earlier checkpoints are as they were"
        what = f"{temporary} does not read back as it was written"
        raise CheckpointError("save_checkpoint()", what, got=str(error), fix=fix) from None


def _retire(path: Path, step: int, keep: int, protect: Collection[str]) -> None:
    try:
        retire(path.parent, newest=step, keep=keep, protect=protect)
    except OSError as error:
        got, fix = error.strerror or str(error), "mend that: the next save tries again"
        what = f"{path} is saved, but an older checkpoint cannot be removed"
        raise CheckpointError("save_checkpoint()", what, got=got, fix=fix) from error


def _is_there(path: Path, manifest: bytes, max_bytes: int) -> bool:
    """Tell whether this very checkpoint is there already; a damaged one is cleared away."""
    if not os.path.lexists(path):
        return False
    try:
        load_checkpoint(path, max_bytes=max_bytes)
    except DamagedCheckpointError:
        discard(path)
        return False
    if read_bounded(path / MANIFEST, limit=MAX_MANIFEST) != manifest:
        fix = "save a step once, or in another folder"
        raise CheckpointError("save_checkpoint()", f"{path} is there already, with another content", fix=fix)
    return True


def _refuse_after_later(folder: Path, step: int, max_bytes: int) -> None:
    for later in [path for found, path in steps_in(folder).items() if found > step][-MAX_ATTEMPTS:]:
        try:
            load_checkpoint(later, max_bytes=max_bytes)
        except DamagedCheckpointError:
            continue  # what the run went back from
        fix = "resume from the newest, or save in another folder"
        what = f"step {step} comes before {later}, which would stay the newest"
        raise CheckpointError("save_checkpoint()", what, fix=fix)


@contextmanager
def _told_as_failed_save(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            "save_checkpoint()",
            f"{path} cannot be written",
            expected="a folder that can be written to, on a disk with room",
            got=error.strerror or str(error),
            fix="mend that and save again: earlier checkpoints are as they were",
        ) from error
