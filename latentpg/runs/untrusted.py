"""Reading files that anybody may have written: bounded, regular, and data only.

A path in a run folder may lead to a link elsewhere, a pipe that never ends, or a file of any size and content. What is
opened here is a regular file of bounded size under its own name, and what is parsed is JSON of bounded size without
double keys. Everything that is wrong ends in a :class:`RefusedError`, which the caller turns into an error of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MAX_NESTING = 40
"""How deep a JSON file may be nested."""

MAX_PARTS = 20_000
"""The largest number of opening brackets in a JSON file, those in texts too: parsing costs time and memory for each."""

MAX_TOML = 2**16
"""The largest TOML file, in bytes."""

MAX_DOTS = 1000
"""The largest number of dots in a line of a TOML file: each can be a table within a table."""

# What says that the file itself is wrong. No permission, or no free file handle, says nothing of the file.
_WRONG = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EIO})


class RefusedError(Exception):
    """What was read is not what it should be; the text says how."""


@contextmanager
def regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read, unless it is a link, a folder, a pipe or a device.

    A file that is missing or unreadable as such is refused; an ``OSError`` that says nothing of the file, such as
    no permission, passes through.
    """
    try:
        with open(path, "rb", opener=_open_regular) as stream:
            yield stream
    except OSError as error:
        if error.errno not in _WRONG:
            raise
        is_link = error.errno == errno.ELOOP
        raise RefusedError("it is a symbolic link" if is_link else error.strerror or str(error)) from None


def size_of(stream: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(stream.fileno()).st_size


def digest_of(stream: BinaryIO) -> str:
    """Return the SHA-256 of a whole open file in hexadecimal, read piece by piece."""
    stream.seek(0)
    digest = hashlib.sha256()
    while piece := stream.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def read_whole(stream: BinaryIO, *, size: int) -> bytes:
    """Return the content of an open file that must have exactly ``size`` bytes.

    >>> import io
    >>> read_whole(io.BytesIO(b"abc"), size=2)
    Traceback (most recent call last):
    ...
    latentpg.runs.untrusted.RefusedError: its size changed while it was read
    """
    stream.seek(0)
    content = stream.read(size + 1)
    if len(content) != size:
        raise RefusedError("its size changed while it was read")
    return content


def read_bounded(path: Path, *, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes."""
    with regular_file(path) as stream:
        size = size_of(stream)
        if size > limit:
            raise RefusedError(f"it has {size} bytes, and at most {limit} are read")
        return read_whole(stream, size=size)


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object in UTF-8.

    Double keys, too many parts, deep nesting, and NaN and infinity, which JSON has not, are refused.

    >>> parse_object(b'{"a": [1, null]}')
    {'a': [1, None]}
    """
    if has_many_parts(content):
        raise RefusedError(f"it has more than {MAX_PARTS} parts")
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # nested too deep, or a number of too many digits
        raise RefusedError(f"it is not JSON, or cut short: {error!s:.80}") from None
    if not isinstance(parsed, dict):
        raise RefusedError("it does not hold a JSON object")
    _check_nesting(parsed)
    return parsed


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML document of bounded size and depth; it may lie behind a link, as a user's own file may.

    A file that cannot be read at all is an ``OSError``.
    """
    with open(path, "rb", opener=_open_waiting_for_nobody) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise RefusedError("it is not a regular file")
        content = stream.read(MAX_TOML + 1)
    if len(content) > MAX_TOML:
        raise RefusedError(f"it has more than {MAX_TOML} bytes")
    if any(line.count(b".") > MAX_DOTS for line in content.splitlines()):
        raise RefusedError(f"a line of it has more than {MAX_DOTS} dots")
    try:
        parsed = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deep
        raise RefusedError(f"it is not TOML: {error!s:.200}") from None
    _check_nesting(parsed)
    return parsed


def has_many_parts(content: bytes) -> bool:
    """Tell whether a JSON file has more lists and objects than are read.

    >>> has_many_parts(b"[" * 20_000), has_many_parts(b"[" * 20_001)
    (False, True)
    """
    return content.count(b"{") + content.count(b"[") > MAX_PARTS


def _open_waiting_for_nobody(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open_regular(path: str, flags: int) -> int:
    # without O_NONBLOCK a pipe that nobody writes to would be waited for
    handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RefusedError("it is not a regular file")
    return handle


def _check_nesting(parsed: object) -> None:
    """Refuse what is so deep that whoever walks over it, if only to print it, could run out of stack."""
    level: list[Any] = [parsed]
    for _ in range(MAX_NESTING):
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [entry for values in inside for entry in values if isinstance(entry, dict | list)]
        if not level:
            return
    raise RefusedError(f"it is nested more than {MAX_NESTING} deep")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) != len(pairs):
        raise RefusedError("it names something twice")
    return whole


def _no_constant(name: str) -> None:
    raise RefusedError(f"it holds {name}, which JSON has not")
