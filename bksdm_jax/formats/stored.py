"""Tensors in a file: shape, dtype and byte offset."""

import dataclasses
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import require_file

FLOATS = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Dtypes of stored weights; all formats are little-endian."""

EIGHT_BITS = {"float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn), "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2)}
"""Dtypes of stored weights that bfloat16 holds exactly, which they are read as."""

_LFS = b"version https://git-lfs.github.com/spec/"
_LARGE = 2**22  # bytes; from here NumPy asks for huge pages


def empty(shape: Sequence[int], dtype: np.typing.DTypeLike) -> np.ndarray:
    """`np.empty` without huge pages.

    To provide huge pages, Linux may compact memory first: with them, the first read of a 3.4 GB file took two to four
    times as long (two cores, free memory used as page cache).
    """
    count, dtype = math.prod(shape), np.dtype(dtype)
    size = count * dtype.itemsize
    if size < _LARGE:
        return np.empty(shape, dtype)
    private = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(private, np.uint8).view(dtype).reshape(shape)


def require_weights_file(path: Path) -> None:
    """Raises `InputError` unless `path` is a regular file, and not a Git LFS pointer to one."""
    require_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror or error})") from error
    if head == _LFS:
        raise InputError(f"{path}: a Git LFS pointer instead of the weights; run `git lfs pull` in its repository")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: the file.
        offset: of its first byte.
        shape: as stored.
        dtype: as stored.
        strides: in elements; None: C order.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    def span(self) -> int:
        """Bytes from its first to its last element."""
        if math.prod(self.shape) == 0:
            return 0
        if self.strides is None:
            return math.prod(self.shape) * self.dtype.itemsize
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.dtype.itemsize

    def rows(self, first: int, count: int) -> "StoredTensor":
        """Some of its rows, as a tensor."""
        stride = math.prod(self.shape[1:]) if self.strides is None else self.strides[0]
        offset = self.offset + first * stride * self.dtype.itemsize
        return dataclasses.replace(self, offset=offset, shape=(count, *self.shape[1:]))

    def without_last(self, count: int) -> "StoredTensor":
        """Without its last `count` dimensions, each of length 1."""
        strides = None if self.strides is None else self.strides[:-count]
        return dataclasses.replace(self, shape=self.shape[:-count], strides=strides)

    def turned(self) -> "StoredTensor":
        """A matrix's transpose."""
        strides = (self.shape[1], 1) if self.strides is None else self.strides
        return dataclasses.replace(self, shape=self.shape[::-1], strides=strides[::-1])

    def read(self, buffer: np.ndarray | None = None) -> np.ndarray:
        """Reads the tensor, and nothing else of the file.

        Args:
            buffer: uint8, at least `span()` long. The result may be a view of it, valid until the buffer is used
                again; this avoids an allocation, which can take longer than reading. None: allocate.

        Raises:
            InputError: the file can't be read or is truncated.
        """
        flat = empty((self.span(),), np.uint8) if buffer is None else buffer[: self.span()]
        try:
            with self.path.open("rb", buffering=0) as file:
                rest, position = memoryview(flat), self.offset
                while rest:
                    count = os.preadv(file.fileno(), [rest], position)
                    if count == 0:
                        raise InputError(f"{self.path}: ends in the middle of a tensor; download it again")
                    rest, position = rest[count:], position + count
        except OSError as error:
            raise InputError(f"{self.path}: can't be read ({error.strerror})") from error
        numbers = flat.view(self.dtype)
        if self.strides is None:
            return numbers.reshape(self.shape)
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False).copy()
