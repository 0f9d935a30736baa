"""Tensors by name as bytes and back, bit for bit: the safetensors format, its header checked before it is believed.

A safetensors file is eight bytes that say how long the header is, a JSON header that gives each tensor's type, shape
and place, and the tensors' bytes. Only numbers can be in it, so that reading one runs nothing; but its header can claim
anything. :func:`check_header` holds it to the file's true size, and to limits far above what a learner has, before the
library sees it.

NaN and infinity are kept as they are: whether a number may be NaN is for the learner to say, before its optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from latentpg.errors import CheckpointError
from latentpg.runs.untrusted import RefusedError, parse_object

MAX_HEADER = 2 * 2**20
"""The longest header that is read, in bytes: some hundred are taken for each tensor."""

MAX_TENSORS = 4096
"""The largest number of tensors."""

MAX_NAME = 200
"""The longest name of a tensor, in bytes of UTF-8."""

MAX_DIMS = 16
"""The largest number of dimensions."""

MAX_ELEMENTS = 2**40
"""The largest product of a shape's positive sizes: an empty tensor may not claim strides that overflow."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types that are kept, by their names in a header."""


def encode_tensors(state: Mapping[str, Tensor]) -> bytes:
    """Write tensors by name; what cannot come back as it was is a :class:`~latentpg.errors.CheckpointError`.

    Equal tensors give equal bytes. Gradients, devices and strides are not kept: tensors come back contiguous, on the
    processor, without a gradient.

    >>> state = {"weight": torch.tensor([1.5, float("nan")]), "step": torch.tensor(3)}
    >>> decode_tensors(encode_tensors(state))["step"]
    tensor(3)
    """
    if not isinstance(state, Mapping):
        raise CheckpointError("save_checkpoint()", "`state`", expected="tensors by name", got=type(state).__name__)
    if len(state) > MAX_TENSORS:
        raise CheckpointError("save_checkpoint()", "`state`", expected=f"<= {MAX_TENSORS} tensors", got=str(len(state)))
    return safetensors.torch.save({_checked_name(name): _plain(name, value) for name, value in state.items()})


def decode_tensors(content: bytes) -> dict[str, Tensor]:
    """Read what :func:`encode_tensors` wrote, its header having been checked; raise :class:`RefusedError`."""
    try:
        state = safetensors.torch.load(content)
    except SafetensorError as error:
        raise RefusedError(f"safetensors refuses it: {error!s:.80}") from None
    for name, value in state.items():
        # torch takes any byte for a bool, and then counts 2 as neither true nor false
        if value.dtype == torch.bool and bool((value.view(torch.uint8) > 1).any()):
            raise RefusedError(f"a truth value of {name!r:.80} is neither 0 nor 1")
    return state


def check_header(stream: BinaryIO, *, size: int) -> None:
    """Hold the header of an open file of ``size`` bytes to the file, without reading more than the header.

    The tensors must fill the rest of the file exactly, without gaps or overlaps; anything else is a
    :class:`RefusedError`.

    >>> import io
    >>> check_header(io.BytesIO(bytes([255] * 8)), size=8)
    Traceback (most recent call last):
    ...
    latentpg.runs.untrusted.RefusedError: its header claims 18446744073709551615 bytes of 0
    """
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise RefusedError(f"its header claims {length} bytes of {max(size - 8, 0)}")
    if length > MAX_HEADER:
        raise RefusedError(f"its header claims {length} bytes, and at most {MAX_HEADER} are read")
    header = stream.read(length)
    if not header.startswith(b"{"):
        raise RefusedError("its header is not a JSON object")
    entries = parse_object(header)
    if len(entries) > MAX_TENSORS:
        raise RefusedError(f"it claims {len(entries)} tensors, and at most {MAX_TENSORS} are read")
    places = sorted(_place(name, entry) for name, entry in entries.items())
    end = 0
    for begin, stop in places:
        if begin != end:
            raise RefusedError("its tensors overlap, or leave gaps")
        end = stop
    if end != size - 8 - length:
        raise RefusedError(f"its tensors take {end} bytes of {size - 8 - length}")


def _place(name: str, entry: Any) -> tuple[int, int]:  # noqa: ANN401 (any JSON value)
    """Return where a tensor's bytes lie, if its entry is sound."""
    if not _is_name(name):
        raise RefusedError(f"a tensor cannot be called {name!r:.80}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise RefusedError(f"the entry of {name!r:.80} is not dtype, shape and data_offsets")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise RefusedError(f"the type of {name!r:.80} is {dtype!r:.40}")
    if not _are_counts(shape) or len(shape) > MAX_DIMS:
        raise RefusedError(f"the shape of {name!r:.80} is {shape!r:.80}")
    if not _are_counts(place) or len(place) != 2:
        raise RefusedError(f"the place of {name!r:.80} is {place!r:.80}")
    extent = 1
    for length in shape:
        extent *= max(length, 1)
        if extent > MAX_ELEMENTS:
            raise RefusedError(f"the shape of {name!r:.80} is {shape!r:.80}")
    num_bytes = 0 if 0 in shape else extent * DTYPES[dtype].itemsize
    begin, end = place
    if end - begin != num_bytes:
        raise RefusedError(f"{name!r:.80} takes {num_bytes} bytes and has {end - begin}")
    return begin, end


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or name == "__metadata__" or not name.isprintable() or not name:
        return False
    return len(name.encode()) <= MAX_NAME  # half a surrogate pair, which has no encoding, is not printable


def _checked_name(name: str) -> str:
    if not _is_name(name):
        expected = f"printable text of 1 to {MAX_NAME} bytes"
        raise CheckpointError("save_checkpoint()", "the name of a tensor", expected=expected, got=f"{name!r:.80}")
    return name


def _plain(name: str, value: Tensor) -> Tensor:
    """Copy a tensor, so that views of one storage become tensors of their own."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    if not is_dense or value.dtype not in DTYPES.values() or value.is_quantized:
        got = f"{value.layout}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        expected = f"a dense tensor of {', '.join(str(dtype).removeprefix('torch.') for dtype in DTYPES.values())}"
        fix = "text and single numbers belong among the facts"
        raise CheckpointError("save_checkpoint()", f"`state[{name!r}]`", expected=expected, got=got, fix=fix)
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
