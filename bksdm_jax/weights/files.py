"""One network's weights as a file: Flax msgpack or safetensors, read whole and held to the shapes that are expected."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bksdm_jax import trees
from bksdm_jax.errors import InputError
from bksdm_jax.weights import names


def read_msgpack(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a Flax checkpoint.

    Args:
        path: the file.
        expected: nested shapes (`jax.ShapeDtypeStruct`) that the file must hold, no more and no less.

    Returns:
        nested numpy arrays in the file's own dtypes.

    Raises:
        InputError: the file is damaged, or one line with every missing, unexpected and mis-shaped name.
    """
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        flat = trees.flatten(tree)
        found = {name: tuple(leaf.shape) for name, leaf in flat.items()}
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    except Exception as error:  # msgpack raises many types on bytes that it can't make sense of
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a whole Flax msgpack checkpoint ({reason}); fetch it again") from error
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(expected).items()}
    trees.require_same(str(path), found, wanted)
    return tree


def read_safetensors(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a PyTorch-named safetensors file into Flax names and layouts; otherwise like `read_msgpack`."""
    wanted = {name: tuple(leaf.shape) for name, leaf in trees.flatten(expected).items()}
    shapes = {names.torch_name(name): names.torch_shape(name, shape) for name, shape in wanted.items()}
    try:
        with safe_open(path, framework="numpy") as file:
            stored = {names.current_name(name): name for name in file.keys()}  # noqa: SIM118
            stored.pop(None, None)
            found = {name: tuple(file.get_slice(old).get_shape()) for name, old in stored.items()}
            trees.require_same(str(path), found, shapes)
            return trees.unflatten(
                {name: names.to_flax(name, file.get_tensor(stored[names.torch_name(name)])) for name in wanted}
            )
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a whole safetensors file ({reason}); fetch it again") from error


def write_msgpack(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested arrays as a Flax checkpoint."""
    path.write_bytes(serialization.msgpack_serialize(_as_numpy(params)))


def write_safetensors(path: Path, params: Mapping[str, Any]) -> None:
    """Writes nested Flax arrays under PyTorch's names, in PyTorch's layouts."""
    flat = trees.flatten(_as_numpy(params))
    tensors = {names.torch_name(name): names.to_torch(name, leaf) for name, leaf in flat.items()}
    save_file(tensors, path, metadata={"format": "pt"})


READERS: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Any]]] = {
    ".safetensors": read_safetensors,
    ".msgpack": read_msgpack,
}
WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    ".safetensors": write_safetensors,
    ".msgpack": write_msgpack,
}


def _as_numpy(params: Mapping[str, Any]) -> dict[str, Any]:
    return trees.unflatten({name: np.asarray(leaf) for name, leaf in trees.flatten(params).items()})
