"""Where the arrays of a Flax checkpoint lie.

A Flax checkpoint is one msgpack map of maps (https://github.com/msgpack/msgpack/blob/master/spec.md), whose leaves are
extension type 1: itself msgpack, of shape, name of the dtype, bytes. Reading it with a library takes the whole file
into memory before the first array is there; this walks over the maps and skips what the arrays hold.
"""

import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.stored import FLOATS, StoredTensor

_NDARRAY = 1
_DEPTH = 32
_MOST_TEXT = 2**10  # bytes of a name; letters of a whole path
_DTYPES = FLOATS | {name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "bool")}
_MAPS = {0xDE: 2, 0xDF: 4}  # first byte -> bytes of the length that follows
_ARRAYS = {0xDC: 2, 0xDD: 4}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # first byte -> bytes of contents
_INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def index_msgpack(path: Path) -> dict[str, StoredTensor]:
    """Finds every array.

    Returns:
        the arrays under their paths, joined by `/`.

    Raises:
        InputError: the file is damaged, or no Flax checkpoint.
    """
    try:
        with path.open("rb") as file:
            walk = _Walk(path, file)
            walk.map("", _DEPTH)
            if file.tell() != walk.size:
                raise walk.damaged("something follows its end")
            return walk.found
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


class _Walk:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.found: dict[str, StoredTensor] = {}

    def map(self, prefix: str, depth: int) -> None:
        """A map whose values are maps or arrays."""
        for _ in range(self.length(self.byte(), _MAPS, 0x80, 0x8F, "a map")):
            name = f"{prefix}{self.text()}"
            if len(name) > _MOST_TEXT:
                raise self.damaged(f"a path of {len(name)} letters, {name[:80]!r}")
            first = self.byte()
            if first in _FIXED_EXTENSIONS:
                self.array(name, _FIXED_EXTENSIONS[first])
            elif first in _EXTENSIONS:
                self.array(name, self.number(_EXTENSIONS[first]))
            elif depth and (first in _MAPS or 0x80 <= first <= 0x8F):
                self.file.seek(-1, os.SEEK_CUR)
                self.map(f"{name}/", depth - 1)
            else:
                raise self.damaged(f"{name[:80]!r} is neither a map nor an array")

    def array(self, name: str, length: int) -> None:
        """The contents of an extension of `length` bytes."""
        kind, start = self.byte(), self.file.tell()
        if kind != _NDARRAY or self.length(self.byte(), _ARRAYS, 0x90, 0x9F, "shape, dtype, bytes") != 3:
            raise self.damaged(f"{name[:80]!r} is no array")
        rank = self.length(self.byte(), _ARRAYS, 0x90, 0x9F, "a shape")
        if rank > _DEPTH:
            raise self.damaged(f"{name[:80]!r} has {rank} dimensions")
        shape = tuple(self.integer() for _ in range(rank))
        dtype = self.text()
        if dtype not in _DTYPES:
            raise InputError(f"{self.path}: {name[:80]!r} has dtype {dtype[:40]!r}; known: {', '.join(_DTYPES)}")
        size = self.length(self.byte(), _BINARIES, 0, -1, "bytes")
        tensor = StoredTensor(self.path, self.file.tell(), shape, _DTYPES[dtype])
        end = tensor.offset + size
        if size != math.prod(shape) * tensor.dtype.itemsize or end - start != length or end > self.size:
            raise self.damaged(f"{name[:80]!r} doesn't hold what it says")
        if name in self.found:
            raise self.damaged(f"{name[:80]!r} is there twice")
        self.found[name] = tensor
        self.file.seek(end)

    def text(self) -> str:
        length = self.length(self.byte(), _TEXTS, 0xA0, 0xBF, "a name")
        if length > _MOST_TEXT:
            raise self.damaged(f"a name of {length} bytes")
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a name is not UTF-8") from error

    def integer(self) -> int:
        first = self.byte()
        if first <= 0x7F:
            return first
        if first not in _INTEGERS:
            raise self.damaged("a shape holds something else than whole numbers")
        return self.number(_INTEGERS[first])

    def length(self, first: int, table: dict[int, int], low: int, high: int, what: str) -> int:
        """The length that `first` begins: its own lower bits if it lies in [low, high], else a number after it."""
        if low <= first <= high:
            return first - low
        if first not in table:
            raise self.damaged(f"{what} expected at byte {self.file.tell() - 1}")
        return self.number(table[first])

    def number(self, width: int) -> int:
        return int.from_bytes(self.bytes(width), "big")

    def byte(self) -> int:
        return self.bytes(1)[0]

    def bytes(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise self.damaged("it ends too early")
        return data

    def damaged(self, reason: str) -> InputError:
        return InputError(f"{self.path}: not a whole Flax msgpack checkpoint ({reason}); fetch it again")
