"""The file of one finished cell: canonical, flat, and with a digest of itself by which any damage shows.

A cell is text (its key), rows of a tidy table, and seconds; ``encode`` and ``decode`` turn it into bytes and back, to
the same values, infinity and NaN included. What is decoded may come from anybody: it is data, checked, and never run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentpg.errors import StudyError
from latentpg.runs import FORMAT_VERSION

Row = dict[str, str | int | float | bool | None]
"""One row of a tidy table."""

_SPELLED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # as latentpg.runs writes what JSON has not


@dataclass(frozen=True)
class StoredCell:
    """What a cell of the study with this fingerprint found, and how long it took, in seconds."""

    fingerprint: str
    key: str
    rows: tuple[Row, ...]
    seconds: float


class DamagedError(Exception):
    """A file does not hold together; the text says how. It ends no study: the cell counts as missing."""


class VersionError(Exception):
    """A file is whole, and of another version of the format."""


def fingerprint_of(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration's canonical JSON, in which the order of keys does not matter.

    >>> fingerprint_of({"a": 1, "b": (2.0, None)}) == fingerprint_of({"b": [2.0, None], "a": 1})
    True
    """
    try:
        text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
    except (TypeError, ValueError, RecursionError) as error:
        expected = "text, numbers, booleans, None, lists and mappings with text as keys"
        raise StudyError("study", "configuration without a fingerprint", expected=expected, got=str(error)) from None


def encode(cell: StoredCell) -> bytes:
    """Write a cell as one JSON object.

    >>> cell = StoredCell("f", "elbo, K=2", ({"value": math.inf},), 1.5)
    >>> decode(encode(cell)) == cell
    True
    """
    body = {
        "format_version": FORMAT_VERSION,
        "fingerprint": cell.fingerprint,
        "key": cell.key,
        "rows": [{name: _spelled(value) for name, value in row.items()} for row in cell.rows],
        "seconds": float(cell.seconds),
    }
    return json.dumps({**body, "digest": fingerprint_of(body)}, indent=1, ensure_ascii=False).encode() + b"\n"


def decode(content: bytes) -> StoredCell:
    """Read a cell back; raise :class:`DamagedError` or :class:`VersionError` if that cannot be."""
    body = _parse(content)
    digest = body.pop("digest", None)
    if not isinstance(digest, str) or digest != _digest(body):
        raise DamagedError("it is not what was written: its digest differs")
    version = body.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise VersionError(f"{version!r:.40}")
    fingerprint, key, rows, seconds = (body.get(name) for name in ("fingerprint", "key", "rows", "seconds"))
    if not isinstance(fingerprint, str) or not isinstance(key, str) or not isinstance(seconds, float):
        raise DamagedError("its fingerprint, key or seconds are missing, or of another type")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DamagedError("its rows are missing, or not a list of objects")
    if any(isinstance(value, dict | list) for row in rows for value in row.values()):
        raise DamagedError("its rows are not flat")
    told = tuple({name: _told(value) for name, value in row.items()} for row in rows)
    return StoredCell(fingerprint, key, told, seconds)


def checked_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Copy rows whose values a table can hold; any other is a :class:`~latentpg.errors.StudyError` that names it."""
    is_list = isinstance(rows, Sequence) and not isinstance(rows, str | bytes)
    if not is_list or not all(isinstance(row, Mapping) for row in rows):
        raise StudyError("study cells", "a cell's rows", expected="a list of dicts", got=f"{rows!r:.80}")
    for row in rows:
        for name, value in row.items():
            if not _is_plain(name, value):
                raise StudyError(
                    "study cells",
                    f"the value of `{name}` in a row",
                    expected=f"text (other than {', '.join(_SPELLED)}), a number, a boolean or None",
                    got=f"{type(value).__name__}: {value!r:.80}",
                )
    return tuple(dict(row) for row in rows)


def _is_plain(name: object, value: object) -> bool:
    """Tell whether a value comes back from the file as what it was."""
    if isinstance(value, str):
        return _is_text(name) and value not in _SPELLED and _is_text(value)
    return _is_text(name) and (value is None or isinstance(value, int | float))


def _is_text(value: object) -> bool:
    """Tell whether a value is text that UTF-8 can hold: half a surrogate pair is not."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _spelled(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def _told(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    return _SPELLED.get(value, value) if isinstance(value, str) else value


def _parse(content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is not JSON, or cut short: {error!s:.80}") from None
    if not isinstance(parsed, dict):
        raise DamagedError("it does not hold a JSON object")
    return parsed


def _digest(body: Mapping[str, Any]) -> str:
    try:
        return fingerprint_of(body)
    except StudyError:  # half a surrogate pair, or nested too deep
        raise DamagedError("it holds what no cell can hold") from None
