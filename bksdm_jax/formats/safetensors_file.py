"""Where the tensors of a safetensors file lie."""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.stored import StoredTensor

_MOST_HEADER = 100 * 2**20  # bytes; the format's own bound
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def index_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Reads the header: eight bytes of length, then JSON of names, dtypes, shapes and byte ranges.

    Returns:
        every tensor under its name.

    Raises:
        InputError: the header is damaged, or claims other than what the file holds.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MOST_HEADER):
                raise _damaged(path, f"{size} bytes can't hold its header of {length}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table")
    header.pop("__metadata__", None)
    start = 8 + length
    table = {name: _entry(path, name, entry, start) for name, entry in header.items()}
    end = start
    for tensor in sorted(table.values(), key=lambda tensor: (tensor.offset, tensor.span())):
        if tensor.offset != end:
            raise _damaged(path, "its tensors overlap or leave gaps")
        end += tensor.span()
    if end != size:
        raise _damaged(path, f"its header tells of {end} bytes, there are {size}")
    return table


def _entry(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"no dtype, shape and data_offsets for {name[:80]!r}") from error
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InputError(f"{path}: {name[:80]!r} has dtype {dtype!r:.40}; known: {', '.join(_DTYPES)}; convert it")
    if not whole or end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise _damaged(path, f"shape and data_offsets of {name[:80]!r} don't agree")
    return StoredTensor(path, start + begin, tuple(shape), _DTYPES[dtype])


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: not a whole safetensors file ({reason}); fetch it again")
