"""One network's weights from the files that hold them, and into a file: held to the shapes that are expected."""

import concurrent.futures
import errno
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization
from safetensors import SafetensorError
from safetensors.numpy import save_file

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.formats import names
from bksdm_jax.formats.msgpack_file import index_msgpack
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.stored import FLOATS, StoredTensor, empty
from bksdm_jax.formats.torch_file import index_torch

INDEXERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": index_safetensors,
    ".msgpack": index_msgpack,
    ".bin": index_torch,
}
"""suffix -> where the tensors of such a file lie."""
_THREADS = min(4, os.cpu_count() or 1)  # each holds two copies of one tensor at most


def read_weights(paths: Sequence[Path], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one network, tensor by tensor, so that no file is ever held whole beside what is made of it.

    Args:
        paths: its file, or its shards, all of one format.
        expected: nested shapes (`jax.ShapeDtypeStruct`) under Flax names that they must hold, no more and no less.

    Returns:
        nested numpy arrays under Flax names, in Flax's layouts and the files' dtypes.

    Raises:
        InputError: a file is damaged, or one line with every missing, unexpected and mis-shaped name.
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        for name, tensor in INDEXERS[path.suffix](path).items():
            if name in stored:
                raise InputError(f"{path}: {name[:80]!r} is in {stored[name].path.name} too; fetch both again")
            stored[name] = tensor
    source = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(expected).items()}
    if paths[0].suffix == ".msgpack":
        return _load(source, {name: (name, False) for name in wanted}, stored, wanted)
    return read_tensors(source, stored, expected)


def read_tensors(source: str, stored: Mapping[str, StoredTensor], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads one network from tensors under PyTorch's names; `source` is named by errors, the rest as `read_weights`."""
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(expected).items()}
    current = {names.current_name(name): tensor for name, tensor in stored.items()}
    current.pop(None, None)
    return _load(source, {name: (names.torch_name(name), True) for name in wanted}, current, wanted)


def _load(
    source: str,
    places: Mapping[str, tuple[str, bool]],
    stored: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """`places`: Flax name -> name in `stored`, and whether that one is in PyTorch's layout."""
    shapes = {
        place: names.torch_shape(name, wanted[name]) if turned else wanted[name]
        for name, (place, turned) in places.items()
    }
    trees.require_same(source, {name: tensor.shape for name, tensor in stored.items()}, shapes)
    for name, tensor in stored.items():
        if tensor.dtype not in FLOATS.values():
            raise InputError(f"{tensor.path}: {name} holds {tensor.dtype}; expected one of {', '.join(FLOATS)}")

    largest = max((stored[place].span() for place, turned in places.values() if turned), default=0)
    own = threading.local()  # of each thread, since it is written by one at a time

    def prepare() -> None:
        own.buffer = empty((largest,), np.uint8)

    def read(name: str) -> np.ndarray:
        place, turned = places[name]
        return names.to_flax(name, stored[place].read(own.buffer)) if turned else stored[place].read()

    with concurrent.futures.ThreadPoolExecutor(_THREADS, initializer=prepare) as pool:
        return trees.unflatten(dict(zip(wanted, pool.map(read, wanted), strict=True)))


def write_msgpack(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested arrays as a Flax checkpoint."""
    path.write_bytes(serialization.msgpack_serialize(_as_numpy(params)))


def write_safetensors(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested Flax arrays under PyTorch's names, in PyTorch's layouts."""
    write_tensors(path, torch_tensors(params))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a table of arrays as safetensors, readable as other new files are.

    Raises:
        OSError: as a file's own writing does.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # says in words what an OSError says by number
        free = shutil.disk_usage(path.parent).free
        full = free < 2**20 or "space" in str(error).lower() or "quota" in str(error).lower()
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # the library's own are for the owner alone


def torch_tensors(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Nested Flax arrays as a flat table under PyTorch's names, in PyTorch's layouts."""
    flat = trees.flatten(params)
    return {names.torch_name(path): names.to_torch(path, np.asarray(leaf)) for path, leaf in flat.items()}


WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    ".safetensors": write_safetensors,
    ".msgpack": write_msgpack,
}


def _as_numpy(params: Mapping[str, Any]) -> dict[str, Any]:
    return trees.unflatten({name: np.asarray(leaf) for name, leaf in trees.flatten(params).items()})
