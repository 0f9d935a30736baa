"""What a dataset file may be: regular, of bounded size, and data only.

Whoever reads demonstrations reads what somebody else has written. A file is looked at before it is parsed, sizes are
compared with :class:`Limits` before anything is unpacked, and every fault ends in one :class:`DataError`. Nothing here
or in the readers runs what a file holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentpg.errors import LatentPGError, OptionError
from latentpg.runs.untrusted import RefusedError, parse_object, read_bounded, regular_file, size_of


class DataError(LatentPGError, ValueError):
    """Demonstrations, or a file of them, are not what they should be."""


@dataclass(frozen=True)
class Limits:
    """Stop reading where a dataset has more than so many bytes when unpacked, steps or episodes.

    >>> Limits(max_rows=1000)
    Limits(max_bytes=2147483648, max_rows=1000, max_episodes=1000000)
    """

    max_bytes: int = 2**31
    max_rows: int = 50_000_000
    max_episodes: int = 1_000_000

    def __post_init__(self) -> None:
        """Check that all three are positive."""
        for name, value in vars(self).items():
            if value < 1:
                raise OptionError("Limits()", f"`{name}`", expected="an integer >= 1", got=repr(value))

    def check_shape(self, path: Path, name: str, shape: tuple[int, ...], itemsize: int) -> int:
        """Return the bytes of an array that is about to be read, or refuse it."""
        size = math.prod(shape) * itemsize
        if size > self.max_bytes or (shape and shape[0] > self.max_rows):
            raise self.too_large(path, f"`{name}`", f"{list(shape)}, {size:,} bytes")
        return size

    def check_episodes(self, path: Path, number: int) -> None:
        """Refuse more episodes than ``max_episodes``."""
        if number > self.max_episodes:
            raise self.too_large(path, "the dataset", f"{number:,} episodes")

    def too_large(self, path: Path, what: str, got: str) -> DataError:
        """Build the error for more than the limits allow."""
        return DataError(
            str(path),
            f"{what} is larger than the limits",
            expected=f"at most {self.max_bytes:,} bytes, {self.max_rows:,} steps and {self.max_episodes:,} episodes",
            got=got,
            fix="if you trust the file: limits=Limits(max_bytes=...)",
        )


@dataclass
class Budget:
    """Bytes left to a reader that reads piece by piece."""

    path: Path
    limits: Limits
    spent: int = 0

    def spend(self, name: str, shape: tuple[int, ...], itemsize: int) -> None:
        """Count an array that is about to be read; all of them together stay within the limits."""
        self.spent += self.limits.check_shape(self.path, name, shape, itemsize)
        if self.spent > self.limits.max_bytes:
            raise self.limits.too_large(self.path, "the dataset", f"more than {self.spent:,} bytes, at `{name}`")


def check_file(path: Path, *, kind: str, limits: Limits) -> Path:
    """Return the real path of a regular file of bounded size that is no pickle.

    A link is followed, because the caller named it; a pipe, a folder or a device is refused.
    """
    if not path.exists():
        raise DataError(str(path), "no such file", expected=kind, got=repr(str(path)))
    real = path.resolve()
    try:
        with regular_file(real) as stream:
            size, beginning = size_of(stream), stream.read(4096)
    except RefusedError as error:
        raise DataError(str(path), "cannot be read", expected=kind, got=str(error)) from error
    if size > limits.max_bytes:
        raise limits.too_large(path, "the file", f"{size:,} bytes")
    if looks_pickled(beginning):
        raise DataError(
            str(path),
            "it is a pickle, which runs code when it is loaded, so it was not loaded",
            expected=kind,
            got="a Python pickle",
            fix="load it where you trust it, and write it by save_npz(path, Demonstrations.from_episodes(...))",
        )
    return real


def looks_pickled(beginning: bytes) -> bool:
    r"""Tell a pickle by its first bytes: the protocol of the binary ones, the common openings of the oldest.

    >>> import pickle
    >>> [looks_pickled(pickle.dumps({"a": 1}, protocol=p)) for p in range(6)]
    [True, True, True, True, True, True]
    >>> looks_pickled(b"PK\x03\x04")
    False
    """
    binary = beginning[:1] == b"\x80" and beginning[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return (
        binary
        or beginning.startswith((b"(dp", b"(lp", b"(tp", b"c__builtin__\n", b"cposix\n", b"cos\n"))
        or (beginning[:1] in b"}](" and beginning[1:2] == b"q")
    )


def read_json(path: Path, *, kind: str, limits: Limits, max_bytes: int = 2**24) -> dict[str, Any]:
    """Return the JSON object of a dataset's metadata file."""
    real = check_file(path, kind=kind, limits=limits)
    try:
        return parse_object(read_bounded(real, limit=max_bytes))
    except RefusedError as error:
        raise DataError(str(path), "its metadata cannot be read", expected=kind, got=str(error)) from error


def check_total(path: Path, what: str, promised: object, found: int) -> None:
    """Hold what the metadata promise against what was found; ``None`` promises nothing."""
    if promised is not None and promised != found:
        raise DataError(
            str(path),
            f"the metadata and the data disagree in the number of {what}",
            expected=f"{promised!r}, as the metadata say",
            got=str(found),
            likely="files missing, or cut short",
        )
