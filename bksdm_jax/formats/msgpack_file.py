"""Locates the arrays of a Flax checkpoint.

A Flax checkpoint is a msgpack map of maps (https://github.com/msgpack/msgpack/blob/master/spec.md). Its leaves are of
extension type 1, which is itself msgpack: shape, dtype name, bytes. `msgpack.Unpacker` parses map headers, names,
shapes and dtypes from a 4 KiB window at each entry. Headers of extensions and bytes are parsed here, since the library
reads them only with their contents and its `skip` reads all bytes (16 seconds for a 3.6 GB file, instead of 25 ms).
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.formats.stored import FLOATS, StoredTensor, require_weights_file

_NDARRAY = b"\x01"  # extension type
_DEPTH = 32
_MOST_TEXT = 2**10  # characters of a path
_WINDOW = 2**12  # bytes; a name, or a shape and dtype, take less
_DTYPES = FLOATS | {name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "bool")}
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # first byte -> bytes of the length field
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD8: 0}  # the last one has 16 bytes of data (a float32 scalar)
_LEAVES = {bytes([first]) for first in _EXTENSIONS}


def index_msgpack(path: Path) -> dict[str, StoredTensor]:
    """Every array by its path, joined by `/`; raises `InputError` if the file is damaged or not a Flax checkpoint."""
    require_weights_file(path)
    try:
        with path.open("rb", buffering=0) as file:
            walk = _Walk(path, file)
            walk.map("", _DEPTH)
            if walk.position != walk.size:
                raise walk.damaged("data after the end")
            return walk.found
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


class _Walk:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.position = path, file, 0
        self.size = path.stat().st_size
        self.found: dict[str, StoredTensor] = {}

    def map(self, prefix: str, depth: int) -> None:
        """Reads a map whose values are maps or arrays."""
        for _ in range(self.next("read_map_header")):
            key = self.next("unpack")
            name = f"{prefix}{key}"
            if not isinstance(key, str) or len(name) > _MOST_TEXT:
                raise self.damaged(f"a path of {len(name)} characters, {name[:80]!r}")
            if self.window()[:1] in _LEAVES:
                self.array(name)
            elif depth:
                self.map(f"{name}/", depth - 1)
            else:
                raise self.damaged(f"{name[:80]!r} is neither a map nor an array")

    def array(self, name: str) -> None:
        """Reads the extension that holds an array."""
        length = self.length(_EXTENSIONS)
        kind, start = self.window()[:1], self.position + 1
        self.position = start
        if kind != _NDARRAY or self.next("read_array_header") != 3:
            raise self.damaged(f"{name[:80]!r} isn't an array")
        shape, dtype = self.next("unpack"), self.next("unpack")
        if not isinstance(shape, list) or len(shape) > _DEPTH or any(type(n) is not int or n < 0 for n in shape):
            raise self.damaged(f"{name[:80]!r} has no valid shape")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise InputError(f"{self.path}: {name[:80]!r} has dtype {dtype!r:.40}; known: {', '.join(_DTYPES)}")
        size = self.length(_BINARIES)
        tensor = StoredTensor(self.path, self.position, tuple(shape), _DTYPES[dtype])
        end = tensor.offset + size
        if size != math.prod(shape) * tensor.dtype.itemsize or end - start != length or end > self.size:
            raise self.damaged(f"{name[:80]!r} has sizes that disagree")
        if name in self.found:
            raise self.damaged(f"{name[:80]!r} occurs twice")
        self.found[name] = tensor
        self.position = end

    def next(self, method: str) -> Any:
        """Applies a method of `msgpack.Unpacker` at the current position."""
        unpacker = msgpack.Unpacker(max_buffer_size=_WINDOW)
        unpacker.feed(self.window())
        try:
            found = getattr(unpacker, method)()
        except (msgpack.UnpackException, ValueError) as error:  # ValueError includes UnicodeDecodeError
            raise self.damaged(f"byte {self.position}: {in_short(error)}") from error
        self.position += unpacker.tell()
        return found

    def length(self, table: dict[int, int]) -> int:
        """Reads the header of an extension or of bytes, whose first byte is in `table`; returns the length."""
        window = self.window()
        width = table.get(window[0]) if window else None
        if width is None:
            raise self.damaged(f"byte {self.position}: not the data of an array")
        self.position += 1 + width
        return int.from_bytes(window[1 : 1 + width], "big") if width else 16

    def window(self) -> bytes:
        self.file.seek(self.position)
        return self.file.read(_WINDOW)

    def damaged(self, reason: str) -> InputError:
        return InputError(f"{self.path}: damaged or not a Flax msgpack checkpoint ({reason}); download it again")
