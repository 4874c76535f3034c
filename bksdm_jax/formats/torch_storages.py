"""Reads the pickles of a PyTorch checkpoint and finds its storages, in the zip format and in the one before it."""

import dataclasses
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.torch_pickle import MOST_PICKLE, Machine
from bksdm_jax.formats.torch_values import Storage, Unsupported

_MOST_DIRECTORY = 2**22  # bytes of a zip's directory; a thousand storages take about 100 KiB
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before PyTorch 1.6
_BIG_ENDIAN = "big-endian numbers"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a checkpoint holds.

    Attributes:
        value: of its pickle, as `Machine.run` returns it.
        start: a storage -> the position of its first byte in the file; raises `ValueError` if it isn't there as a
            whole.
    """

    value: Any
    start: Callable[[Storage], int]


class Bounded:
    """A file that refuses to read much at once: `zipfile` trusts the sizes in the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, size: int = -1) -> bytes:
        """The next bytes; raises `ValueError` for more than 4 MiB at once."""
        if size > _MOST_DIRECTORY:
            raise ValueError(f"{size} bytes of directory or pickle")
        return self._read(size if size >= 0 else _MOST_DIRECTORY)


def read_zip(path: Path, file: BinaryIO) -> Contents:
    """Reads the format of PyTorch 1.6 and later: an uncompressed zip of `data.pkl` and one entry per storage.

    Raises:
        InputError: the zip is damaged, or not of this format.
        Unsupported: the pickle isn't supported.
        Exception: the file is damaged; `zipfile` and `pickletools` raise many types.
    """
    with zipfile.ZipFile(Bounded(file)) as archive:  # type: ignore[arg-type]
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise InputError(f"{path}: two entries with one name inside; download it again")
        found = [name for name in entries if name.split("/")[1:] == ["data.pkl"] or name == "data.pkl"]
        if len(found) != 1:
            raise InputError(f"{path}: {len(found)} data.pkl inside, expected one; download it again")
        prefix = found[0].removesuffix("data.pkl")
        order = entries.get(f"{prefix}byteorder")
        if order is not None and _small_entry(path, archive, order) != b"little":
            raise Unsupported(_BIG_ENDIAN)
        value, _ = Machine().run(_small_entry(path, archive, entries[found[0]]))
    end = file.seek(0, os.SEEK_END)

    def start(storage: Storage) -> int:
        entry = entries[f"{prefix}data/{storage.key}"]
        file.seek(entry.header_offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
        first = entry.header_offset + 30 + name_length + extra_length
        size = storage.count * storage.dtype.itemsize
        if signature != b"PK\3\4" or entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
            raise ValueError(f"storage {storage.key!r} doesn't match its tensors")
        if first + size > end:
            raise ValueError(f"storage {storage.key!r} ends after the file")
        return first

    return Contents(value, start)


def _small_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > MOST_PICKLE:
        raise InputError(f"{path}: {entry.filename[:80]!r} is compressed or too large for a table of tensors")
    return archive.read(entry)


def read_legacy(file: BinaryIO) -> Contents:
    """Reads the format before PyTorch 1.6.

    It is five pickles (magic number, protocol, facts about the machine, the value, keys of the storages), and then, for
    each key, the number of elements (int64) and the elements.

    Raises:
        Unsupported: a pickle isn't supported.
        Exception: the file is damaged; `pickletools` raises many types.
    """
    position = 0

    def pickle() -> tuple[Any, Machine]:
        nonlocal position
        file.seek(position)
        machine = Machine()
        value, length = machine.run(file.read(MOST_PICKLE))
        position += length
        return value, machine

    for expected in (_MAGIC, _PROTOCOL):
        found, _ = pickle()
        if type(found) is not int or found != expected:
            raise ValueError("another magic number or protocol")
    facts, _ = pickle()
    if facts["little_endian"] is not True:
        raise Unsupported(_BIG_ENDIAN)
    value, machine = pickle()
    keys, _ = pickle()
    starts = _starts(file, position, keys, machine.storages)
    return Contents(value, lambda storage: starts[storage.key])


def _starts(file: BinaryIO, position: int, keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Storages' first bytes by key."""
    if not isinstance(keys, list):
        raise ValueError("no list of storages")
    end, starts = file.seek(0, os.SEEK_END), {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in starts:
            raise ValueError("a storage without tensors, or twice")
        file.seek(position)
        count, position = int.from_bytes(file.read(8), "little"), position + 8
        starts[key], position = position, position + count * storages[key].dtype.itemsize
        if count != storages[key].count or position > end:
            raise ValueError(f"storage {key!r} has {count} elements, or ends after the file")
    return starts
