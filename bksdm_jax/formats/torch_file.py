"""Locates the tensors of a PyTorch checkpoint (`.bin`) without executing its pickle.

Such a file is an uncompressed zip of `data.pkl` and one entry per storage. The pickle is disassembled with
`pickletools` and interpreted by a stack machine that supports what `torch.save` writes for a table of tensors and
refuses everything else: no object is created, no name resolved, nothing called.
"""

import dataclasses
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.formats.stored import FLOATS, StoredTensor, require_weights_file

_MOST_PICKLE = 2**21  # bytes; a U-Net's takes about 100 KiB
_STORAGES = {
    "torch DoubleStorage": FLOATS["float64"],
    "torch FloatStorage": FLOATS["float32"],
    "torch HalfStorage": FLOATS["float16"],
    "torch BFloat16Storage": FLOATS["bfloat16"],
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
_TABLE = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_NAMES = {*_STORAGES, _TABLE, _TENSOR, _PARAMETER}
_ADVICE = (
    "if you trust it, convert it with PyTorch: safetensors.torch.save_file(torch.load(PATH, weights_only=True), NEW)"
)
_MARK = object()


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global that the pickle refers to."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def index_torch(path: Path) -> dict[str, StoredTensor]:
    """Every tensor by its name.

    Raises:
        InputError: the file is damaged, in a format older than PyTorch 1.6's, or its pickle holds anything but a table
            of tensors.
    """
    require_weights_file(path)
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise InputError(f"{path}: not in the zip format of PyTorch 1.6 and later; {_ADVICE}")
            with zipfile.ZipFile(file) as archive:
                entries = {info.filename: info for info in archive.infolist()}
                prefix = _prefix(path, entries)
                pickle = _small_entry(path, archive, entries[f"{prefix}data.pkl"])
                order = entries.get(f"{prefix}byteorder")
                if order is not None and _small_entry(path, archive, order) != b"little":
                    raise InputError(f"{path}: its numbers are big-endian; {_ADVICE}")
                table = _interpret(path, pickle)
                return {name: _located(path, file, entries, prefix, name, tensor) for name, tensor in table.items()}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # zipfile and pickletools raise many types on damaged files
        raise InputError(
            f"{path}: damaged or not a PyTorch checkpoint ({in_short(error)}); download it again"
        ) from error


def _prefix(path: Path, entries: dict[str, zipfile.ZipInfo]) -> str:
    found = [name for name in entries if name.split("/")[1:] == ["data.pkl"] or name == "data.pkl"]
    if len(found) != 1:
        raise InputError(f"{path}: {len(found)} data.pkl inside, expected one; download it again")
    return found[0].removesuffix("data.pkl")


def _small_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > _MOST_PICKLE:
        raise InputError(f"{path}: {entry.filename[:80]!r} is compressed or too large for a table of tensors")
    return archive.read(entry)


def _located(
    path: Path, file: BinaryIO, entries: dict[str, zipfile.ZipInfo], prefix: str, name: str, tensor: _Tensor
) -> StoredTensor:
    """The position of `tensor` in the file."""
    storage = tensor.storage
    entry = entries[f"{prefix}data/{storage.key}"]
    file.seek(entry.header_offset)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    start = entry.header_offset + 30 + name_length + extra_length
    size = storage.count * storage.dtype.itemsize
    if signature != b"PK\3\4" or entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
        raise ValueError(f"the storage of {name[:80]!r} doesn't match its tensor")
    if start + size > file.seek(0, 2):
        raise ValueError(f"the storage of {name[:80]!r} ends after the file")
    if math.prod(tensor.shape) > storage.count:  # strides of 0 would expand a small file without limit
        raise ValueError(f"{name[:80]!r} has more elements than its storage")
    offset = tensor.offset * storage.dtype.itemsize
    c_order = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    strides = None if tensor.strides == c_order or math.prod(tensor.shape) <= 1 else tensor.strides
    found = StoredTensor(path, start + offset, tensor.shape, storage.dtype, strides)
    if offset + found.span() > size:
        raise ValueError(f"{name[:80]!r} ends after its storage")
    return found


def _interpret(path: Path, pickle: bytes) -> dict[str, _Tensor]:
    """The table of tensors that the pickle describes, possibly under `state_dict`."""
    machine = _Machine(path)
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "STOP":
            break
        if opcode.name not in _OPCODES:
            raise machine.refused(f"opcode {opcode.name}")
        _OPCODES[opcode.name](machine, argument)
    (table,) = machine.stack
    if isinstance(table, dict) and isinstance(table.get("state_dict"), dict):
        table = table["state_dict"]
    if not isinstance(table, dict):
        raise machine.refused("no table of tensors")
    for name, value in table.items():
        if not isinstance(value, _Tensor):
            raise machine.refused(f"{name[:80]!r}, which isn't a tensor")
    return table


class _Machine:
    """The pickle machine's stack and memo, on plain data only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def refused(self, what: str) -> InputError:
        return InputError(f"{self.path}: its pickle holds {what}; pickles are never executed here; {_ADVICE}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def name(self, name: str) -> None:
        if name not in _NAMES:
            raise self.refused(f"a call of {name[:80].replace(' ', '.')}")
        self.push(_Name(name))

    def stack_name(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else "?")

    def marked(self) -> list[Any]:
        """Pops the items above the last mark, and the mark."""
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        items, self.stack[at:] = self.stack[at + 1 :], []
        return items

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise self.refused("an empty stack")
        items, self.stack[len(self.stack) - count :] = tuple(self.stack[len(self.stack) - count :]), []
        self.push(items)

    def set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):  # hashing a nested tuple could take forever
                raise self.refused("a key that isn't a string")
            if not isinstance(self.stack[-1], dict):
                raise self.refused("items without a table")
            self.stack[-1][key] = value

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise self.refused("items without a list")
        self.stack[-1].extend(items)

    def storage(self, _: Any) -> None:
        kind, storage, key, _, count = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Name) or storage.name not in _STORAGES:
            raise self.refused("a storage of unknown type")
        if not isinstance(key, str) or not _are_sizes((count,)):
            raise self.refused("a storage without name or size")
        self.push(_Storage(_STORAGES[storage.name], key, count))

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, _Name) else "?"
        if name == _TABLE and arguments == ():
            self.push({})
        elif name == _TENSOR:
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage) or not _are_sizes((offset, *shape, *strides)):
                raise self.refused("a tensor without storage, shape and strides")
            if len(shape) != len(strides) or len(shape) > 8:
                raise self.refused("a tensor with an invalid shape")
            self.push(_Tensor(storage, offset, tuple(shape), tuple(strides)))
        elif name == _PARAMETER and isinstance(arguments[0], _Tensor):
            self.push(arguments[0])
        else:
            raise self.refused(f"a call of {name.replace(' ', '.')} with unexpected arguments")


def _are_sizes(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < 2**62 for number in numbers)


def _keep(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push
    ),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _keep),
    "MEMOIZE": lambda machine, _: _keep(machine, len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "BUILD": lambda machine, _: machine.stack.pop(),  # attributes of the table: version numbers
}
