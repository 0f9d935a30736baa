"""Files that are whole or absent.

A file is written under a temporary name beside its place, flushed to the disk and renamed, so that a reader, or a run
that was killed, never meets half of one. Every file says which version of the format it is written in.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentpg.errors import StudyError

FORMAT_VERSION = 1
"""Version of everything a run writes; it rises when an older reader would misread a newer file."""


def publish(path: Path, content: bytes) -> None:
    """Write a file at once: temporary name, flush to disk, rename, flush the folder.

    A failure leaves what was at ``path`` before as it was, and nothing beside it.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives the owner alone access
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def clear_temporaries(folder: Path) -> None:
    """Remove what a process that was killed in the midst of :func:`publish` left in a folder of its own.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".metrics.csv.0h2k_x4z.tmp").touch()
    ...     clear_temporaries(Path(folder))
    ...     os.listdir(folder)
    []
    """
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\.[\w.-]+\.\w{8}\.tmp", path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Publish a JSON object.

    ``format_version`` comes first, and NaN and infinity, which JSON has not, are written as text.
    """
    whole = {"format_version": FORMAT_VERSION, **content}
    publish(path, (json.dumps(_jsonable(whole), indent=2, allow_nan=False) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish a table of one or more rows with equal columns; the last column is ``format_version``."""
    _check_columns("write_csv()", rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*rows[0], "format_version"])
    writer.writerows([[*("" if value is None else value for value in row.values()), FORMAT_VERSION] for row in rows])
    publish(path, text.getvalue().encode())


def _check_columns(where: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise StudyError(where, "rows", expected="one or more, with equal columns", got=f"{len(rows)} rows")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Publish the table of :func:`write_csv` as Parquet if pyarrow is installed, and tell whether it is.

    Numbers keep their type, and what is missing is null.
    """
    if importlib.util.find_spec("pyarrow") is None:
        return False
    import pyarrow  # half of what a short run takes to start, so not before there is something to write
    import pyarrow.parquet

    _check_columns("write_parquet()", rows)
    table = pyarrow.Table.from_pylist([{**row, "format_version": FORMAT_VERSION} for row in rows])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    publish(path, buffer.getvalue())
    return True


def write_toml(path: Path, content: Mapping[str, Any]) -> None:
    """Publish a TOML document of strings, numbers, booleans, lists and nested tables; a value of None is left out."""
    publish(path, toml_of(content).encode())


def toml_of(content: Mapping[str, Any]) -> str:
    """Return what :func:`write_toml` writes."""
    return to_toml({"format_version": FORMAT_VERSION, **content})


def to_toml(content: Mapping[str, Any]) -> str:
    """Spell a mapping as TOML, which the standard library reads but does not write.

    >>> print(to_toml({"seed": 3, "source": {"env_id": "CartPole-v1"}}))
    seed = 3
    <BLANKLINE>
    [source]
    env_id = "CartPole-v1"
    <BLANKLINE>
    """
    return "\n".join(_table(content, ())) + "\n"


def _table(content: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(map(_key, path))}]"] if path else []
    lines += [
        f"{_key(name)} = {_value(value)}"
        for name, value in content.items()
        if value is not None and not _is_table(value) and not _is_table_list(value)
    ]
    for name, value in content.items():
        if _is_table(value):
            lines += ["", *_table(value, (*path, name))]
        elif _is_table_list(value):
            header = f"[[{'.'.join(map(_key, (*path, name)))}]]"
            for entry in value:
                lines += ["", header, *_table(entry, (*path, name))[1:]]
    return lines


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_table_list(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_table(entry) for entry in value)


def _key(name: str) -> str:
    is_bare = bool(name) and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    return name if is_bare else json.dumps(name, ensure_ascii=False)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)  # `nan` and `inf` are TOML too
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(_value(entry) for entry in value)}]"
        case _:
            raise StudyError("to_toml()", "a value", expected="text, number, boolean, list or table", got=repr(value))


def _jsonable(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    if isinstance(value, Mapping):
        return {str(name): _jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Flush the folder's own entry, without which a crash can undo the rename.

    Where folders cannot be opened there is no need.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
