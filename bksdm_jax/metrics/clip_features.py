"""CLIP's view of images and captions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.images import to_unit
from bksdm_jax.base.precision import exact_products
from bksdm_jax.models.clip_pair import CLIP, CLIPConfig, unit_length
from bksdm_jax.pipelines.clip_folder import LoadedCLIP


def clip_features(loaded: LoadedCLIP, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """The image tower's states, float32 [N, width].

    Args:
        loaded: from `load_clip`.
        images: uint8 [N, image_size, image_size, 3].
        batch_size: images per program call; changes nothing but the speed.
    """
    return _in_batches(_features, loaded, (images,), batch_size)


def clip_cosines(loaded: LoadedCLIP, images: np.ndarray, captions: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """The cosine of each image's direction with that of its own caption, float32 [N]; arguments as `clip_features`."""
    tokens = loaded.tokenizer(captions)
    return _in_batches(_cosines, loaded, (images, tokens, loaded.tokenizer.ends(tokens)), batch_size)


@functools.partial(jax.jit, static_argnums=0)
def _features(config: CLIPConfig, params: Any, images: jax.Array) -> jax.Array:
    return CLIP(config).apply({"params": params}, to_unit(images), method="image_features")


@functools.partial(jax.jit, static_argnums=0)
def _cosines(config: CLIPConfig, params: Any, images: jax.Array, tokens: jax.Array, ends: jax.Array) -> jax.Array:
    directions = unit_length(CLIP(config).apply({"params": params}, to_unit(images), method="embed_images"))
    texts = unit_length(CLIP(config).apply({"params": params}, tokens, ends, method="embed_texts"))
    return jnp.sum(directions * texts, axis=-1)


def _in_batches(
    program: Callable[..., jax.Array], loaded: LoadedCLIP, rows: tuple[np.ndarray, ...], batch_size: int
) -> np.ndarray:
    """`program` on `batch_size` rows at a time; the last call is filled up with the last row."""
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)
    parts, count = [], len(rows[0])
    with exact_products("float32"):
        for start in range(0, count, batch_size):
            chosen = np.arange(start, start + batch_size).clip(max=count - 1)
            part = program(loaded.config, params, *(row[chosen] for row in rows))
            parts.append(np.asarray(part)[: count - start])
    return np.concatenate(parts)
