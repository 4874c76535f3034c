"""Encodes images to latents with a pipeline's autoencoder."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.finite import count_non_finite, find_non_finite
from bksdm_jax.base.images import to_unit
from bksdm_jax.base.precision import cast_frozen, compute_dtype
from bksdm_jax.data.sources import Example
from bksdm_jax.models.vae import VAE
from bksdm_jax.pipelines.pipeline import Network


def make_encode(
    vae: Network, dtype: str, batch_size: int, flip: bool
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Builds the function that encodes a batch on this process's devices.

    Args:
        vae: the autoencoder.
        dtype: of its computations.
        batch_size: images per device and call.
        flip: encode mirrored images too.

    Returns:
        the largest batch size; a function uint8 [N, H, W, 3] -> float32 [N, 1 or 2 (mirrored), 2 (mean,
        log-variance), h, w, C].
    """
    devices, compute = jax.local_devices(), compute_dtype(dtype)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    split, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    params = jax.device_put(cast_frozen(vae.params, compute), replicated)
    count = batch_size * len(devices)

    def encode(params: Any, images: jax.Array) -> jax.Array:
        views = [images, images[:, :, ::-1]] if flip else [images]
        moments = [VAE(vae.config, compute).apply({"params": params}, to_unit(view), method="encode") for view in views]
        return jnp.stack([jnp.stack(pair, axis=1) for pair in moments], axis=1).astype(jnp.float32)

    program = jax.jit(encode, in_shardings=(replicated, split), out_shardings=split)

    def run(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, np.zeros((count - len(images), *images.shape[1:]), np.uint8)])
        return np.asarray(program(params, jax.device_put(padded, split)))[: len(images)]

    return count, run


def require_finite_latents(
    examples: Sequence[Example], encoded: np.ndarray, vae: Network, dtype: str, key: str = "dtype"
) -> None:
    """Raises `InputError` for an example whose latents, the bits of bfloat16, aren't finite; `key` sets the dtype."""
    for example, moments in zip(examples, encoded.view(ml_dtypes.bfloat16), strict=True):
        if not (count := count_non_finite(moments)):
            continue
        weights = next(find_non_finite(trees.flatten(vae.params)), None)
        if weights:
            why = f"as are weights of the autoencoder ({weights[0]}); use one whose weights are all finite"
        elif dtype != "float32":
            why = f"though the weights are: the autoencoder overflows in {dtype}; set {key} to float32"
        else:
            why = "though the weights are: the autoencoder overflows with this image; leave the image out"
        raise InputError(
            f"{shown(example.name)}: {count:,} of {moments.size:,} numbers of its latents aren't finite, {why}"
        )
