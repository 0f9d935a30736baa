"""What a checkpoint says of itself: its step, the size and SHA-256 of its files, and a digest of that.

The facts beside the tensors are here too: JSON in which every value comes back as what it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentpg.errors import CheckpointError
from latentpg.runs.files import FORMAT_VERSION
from latentpg.runs.untrusted import MAX_PARTS, RefusedError, has_many_parts, parse_object

TENSORS, FACTS, MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"

MAX_FACTS = 2**20
"""The largest file of facts, in bytes."""

MAX_MANIFEST = 2**12
"""The largest manifest, in bytes: some five hundred are taken."""

MAX_STEP = 10**18
"""The largest step."""

MAX_DEPTH = 32
"""How deep facts may be nested."""

_SPELLED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as every file of a run writes what JSON has not


@dataclass(frozen=True)
class FileEntry:
    """What a file must be: its size in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The step of a checkpoint, and what its two other files must be."""

    step: int
    tensors: FileEntry
    facts: FileEntry


class VersionError(Exception):
    """A manifest is whole, and of another version of the format."""


def entry_of(content: bytes) -> FileEntry:
    """Return what a file of this content must be."""
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest as JSON whose last line is the digest of the rest.

    >>> manifest = Manifest(5, entry_of(b"tensors"), entry_of(b"facts"))
    >>> decode_manifest(encode_manifest(manifest)) == manifest
    True
    """
    files = {FACTS: manifest.facts, TENSORS: manifest.tensors}
    body = {
        "format_version": FORMAT_VERSION,
        "step": manifest.step,
        "files": {name: {"bytes": entry.size, "sha256": entry.sha256} for name, entry in files.items()},
    }
    return _spell({**body, "digest": _digest(body)})


def decode_manifest(content: bytes) -> Manifest:
    """Read a manifest; raise :class:`RefusedError`, or :class:`VersionError` if it is whole and of another version.

    It can name no file but the two that a checkpoint has, so that no name in it leads anywhere.
    """
    body = parse_object(content)
    digest = body.pop("digest", None)
    if digest != _digest(body):
        raise RefusedError("it is not what was written: its digest differs")
    version = body.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise VersionError(f"{version!r:.40}")
    if body.keys() != {"format_version", "step", "files"}:
        raise RefusedError("it does not hold a step and files alone")
    step, files = body["step"], body["files"]
    if not is_step(step):
        raise RefusedError(f"its step is {step!r:.40}")
    if not isinstance(files, dict) or files.keys() != {TENSORS, FACTS}:
        raise RefusedError(f"it names other files than {FACTS} and {TENSORS}: {files!r:.80}")
    manifest = Manifest(step=step, tensors=_entry(TENSORS, files[TENSORS]), facts=_entry(FACTS, files[FACTS]))
    if encode_manifest(manifest) != content:
        raise RefusedError("it is not spelled as it was written")
    return manifest


def is_step(step: object) -> bool:
    """Tell whether this can be a step: an integer from 0 to ``MAX_STEP``, and no truth value."""
    return type(step) is int and 0 <= step <= MAX_STEP


def encode_facts(facts: Mapping[str, Any]) -> bytes:
    """Write facts as JSON; a value that would come back as another is a :class:`~latentpg.errors.CheckpointError`.

    NaN and infinity, which JSON has not, are written as text, and so the text ``"nan"`` is refused. Tuples come back
    as lists.

    >>> decode_facts(encode_facts({"best": float("-inf"), "sizes": [64, 64]}))
    {'best': -inf, 'sizes': [64, 64]}
    """
    if not isinstance(facts, Mapping):
        raise CheckpointError("save_checkpoint()", "`facts`", expected="a mapping", got=type(facts).__name__)
    content = _spell({"format_version": FORMAT_VERSION, "facts": _spelled(facts, "facts", MAX_DEPTH)})
    if len(content) > MAX_FACTS or has_many_parts(content):
        fix = "numbers in bulk belong among the tensors"
        expected, got = f"<= {MAX_FACTS} bytes of JSON with <= {MAX_PARTS} brackets", f"{len(content)} bytes"
        raise CheckpointError("save_checkpoint()", "`facts`", expected=expected, got=got, fix=fix)
    return content


def decode_facts(content: bytes) -> dict[str, Any]:
    """Read what :func:`encode_facts` wrote; raise :class:`RefusedError`."""
    body = parse_object(content)
    facts = body.get("facts")
    if body.keys() != {"format_version", "facts"} or body["format_version"] != FORMAT_VERSION:
        raise RefusedError("it does not hold facts alone")
    if not isinstance(facts, dict):
        raise RefusedError("its facts are not a JSON object")
    return {name: _told(value) for name, value in facts.items()}


def _entry(name: str, entry: Any) -> FileEntry:  # noqa: ANN401 (any JSON value)
    if isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}:
        size, sha256 = entry["bytes"], entry["sha256"]
        if type(size) is int and size >= 0 and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256):
            return FileEntry(size, sha256)
    raise RefusedError(f"its entry of {name} is {entry!r:.80}")


def _spelled(value: object, where: str, depth: int) -> object:
    if isinstance(value, Mapping | list | tuple) and not depth:
        expected = f"nested at most {MAX_DEPTH} deep"
        raise CheckpointError("save_checkpoint()", f"`{where:.80}`", expected=expected, got="deeper")
    if isinstance(value, Mapping) and all(_is_text(name) for name in value):
        return {name: _spelled(entry, f"{where}[{name!r}]", depth - 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(entry, f"{where}[{i}]", depth - 1) for i, entry in enumerate(value)]
    if type(value) is float and not math.isfinite(value):
        return str(value)
    if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 10**1000):
        return value
    if _is_text(value) and value not in _SPELLED:
        return value
    raise CheckpointError(
        "save_checkpoint()",
        f"`{where:.80}`",
        expected=f"text (other than {', '.join(_SPELLED)}), a number, a boolean, None, or lists and mappings of such",
        got=f"{type(value).__name__}: {value!r:.80}" if type(value) is not int else "an integer of too many digits",
        fix="float(value) or int(value) for a number of NumPy's; tensors belong in the state",
    )


def _told(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(value, dict):
        return {name: _told(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_told(entry) for entry in value]
    return _SPELLED.get(value, value) if isinstance(value, str) else value


def _is_text(value: object) -> bool:
    """Tell whether a value is text that UTF-8 can hold: half a surrogate pair is not."""
    try:
        return type(value) is str and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _digest(body: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):  # infinity, as 1e999 is read; or nested too deep
        raise RefusedError("it holds what no manifest can hold") from None
    return hashlib.sha256(text.encode()).hexdigest()


def _spell(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
