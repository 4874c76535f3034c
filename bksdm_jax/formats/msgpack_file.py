"""Where the arrays of a Flax checkpoint lie.

A Flax checkpoint is one msgpack map of maps (https://github.com/msgpack/msgpack/blob/master/spec.md), whose leaves are
extension type 1: itself msgpack, of shape, name of the dtype, bytes. The library reads map headers, names, shapes and
dtypes from a window of 4 KiB at each entry. The headers of extensions and of bytes are read here: the library reads
them with their contents only, and its `skip` reads every byte it passes (16 seconds for a file of 3.6 GB; 25 ms this
way).
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.formats.stored import FLOATS, StoredTensor

_NDARRAY = b"\x01"  # type of the extension
_DEPTH = 32
_MOST_TEXT = 2**10  # bytes of a name; letters of a whole path
_WINDOW = 2**12  # bytes, more than a name or a shape and dtype take
_DTYPES = FLOATS | {name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "bool")}
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # first byte -> bytes of the length that follows
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD8: 0}  # the last: 16 bytes, as a float32 scalar takes
_LEAVES = {bytes([first]) for first in _EXTENSIONS}


def index_msgpack(path: Path) -> dict[str, StoredTensor]:
    """Finds every array.

    Returns:
        the arrays under their paths, joined by `/`.

    Raises:
        InputError: the file is damaged, or no Flax checkpoint.
    """
    try:
        with path.open("rb", buffering=0) as file:
            walk = _Walk(path, file)
            walk.map("", _DEPTH)
            if walk.position != walk.size:
                raise walk.damaged("something follows its end")
            return walk.found
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


class _Walk:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.position = path, file, 0
        self.size = path.stat().st_size
        self.found: dict[str, StoredTensor] = {}

    def map(self, prefix: str, depth: int) -> None:
        """A map whose values are maps or arrays."""
        for _ in range(self.next("read_map_header")):
            key = self.next("unpack")
            name = f"{prefix}{key}"
            if not isinstance(key, str) or len(name) > _MOST_TEXT:
                raise self.damaged(f"a path of {len(name)} letters, {name[:80]!r}")
            if self.window()[:1] in _LEAVES:
                self.array(name)
            elif depth:
                self.map(f"{name}/", depth - 1)
            else:
                raise self.damaged(f"{name[:80]!r} is neither a map nor an array")

    def array(self, name: str) -> None:
        """The extension that holds an array."""
        length = self.length(_EXTENSIONS)
        kind, start = self.window()[:1], self.position + 1
        self.position = start
        if kind != _NDARRAY or self.next("read_array_header") != 3:
            raise self.damaged(f"{name[:80]!r} is no array")
        shape, dtype = self.next("unpack"), self.next("unpack")
        if not isinstance(shape, list) or len(shape) > _DEPTH or any(type(n) is not int or n < 0 for n in shape):
            raise self.damaged(f"{name[:80]!r} has no shape")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise InputError(f"{self.path}: {name[:80]!r} has dtype {dtype!r:.40}; known: {', '.join(_DTYPES)}")
        size = self.length(_BINARIES)
        tensor = StoredTensor(self.path, self.position, tuple(shape), _DTYPES[dtype])
        end = tensor.offset + size
        if size != math.prod(shape) * tensor.dtype.itemsize or end - start != length or end > self.size:
            raise self.damaged(f"{name[:80]!r} doesn't hold what it says")
        if name in self.found:
            raise self.damaged(f"{name[:80]!r} is there twice")
        self.found[name] = tensor
        self.position = end

    def next(self, method: str) -> Any:
        """What this method of the library's `Unpacker` makes of the bytes that come."""
        unpacker = msgpack.Unpacker(max_buffer_size=_WINDOW)
        unpacker.feed(self.window())
        try:
            found = getattr(unpacker, method)()
        except (msgpack.UnpackException, ValueError) as error:  # among the latter UnicodeDecodeError and its own
            raise self.damaged(f"byte {self.position}: {in_short(error)}") from error
        self.position += unpacker.tell()
        return found

    def length(self, table: dict[int, int]) -> int:
        """The length of an extension or of bytes, whose first byte is in `table`."""
        window = self.window()
        width = table.get(window[0]) if window else None
        if width is None:
            raise self.damaged(f"byte {self.position}: no contents of an array")
        self.position += 1 + width
        return int.from_bytes(window[1 : 1 + width], "big") if width else 16

    def window(self) -> bytes:
        self.file.seek(self.position)
        return self.file.read(_WINDOW)

    def damaged(self, reason: str) -> InputError:
        return InputError(f"{self.path}: not a whole Flax msgpack checkpoint ({reason}); fetch it again")
