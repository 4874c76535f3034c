"""Reads and writes one network's weights, checked against the expected shapes."""

import concurrent.futures
import errno
import math
import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import serialization
from safetensors import SafetensorError
from safetensors.numpy import save_file

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.finite import count_non_finite, find_non_finite
from bksdm_jax.formats import names
from bksdm_jax.formats.msgpack_file import index_msgpack
from bksdm_jax.formats.safetensors_file import index_safetensors, sort_metadata
from bksdm_jax.formats.stored import EIGHT_BITS, FLOATS, StoredTensor, empty
from bksdm_jax.formats.torch_file import index_torch

INDEXERS: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": index_safetensors,
    ".msgpack": index_msgpack,
    ".bin": index_torch,
    ".ckpt": index_torch,
}
"""Suffix -> file -> its tensors by name."""
_TEXT_LAYERS = ("text_model", "encoder", "layers")
_THREADS = min(4, os.cpu_count() or 1)  # each holds at most two copies of one tensor


def read_weights(
    paths: Sequence[Path], expected: Mapping[str, Any], allow_non_finite: bool | None = None
) -> dict[str, Any]:
    """Reads one network tensor by tensor, so that no file is in memory besides the result.

    Args:
        paths: its file, or its shards, all in one format.
        expected: nested shapes (`jax.ShapeDtypeStruct`) by Flax names; the files must match them exactly.
        allow_non_finite: of NaN, infinities and numbers beyond float32, True warns, False is an error that names this
            setting, and None an error of networks that have no such setting.

    Returns:
        nested numpy arrays by Flax names, in Flax's layouts and the files' dtypes.

    Raises:
        InputError: a file is damaged, weights are missing, unexpected or mis-shaped (all are listed), or hold numbers
            that aren't finite.
    """
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        for name, tensor in INDEXERS[path.suffix](path).items():
            if name in stored:
                raise InputError(f"{path}: {name[:80]!r} is in {stored[name].path.name} too; download both again")
            stored[name] = tensor
    source = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    if paths[0].suffix == ".msgpack":
        return _load(source, stored, expected, False, allow_non_finite)
    return read_tensors(source, stored, expected, allow_non_finite)


def read_tensors(
    source: str,
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, Any],
    allow_non_finite: bool | None = None,
) -> dict[str, Any]:
    """Reads one network from tensors with PyTorch's names; `source` is for errors, the rest is as in `read_weights`."""
    current = renamed(source, stored, names.current_name)
    current.pop(None, None)
    return _load(source, current, expected, True, allow_non_finite)


def renamed(
    source: str, stored: Mapping[str, StoredTensor], name_of: Callable[[str], str | None]
) -> dict[str | None, StoredTensor]:
    """The tensors by their current names; raises `InputError` if two have one name."""
    current: dict[str | None, StoredTensor] = {}
    for name, tensor in stored.items():
        new = name_of(name)
        if new is not None and new in current:
            raise InputError(f"{source}: {name[:80]!r} is in it under two names; keep one of them")
        current[new] = tensor
    return current


def tell_unused(source: str, names: Collection[str]) -> None:
    """Warns in one line of tensors that are passed over, if there are any."""
    if names:
        some = f"{', '.join(name[:80] for name in sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
        logging.warning("%s: passed over %d unused tensor(s): %s", source, len(names), some)


def _without_unused(
    source: str, stored: Mapping[str, StoredTensor], expected: Collection[str], separator: str
) -> dict[str, StoredTensor]:
    """Without tensors outside the network's modules, such as projections and image towers, and spare text layers.

    As in PyTorch they are passed over; what belongs to the network's modules stays and must match.
    """
    paths = [tuple(name.split(separator)) for name in expected]
    modules, layers = {path[0] for path in paths}, {path[:4] for path in paths}

    def is_used(name: str) -> bool:
        path = tuple(name.split(separator))
        return path[0] in modules and (path[:3] != _TEXT_LAYERS or path[:4] in layers)

    tell_unused(source, [name for name in stored if not is_used(name)])
    return {name: tensor for name, tensor in stored.items() if is_used(name)}


