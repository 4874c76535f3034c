"""Captions to images as one program, for callers that keep their own weights and devices."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.diffusion.noise import as_noise, image_keys
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.text_to_image import not_finite, text_to_image, warn_of_clipping

EncodeCaptions = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""Captions -> the text encoders' inputs, arrays [N, ...], as `Pipeline.caption_inputs`."""
Generate = Callable[[dict[str, Any], Any, Any, jax.Array], tuple[jax.Array, jax.Array]]
"""(parameters by network, caption inputs [B, ...], the negative prompt's inputs [1, ...], keys [B] or starting noise
[B, h, w, C]) -> uint8 [B, H, W, 3], and whether each image is finite, bool [B]."""


def make_generate(networks: Architectures, config: SamplerConfig, dtype: jnp.dtype = jnp.float32) -> Generate:
    """The function from captions to images, to be jitted; raises as `text_to_image`."""
    parts = text_to_image(networks, config, dtype)
    warn_of_clipping(config, networks)

    def generate(params: dict[str, Any], captions: Any, negative: Any, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        conditioning, without = parts.condition(params, captions), parts.condition(params, negative)
        return parts.decode_checked(params, parts.denoise(params, conditioning, without, noise)[0])

    return generate


def starting_noise(seed: int, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise of images `indices`, uint32 [B]: standard normal float32 [B, *shape]; an image's doesn't depend on the
    others.
    """
    return as_noise(image_keys(seed, indices), shape)


def generate_images(
    generate: Generate,
    params: dict[str, Any],
    caption_inputs: EncodeCaptions,
    config: SamplerConfig,
    prompts: Sequence[tuple[int, str]],
    batch_size: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Makes images of `prompts`, (image number, prompt); yields (image number, uint8 [H, W, 3]) in the same order.

    `generate` is from `make_generate` with the same `config`, jitted. Each call makes `batch_size` images; the last one
    is padded with the last prompt. Raises `InputError` for an image that isn't finite.
    """
    negative = caption_inputs([config.negative_prompt])
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        filled = chunk + [chunk[-1]] * (batch_size - len(chunk))
        keys = image_keys(config.seed, np.array([index for index, _ in filled], np.uint32))
        images, finite = map(np.asarray, generate(params, caption_inputs([text for _, text in filled]), negative, keys))
        for (index, prompt), image, is_finite in zip(chunk, images, finite, strict=False):
            if not is_finite:
                raise not_finite(index, prompt)
            yield index, image
