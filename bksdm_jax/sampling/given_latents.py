"""Starting noise from a file."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.paths import require_file
from bksdm_jax.formats.safetensors_file import index_safetensors

_MOST = 2**31  # numbers, 8 GiB in float32
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


def read_latents(path: Path, count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Starting noise of `count` images, float32 [count or 1, h, w, C]: a single one is shared by all of them.

    Args:
        path: `.npy`, or `.safetensors` with one tensor; float32 or float16 [N, h, w, C], or Diffusers' [N, C, h, w].
        count: of images.
        shape: [h, w, C] of an image's latents.

    Raises:
        InputError: the file can't be read, or holds something else or values that aren't finite.
    """
    if path.suffix.lower() not in (".npy", ".safetensors"):
        raise InputError(f"{path}: expected latents as .npy or .safetensors")
    found, dtype, read = _npy(path) if path.suffix.lower() == ".npy" else _tensor(path)
    if dtype.newbyteorder("=") not in _FLOATS:
        raise InputError(f"{path}: latents of {dtype}; expected float32 or float16")
    theirs = (shape[2], *shape[:2])
    fits = [found[1:] == layout for layout in (shape, theirs)] if len(found) == len(shape) + 1 else [False, False]
    if not any(fits) or found[0] not in (1, count):
        wanted = " or ".join(str([count, *layout]) for layout in (shape, theirs))
        raise InputError(f"{path}: latents of shape {list(found)[:8]}; expected {wanted}, or 1 instead of {count}")
    if math.prod(found) > _MOST:
        raise InputError(f"{path}: {math.prod(found)} numbers; the limit is {_MOST}: split the run")
    if all(fits) and shape[0] != 1:
        raise InputError(
            f"{path}: latents of shape {list(found)} may be [N, h, w, C] or [N, C, h, w]; choose another resolution"
        )
    values = np.asarray(read()).astype(np.float32)
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))[0]
        raise InputError(
            f"{path}: latents[{', '.join(map(str, bad))}] is {values[tuple(bad)]}; expected finite numbers"
        )
    return values if fits[0] else np.ascontiguousarray(values.transpose(0, 2, 3, 1))


_Found = tuple[tuple[int, ...], np.dtype, Callable[[], Any]]


def _npy(path: Path) -> _Found:
    """Shape, dtype, and a call that reads it."""
    require_file(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: takes memory only once its shape is known
    except Exception as error:  # NumPy's reader raises many types
        raise InputError(f"{path}: not a readable .npy file ({in_short(error)})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: holds several arrays; expected one as a .npy file")
    return array.shape, array.dtype, lambda: array


def _tensor(path: Path) -> _Found:
    """The same of a file's only tensor."""
    tensors = index_safetensors(path)
    if len(tensors) != 1:
        raise InputError(f"{path}: {len(tensors)} tensors; expected one")
    (tensor,) = tensors.values()
    if math.prod(tensor.shape) == 0:
        raise InputError(f"{path}: an empty tensor, {list(tensor.shape)[:8]}; expected latents")
    return tensor.shape, tensor.dtype, tensor.read
