"""Locates the tensors of a safetensors file.

The library parses and checks the header. Tensors are read by `StoredTensor`, as in the other formats: unlike
`safe_open` it reuses a buffer, reads float8, and its offsets allow reading some rows of a tensor as a tensor.
"""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.formats.stored import EIGHT_BITS, StoredTensor, require_weights_file

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": EIGHT_BITS["float8_e4m3fn"],
    "F8_E5M2": EIGHT_BITS["float8_e5m2"],
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def index_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor by its name; raises `InputError` if the header is damaged or doesn't match the file."""
    return safetensors_header(path)[0]


def safetensors_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor by its name, and the metadata; raises as `index_safetensors`."""
    require_weights_file(path)
    table = {}
    try:
        with path.open("rb") as file, safe_open(path, framework="numpy") as tensors:
            metadata = tensors.metadata() or {}
            offset = 8 + int.from_bytes(file.read(8), "little")
            for name in tensors.offset_keys():  # the library has checked that there are no gaps
                entry = tensors.get_slice(name)
                shape, dtype = entry.get_shape(), entry.get_dtype()
                if dtype not in _DTYPES:
                    raise InputError(
                        f"{path}: {name[:80]!r} has dtype {dtype}; known: {', '.join(_DTYPES)}; convert it"
                    )
                table[name] = StoredTensor(path, offset, tuple(shape), _DTYPES[dtype])
                offset += math.prod(shape) * _DTYPES[dtype].itemsize
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({in_short(error)}); download it again") from error
    return table, metadata


def sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header, which the library writes in another order each time.

    Then equal contents are equal files. Raises `OSError`.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # as the library formats it
            file.seek(8)
            file.write(text.ljust(size))
