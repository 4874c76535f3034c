"""The FID Inception as a feature extractor, with the preprocessing of three tools."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from bksdm_jax.base.errors import one_of
from bksdm_jax.base.precision import cast_frozen, compute_dtype
from bksdm_jax.metrics import resize as resizers
from bksdm_jax.metrics.extractor import Extractor, mesh
from bksdm_jax.models.inception import FEATURES, SIZE, Inception
from bksdm_jax.pipelines.inception_file import LoadedInception


def _pytorch_fid(images: jax.Array) -> jax.Array:
    return 2 * resizers.half_pixel_bilinear(images.astype(jnp.float32) / 255, SIZE) - 1


def _torch_fidelity(images: jax.Array) -> jax.Array:
    return (resizers.tf1_bilinear(images.astype(jnp.float32), SIZE) - 128) / 128


def _clean(images: jax.Array) -> jax.Array:
    return (images - 128) / 128


def _as_is(image: np.ndarray) -> np.ndarray:
    return image


_RULES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[jax.Array], jax.Array]]] = {
    "pytorch_fid": (_as_is, _pytorch_fid),
    "torch_fidelity": (_as_is, _torch_fidelity),
    "clean": (functools.partial(resizers.clean, size=SIZE), _clean),
}
RESIZES = tuple(_RULES)
"""Tools whose resize and normalisation of the images can be chosen."""
ONE_SIZE = ("pytorch_fid", "torch_fidelity")
"""Those that resize whole batches: all images must have one size."""


def inception_extractor(loaded: LoadedInception, resize: str, dtype: str = "float32") -> Extractor:
    """Features `pool` [B, 2048], for Frechet and kernel distances, and `logits` [B, 1008], without bias.

    The images of a call must be of one size unless `resize` is `clean`; the program is compiled anew for each size.

    Args:
        loaded: the weights.
        resize: one of `RESIZES`.
        dtype: of the network's computations.

    Raises:
        InputError: an unknown name.
    """
    if resize not in _RULES:
        raise one_of("resize", resize, RESIZES)
    prepare, pixels = _RULES[resize]
    facts = {"weights": loaded.path, "sha256": loaded.sha256, "resize": resize, "dtype": dtype, "width": FEATURES}
    params = cast_frozen(loaded.params, compute_dtype(dtype))
    return Extractor(prepare, params, functools.partial(_features, pixels, dtype), dtype=dtype, facts=facts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    pixels: Callable[[jax.Array], jax.Array], dtype: str, params: Any, images: jax.Array, _: None
) -> dict[str, jax.Array]:
    def own(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return Inception(compute_dtype(dtype)).apply({"params": params}, pixels(images))

    # Each device maps over its own images; XLA's partitioner would let each compute all of them.
    rows = PartitionSpec("data")
    return jax.shard_map(own, mesh=mesh(), in_specs=(PartitionSpec(), rows), out_specs=rows)(params, images)
