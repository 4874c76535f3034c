"""Text to image: one compiled program from captions and noise to pixels."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.base.images import to_uint8
from bksdm_jax.diffusion.noise import as_noise, image_keys
from bksdm_jax.diffusion.samplers import SAMPLERS, guided
from bksdm_jax.models.attention import require_attention
from bksdm_jax.models.unet import UNet
from bksdm_jax.pipelines.pipeline import Architectures


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How images are made.

    Attributes:
        steps: sampler steps. PNDM calls the U-Net once more, or nine times more if the model's scheduler file doesn't
            skip the Runge-Kutta steps.
        guidance_scale: of classifier-free guidance; values up to 1 switch it off.
        resolution: pixels.
        sampler: a key of `SAMPLERS`; another than the model's own is made from its scheduler file as by Diffusers'
            `from_config`.
        seed: image number i starts from noise drawn with `fold_in(key(seed), i)`.
        negative_prompt: what guidance steers away from.
        attention: of the U-Net, a key of `attention.IMPLEMENTATIONS`.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    resolution: int = 512
    sampler: str = "pndm"
    seed: int = 0
    negative_prompt: str = ""
    attention: str = "auto"


MOST_RESOLUTION = 4096  # pixels
MOST_SEED = 2**32 - 1
"""Larger seeds would silently be cut to 32 bits."""
EncodeCaptions = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""Captions -> the text encoders' inputs, arrays [N, ...], as `Pipeline.caption_inputs`."""
Generate = Callable[[dict[str, Any], Any, Any, jax.Array], jax.Array]
"""(parameters by network, caption inputs [B, ...], the negative prompt's inputs [1, ...], keys [B] or starting noise
[B, h, w, C]) -> uint8 [B, H, W, 3]."""


def require_sampler(config: SamplerConfig, networks: Architectures) -> None:
    """Raises `InputError` for an unknown sampler, or a setting that is out of range or doesn't fit the networks."""
    known_name("config", "sampler", config.sampler, SAMPLERS)
    if networks.schedule.for_sampler(config.sampler).clip_sample:
        logging.warning(
            "sampler: %s clips its estimates of z_0, as by Diffusers' from_config, since the model's scheduler file "
            "doesn't have clip_sample false; what launch.prune writes has it",
            config.sampler,
        )
    latents = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32)
    jax.eval_shape(lambda x: SAMPLERS[config.sampler](lambda x, _: x, x, networks.schedule, config.steps), latents)
    finite_number("config", "guidance_scale", config.guidance_scale, 0)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    require_resolution(config.resolution, networks)


def require_resolution(resolution: int, networks: Architectures) -> None:
    """Raises `InputError` unless the resolution is a multiple of the networks' total downsampling, in bounds."""
    multiple = networks.factor * networks.denoiser.downscale
    if not multiple <= resolution <= MOST_RESOLUTION or resolution % multiple:
        raise InputError(
            f"resolution: {resolution} pixels; this model needs a multiple of {multiple}, {MOST_RESOLUTION} at most"
        )


def make_generate(networks: Architectures, config: SamplerConfig, dtype: jnp.dtype = jnp.float32) -> Generate:
    """Builds the function that makes images, to be jitted; raises as `require_sampler` and `require_attention`."""
    require_sampler(config, networks)
    require_attention(config.attention, dtype)
    shape = networks.latent_shape(config.resolution)
    unet, name = UNet(networks.denoiser, dtype, config.attention), networks.kind.denoiser

    def generate(params: dict[str, Any], captions: Any, negative: Any, noise: jax.Array) -> jax.Array:
        conditioning = networks.condition(params, dtype, captions)
        without = networks.condition(params, dtype, negative)
        without = jax.tree.map(lambda one, each: jnp.broadcast_to(one, each.shape), without, conditioning)

        def network(x: jax.Array, t: jax.Array, conditioning: Any) -> jax.Array:
            return unet.apply({"params": params[name]}, x.astype(dtype), t, conditioning)

        predict = guided(network, conditioning, without, config.guidance_scale)
        latents = SAMPLERS[config.sampler](predict, as_noise(noise, shape), networks.schedule, config.steps)
        return to_uint8(networks.decode(params, dtype, latents))

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
    is padded with the last prompt.
    """
    negative = caption_inputs([config.negative_prompt])
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        filled = chunk + [chunk[-1]] * (batch_size - len(chunk))
        keys = image_keys(config.seed, np.array([index for index, _ in filled], np.uint32))
        images = generate(params, caption_inputs([text for _, text in filled]), negative, keys)
        for (index, _), image in zip(chunk, np.asarray(images), strict=False):
            yield index, image
