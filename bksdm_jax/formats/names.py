"""Converts names and layouts of weights between PyTorch and Flax.

Flax trees have Diffusers' Flax names (`down_blocks_0/resnets_0/conv1/kernel`, kernels [H, W, in, out] and
[in, out]); PyTorch files have Diffusers' current ones (`down_blocks.0.resnets.0.conv1.weight`, [out, in, H, W] and
[out, in]).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.formats.stored import empty
from bksdm_jax.models.unet import dotted

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"} | {
    "mean": "running_mean",  # of batch normalisation
    "var": "running_var",
}
_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_CLIP_PREFIX = "text_model."
_CLIP_HEADS = ("embeddings.", "encoder.layers.", "final_layer_norm.")
_TILE = 128
_BUFFERS = ("embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Written by older Transformers; they hold 0, 1, 2, ..."""


def torch_name(path: str) -> str:
    """`down_blocks_0/attentions_0/proj_in/kernel` -> `down_blocks.0.attentions.0.proj_in.weight`."""
    *parts, leaf = path.split("/")
    return ".".join([*(_VAE_ATTENTION.get(part, dotted(part)) for part in parts), _LEAVES.get(leaf, leaf)])


def torch_shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """PyTorch name -> shape in a PyTorch file of every leaf of nested Flax parameters."""
    return {
        torch_name(path): tuple(leaf.shape[axis] for axis in _torch_axes(path, len(leaf.shape)))
        for path, leaf in trees.flatten(params).items()
    }


def to_torch(path: str, array: np.ndarray) -> np.ndarray:
    """A contiguous copy of a Flax array in PyTorch's layout."""
    return _transposed(array, _torch_axes(path, array.ndim))


def to_flax(path: str, array: np.ndarray) -> np.ndarray:
    """A contiguous copy of a PyTorch array in Flax's layout."""
    return _transposed(array, np.argsort(_torch_axes(path, array.ndim)))


def current_name(name: str) -> str | None:
    """The name that `torch_name` gives a weight with this name in a PyTorch file, or None for a buffer.

    Transformers 5 writes CLIP's names without the prefix `text_model.`, Transformers 4 with it. The VAEs of SD 1.x and
    2.x have `query`, `key`, `value`, `proj_attn` instead of `to_q`, `to_k`, `to_v`, `to_out.0`.
    """
    *path, module, leaf = name.split(".") if name.count(".") else ("", name)
    if module in _VAE_ATTENTION and "attentions" in path:  # an older VAE
        return ".".join([*path, _VAE_ATTENTION[module], leaf])
    bare = name.removeprefix(_CLIP_PREFIX)
    if bare in _BUFFERS:
        return None
    return _CLIP_PREFIX + bare if bare.startswith(_CLIP_HEADS) else name


def _torch_axes(path: str, ndim: int) -> tuple[int, ...]:
    if not path.endswith("/kernel"):
        return tuple(range(ndim))
    return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]


def _transposed(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """A transposed copy, in tiles that fit in the CPU cache: half the time of one assignment for large kernels."""
    turned = array.transpose(axes)
    copy = empty(turned.shape, turned.dtype)
    if turned.ndim < 2:
        copy[...] = turned
        return copy
    for row in range(0, turned.shape[-2], _TILE):
        for column in range(0, turned.shape[-1], _TILE):
            tile = (..., slice(row, row + _TILE), slice(column, column + _TILE))
            copy[tile] = turned[tile]
    return copy
