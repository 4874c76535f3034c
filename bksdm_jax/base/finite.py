"""Numbers that aren't finite, found by their bits: without temporary arrays, at the speed of memory."""

from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

_FIRST = {
    np.dtype(np.float16): 0x7C00,
    np.dtype(ml_dtypes.bfloat16): 0x7F80,
    np.dtype(np.float32): 0x7F80_0000,
    np.dtype(np.float64): 0x47EF_FFFF_F000_0000,
}
"""Dtype -> the bits of the smallest positive number that isn't finite, or of float64, that float32 rounds to infinity.

The bits of larger ones, and of NaN, are larger numbers.
"""
_BLOCK = 2**17  # bytes, which stay in the cache between the two passes


def count_non_finite(array: np.ndarray) -> int:
    """How many numbers of an array, of any shape, are NaN or infinite; of float64, in float32."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype not in _FIRST:
        return int(np.count_nonzero(~np.isfinite(flat)))
    first, size = _FIRST[flat.dtype], flat.dtype.itemsize
    signed, unsigned = flat.view(f"i{size}"), flat.view(f"u{size}")
    negative = first | 1 << (8 * size - 1)
    found, step = 0, _BLOCK // size
    for start in range(0, len(flat), step):
        chosen = slice(start, start + step)
        # Among signed numbers those of positive floats are the largest, among unsigned ones those of negative floats.
        if signed[chosen].max() >= first or unsigned[chosen].max() >= negative:
            found += int(np.count_nonzero((signed[chosen] >= first) | (unsigned[chosen] >= negative)))
    return found


def find_non_finite(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int]]:
    """The names of the arrays that hold some, and how many."""
    for name, array in arrays.items():
        if count := count_non_finite(np.asarray(array)):
            yield name, count
