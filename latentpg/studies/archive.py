"""Read an ``.npz`` archive that may be broken or hostile: headers tell sizes before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentpg.errors import StudyError

MAX_BYTES = 2**31
"""An archive that unpacks to more than this is refused."""


BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Kinds of compression of which no more is unpacked at once than is asked for."""


def read_archive(path: Path, *, max_bytes: int = MAX_BYTES) -> Mapping[str, Tensor]:
    """Return every array by name: floating-point ones in their type, integers as int64, booleans as booleans.

    Refused with a :class:`~latentpg.errors.StudyError`: what is not such an archive, arrays of objects or of anything
    but numbers, an archive of more than ``max_bytes`` when unpacked, arrays whose header does not agree with their
    size, and contents that do not match their checksum.
    """
    if not path.is_file():
        raise StudyError(str(path), "no such file", expected="an .npz archive of numpy arrays", got=repr(str(path)))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_sizes(path, members, max_bytes)
            return {member.filename[: -len(".npy")]: _read(path, archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise StudyError(
            str(path),
            "cannot be read",
            expected="an .npz archive of numpy arrays",
            got=str(error) or type(error).__name__,
            likely="a truncated file, or one of another kind",
            fix="np.savez(path, obs=..., action=...)",
        ) from error


def _check_sizes(path: Path, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise StudyError(
            str(path),
            "too large when unpacked",
            expected=f"at most {max_bytes:,} bytes",
            got=f"{total:,} bytes by its own directory, {path.stat().st_size:,} on disk",
            fix="fewer rows; a study needs hundreds",
        )
    names = [member.filename for member in members]
    if len(set(names)) != len(names) or not all(name.endswith(".npy") for name in names):
        raise StudyError(
            str(path), "not an archive of numpy arrays", expected="distinct names NAME.npy", got=", ".join(names[:8])
        )
    packed = [member.filename for member in members if member.compress_type not in BOUNDED]
    if packed:
        raise StudyError(
            str(path),
            "compressed in a way that numpy never writes",
            expected="members that are stored or deflated",
            got=", ".join(packed[:8]),
            fix="np.savez or np.savez_compressed",
        )


def _read(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    name = member.filename[: -len(".npy")]
    shape, dtype, start = _header(path, name, archive, member)
    declared = math.prod(shape) * dtype.itemsize
    if start + declared != member.file_size:
        raise StudyError(
            str(path),
            f"`{name}` is not as large as its header says",
            expected=f"{declared:,} bytes of {dtype} {list(shape)}",
            got=f"{member.file_size - start:,} bytes",
        )
    with archive.open(member) as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise StudyError(str(path), f"`{name}` cannot be read", got=str(error)) from error
        if file.read(1):  # reading to the end is what checks the checksum
            raise StudyError(str(path), f"`{name}` goes on after its end")
    if dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise StudyError(str(path), f"`{name}` does not fit into int64", got=str(array.max()))
    if dtype.kind == "b":
        return torch.from_numpy(np.ascontiguousarray(array))
    wide = np.int64 if dtype.kind in "iu" else np.float64 if dtype.itemsize > 4 else np.float32
    return torch.from_numpy(np.array(array, dtype=wide, order="C"))


def _header(
    path: Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Read shape and type, and where the data begin."""
    try:
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ValueError(f"format version {version}")
            shape, _, dtype = read[version](file)
            start = file.tell()
    except ValueError as error:
        raise StudyError(str(path), f"`{name}` is not a numpy array", got=str(error)) from error
    if dtype.hasobject or dtype.kind not in "fiub":
        raise StudyError(
            str(path),
            f"`{name}` holds {'objects' if dtype.hasobject else 'no numbers'}",
            expected="an array of floating-point numbers, integers or booleans",
            got=f"dtype {dtype}",
            likely="rows of different lengths, which numpy turns into objects" if dtype.hasobject else None,
            fix="pad rows to one length and add a `mask`" if dtype.hasobject else None,
        )
    return shape, dtype, start
