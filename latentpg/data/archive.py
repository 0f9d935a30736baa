"""Read an ``.npz`` archive that may be broken or hostile: headers tell sizes before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from latentpg.data.guards import Budget, DataError, Limits, check_file

KIND = "an .npz archive of numpy arrays"
"""What is expected, in messages."""

BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Kinds of compression of which no more is unpacked at once than is asked for."""


def read_arrays(path: Path, *, limits: Limits) -> dict[str, np.ndarray]:
    """Return every array of an archive by name: floating-point numbers, integers and booleans only.

    Refused are pickles, arrays of objects or text, members whose header does not agree with their size, contents that
    do not match their checksum, and more than the limits allow. Nothing is unpacked before all headers were read.
    """
    real = check_file(path, kind=KIND, limits=limits)
    try:
        with zipfile.ZipFile(real) as archive:
            members = archive.infolist()
            _check_members(path, members, limits)
            budget = Budget(path, limits)
            for member in members:
                _check_header(path, archive, member, budget)
            return {member.filename[: -len(".npy")]: _read(path, archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            str(path),
            "cannot be read",
            expected=KIND,
            got=str(error) or type(error).__name__,
            likely="a file cut short, or one of another kind",
            fix="np.savez(path, obs=..., action=..., episode=...)",
        ) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo], limits: Limits) -> None:
    names = [member.filename for member in members]
    if len(set(names)) != len(names) or not all(name.endswith(".npy") for name in names):
        raise DataError(str(path), f"not {KIND}", expected="distinct names NAME.npy", got=", ".join(names[:8]))
    packed = [member.filename for member in members if member.compress_type not in BOUNDED]
    if packed:
        raise DataError(
            str(path),
            "compressed in a way that numpy never writes",
            expected="members that are stored or deflated",
            got=", ".join(packed[:8]),
            fix="np.savez or np.savez_compressed",
        )
    total = sum(member.file_size for member in members)
    if total > limits.max_bytes:
        raise limits.too_large(path, "the archive", f"{total:,} bytes when unpacked")


def _check_header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget) -> None:
    name = member.filename[: -len(".npy")]
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"format version {version}")
            shape, _, dtype = read[version](file)
            start = file.tell()
    except ValueError as error:
        raise DataError(str(path), f"`{name}` is not a numpy array", got=str(error)) from error
    if dtype.hasobject or dtype.kind not in "fiub":
        raise DataError(
            str(path),
            f"`{name}` holds {'objects, which are pickled and were not loaded' if dtype.hasobject else 'no numbers'}",
            expected="an array of floating-point numbers, integers or booleans",
            got=f"dtype {dtype}",
            likely="episodes of different lengths, which numpy turns into objects" if dtype.hasobject else None,
            fix="join the episodes, and add `episode`: the number of each row's episode" if dtype.hasobject else None,
        )
    budget.spend(name, shape, dtype.itemsize)
    declared = math.prod(shape) * dtype.itemsize
    if start + declared != member.file_size:
        raise DataError(
            str(path),
            f"`{name}` is not as large as its header says",
            expected=f"{declared:,} bytes of {dtype} {list(shape)}",
            got=f"{member.file_size - start:,} bytes",
        )


def _read(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise DataError(str(path), f"`{member.filename}` cannot be read", got=str(error)) from error
        if file.read(1):  # reading to the end is what checks the checksum
            raise DataError(str(path), f"`{member.filename}` goes on after its end")
    return np.asarray(array, order="C")  # and not ascontiguousarray, which makes one dimension of none
