"""Reads and writes one network's weights, checked against the expected shapes."""

import concurrent.futures
import errno
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization
from safetensors import SafetensorError
from safetensors.numpy import save_file

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.formats import names
from bksdm_jax.formats.msgpack_file import index_msgpack
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.stored import EIGHT_BITS, FLOATS, StoredTensor, empty
from bksdm_jax.formats.torch_file import index_torch

INDEXERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": index_safetensors,
    ".msgpack": index_msgpack,
    ".bin": index_torch,
}
"""Suffix -> file -> its tensors by name."""
_THREADS = min(4, os.cpu_count() or 1)  # each holds at most two copies of one tensor


def read_weights(paths: Sequence[Path], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one network tensor by tensor, so that no file is in memory besides the result.

    Args:
        paths: its file, or its shards, all in one format.
        expected: nested shapes (`jax.ShapeDtypeStruct`) by Flax names; the files must match them exactly.

    Returns:
        nested numpy arrays by Flax names, in Flax's layouts and the files' dtypes.

    Raises:
        InputError: a file is damaged, or weights are missing, unexpected or mis-shaped (all are listed).
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        for name, tensor in INDEXERS[path.suffix](path).items():
            if name in stored:
                raise InputError(f"{path}: {name[:80]!r} is in {stored[name].path.name} too; download both again")
            stored[name] = tensor
    source = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(expected).items()}
    if paths[0].suffix == ".msgpack":
        return _load(source, {name: (name, False) for name in wanted}, stored, wanted)
    return read_tensors(source, stored, expected)


def read_tensors(source: str, stored: Mapping[str, StoredTensor], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one network from tensors with PyTorch's names; `source` is for errors, the rest is as in `read_weights`."""
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(expected).items()}
    current = {names.current_name(name): tensor for name, tensor in stored.items()}
    current.pop(None, None)
    return _load(source, {name: (names.torch_name(name), True) for name in wanted}, current, wanted)


def _load(
    source: str,
    origins: Mapping[str, tuple[str, bool]],
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """`origins`: Flax name -> name in `stored`, and whether it is in PyTorch's layout."""
    shapes = {
        origin: names.torch_shape(name, wanted[name]) if is_torch else wanted[name]
        for name, (origin, is_torch) in origins.items()
    }
    trees.require_same(source, {name: tensor.shape for name, tensor in stored.items()}, shapes)
    for name, tensor in stored.items():
        if tensor.dtype not in (known := FLOATS | EIGHT_BITS).values():
            raise InputError(f"{tensor.path}: {name} holds {tensor.dtype}; expected one of {', '.join(known)}")

    largest = max((stored[origin].span() for origin, is_torch in origins.values() if is_torch), default=0)
    own = threading.local()  # a buffer per thread

    def prepare() -> None:
        own.buffer = empty((largest,), np.uint8)

    def read(name: str) -> np.ndarray:
        origin, is_torch = origins[name]
        tensor = stored[origin].read(own.buffer if is_torch else None)
        if tensor.dtype in EIGHT_BITS.values():
            tensor = tensor.astype(FLOATS["bfloat16"])
        return names.to_flax(name, tensor) if is_torch else tensor

    with concurrent.futures.ThreadPoolExecutor(_THREADS, initializer=prepare) as pool:
        return trees.unflatten(dict(zip(wanted, pool.map(read, wanted), strict=True)))


def write_msgpack(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested arrays as a Flax checkpoint."""
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, dict(params))))


def write_safetensors(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested Flax arrays with PyTorch's names and layouts."""
    write_tensors(path, torch_tensors(params))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a table of arrays as safetensors, with the permissions of a new file.

    Raises:
        OSError: the file can't be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # wraps the OSError as text
        free = shutil.disk_usage(path.parent).free
        full = free < 2**20 or "space" in str(error).lower() or "quota" in str(error).lower()
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # the library makes files readable only for their owner


def torch_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Nested Flax arrays as a flat table with PyTorch's names and layouts."""
    flat = trees.flatten(params)
    return {names.torch_name(path): names.to_torch(path, np.asarray(leaf)) for path, leaf in flat.items()}


WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    ".safetensors": write_safetensors,
    ".msgpack": write_msgpack,
}
