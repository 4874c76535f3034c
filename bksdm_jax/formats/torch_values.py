"""What stands for the objects of a PyTorch checkpoint's pickle: plain data, built from plain data."""

import dataclasses
from typing import Any

import numpy as np

from bksdm_jax.formats import torch_names

MOST_TEXT = 2**8  # characters of a name or a storage's key: longer ones, repeated from the memo, would fill the memory
_MOST_AXES = 8

INERT = object()
"""Stands for every object that is passed over."""


class Unsupported(Exception):  # noqa: N818 - becomes an InputError that names the file
    """The pickle holds something that isn't supported; the message says what."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A global that the pickle refers to: its module and name, separated by a blank."""

    name: str

    def __str__(self) -> str:
        return self.name.replace(" ", ".")


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A storage, or the part of it that a view covers; numbers are in elements.

    Attributes:
        key: its name in the file.
        dtype: of the elements.
        count: of the whole storage.
        offset: of the part's first element.
        length: of the part.
    """

    key: str
    dtype: np.dtype
    count: int
    offset: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor; `offset` and `strides` are in elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def storage_of(saved: Any) -> Storage:
    """The storage that a persistent id describes.

    Args:
        saved: ("storage", type, key, device, elements), in the format before PyTorch 1.6 followed by None or by a view:
            (key, offset, elements).

    Raises:
        Unsupported: it describes none, or one of unknown type.
    """
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or not isinstance(saved[0], str):
        raise Unsupported("a persistent id that isn't a storage's")
    kind, storage, key, _, count, *views = saved
    dtype = torch_names.STORAGES.get(storage.name) if isinstance(storage, Name) else None
    if kind != "storage" or dtype is None:
        raise Unsupported(f"a persistent id of kind {kind[:80]!r}, or a storage of unknown type")
    if not isinstance(key, str) or len(key) > MOST_TEXT or not _are_sizes((count,)):
        raise Unsupported("a storage without name or size")
    offset, length = 0, count
    if views and views[0] is not None:
        if not isinstance(views[0], tuple) or len(views[0]) != 3 or not _are_sizes(views[0][1:]):
            raise Unsupported("a view without offset and size")
        _, offset, length = views[0]
    if offset + length > count:
        raise Unsupported("a view that ends after its storage")
    return Storage(key, dtype, count, offset, length)


def tensor_of(function: Name, arguments: Any) -> Tensor:
    """The tensor that one of `torch_names.TENSORS` returns for (storage, offset, shape, strides, ...).

    Raises:
        Unsupported: the arguments are others than PyTorch writes, or ask for another dtype.
    """
    count = torch_names.TENSORS[function.name]
    if not isinstance(arguments, tuple) or len(arguments) not in (count, count + 1):
        raise Unsupported(f"a call of {function} with unexpected arguments")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not all(map(_are_sizes, ((offset,), shape, strides))):
        raise Unsupported("a tensor without storage, shape and strides")
    if len(shape) != len(strides):
        raise Unsupported("a tensor with an invalid shape")
    if any(arguments[count:]):
        raise Unsupported("a tensor that PyTorch negates or conjugates when it is used")
    dtype = storage.dtype
    if function.name == torch_names.UNTYPED_TENSOR:
        kind = arguments[6]
        if not isinstance(kind, Name) or kind.name not in torch_names.UNTYPED:
            raise Unsupported(f"a tensor of {kind if isinstance(kind, Name) else 'unknown type'}")
        dtype = torch_names.UNTYPED[kind.name]
    return Tensor(storage, dtype, offset, shape, strides)


def _are_sizes(numbers: Any) -> bool:
    return (
        isinstance(numbers, tuple)
        and len(numbers) <= _MOST_AXES
        and all(type(number) is int and 0 <= number < 2**62 for number in numbers)
    )