def _load(
    source: str,
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, Any],
    from_torch: bool,
    allow_non_finite: bool | None,
) -> dict[str, Any]:
    """`from_torch`: `stored` has PyTorch's names and layouts, else Flax's."""
    paths = trees.flatten(expected)
    shapes = names.torch_shapes(expected) if from_torch else {path: leaf.shape for path, leaf in paths.items()}
    stored = _without_unused(source, stored, shapes, "." if from_torch else "/")
    trees.require_same(source, {name: tensor.shape for name, tensor in stored.items()}, shapes)
    known = FLOATS | EIGHT_BITS
    for name, tensor in stored.items():
        if tensor.dtype not in known.values():
            raise InputError(f"{tensor.path}: {name} holds {tensor.dtype}; expected one of {', '.join(known)}")
    largest = max((tensor.span() for tensor in stored.values()), default=0) if from_torch else 0
    own = threading.local()  # a buffer per thread
    counts: dict[str, int] = {}

    def prepare() -> None:
        own.buffer = empty((largest,), np.uint8)

    def read(path: str) -> np.ndarray:
        tensor = stored[names.torch_name(path)].read(own.buffer) if from_torch else stored[path].read()
        if tensor.dtype in EIGHT_BITS.values():
            tensor = tensor.astype(FLOATS["bfloat16"])
        counts[path] = count_non_finite(tensor)
        return names.to_flax(path, tensor) if from_torch else tensor

    with concurrent.futures.ThreadPoolExecutor(_THREADS, initializer=prepare) as pool:
        arrays = dict(zip(paths, pool.map(read, paths), strict=True))
    bad = {names.torch_name(path) if from_torch else path: counts[path] for path in paths if counts[path]}
    tell_non_finite(source, {name: (stored[name], count) for name, count in bad.items()}, allow_non_finite)
    return trees.unflatten(arrays)


def tell_non_finite(source: str, bad: Mapping[str, tuple[StoredTensor, int]], allow: bool | None) -> None:
    """Raises `InputError`, or warns, of tensors with numbers that aren't finite, if there are any.

    Args:
        source: the network and its file, for errors.
        bad: tensor and count of these numbers by name.
        allow: as `allow_non_finite` in `read_weights`.
    """
    if not bad:
        return
    name, (tensor, count) = next(iter(bad.items()))
    file = "" if tensor.path.name in source else f" in {tensor.path.name}"
    more = f" (and some of {len(bad) - 1} other tensors)" if len(bad) > 1 else ""
    found = f"{source}: {count:,} of {math.prod(tensor.shape):,} values of {name[:200]}{file}{more} aren't finite"
    if not allow:
        hint = "" if allow is None else ", or set allow_non_finite=yes to use it as it is"
        raise InputError(f"{found}; mend or download it again{hint}")
    logging.warning("%s, and are used since allow_non_finite is set", found)


def require_finite(target: Path, network: str, params: Mapping[str, Any]) -> None:
    """Raises `InputError` if a network that is to be written to `target` has numbers that aren't finite."""
    flat = trees.flatten(params)
    for path, count in find_non_finite(flat):
        raise InputError(
            f"{target}: not written, since {count:,} of {np.size(flat[path]):,} values of {network}'s {path} aren't "
            "finite; make the model again from weights that are"
        )


def write_msgpack(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested arrays as a Flax checkpoint."""
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, dict(params))))


def write_safetensors(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested Flax arrays with PyTorch's names and layouts."""
    write_tensors(path, torch_tensors(params))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a table of arrays and metadata as safetensors, with the permissions of a new file.

    Raises:
        OSError: the file can't be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
        if metadata:
            sort_metadata(path)
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
