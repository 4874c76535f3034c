"""Text to image: captions and noise in, pixels out, by functions to be jitted."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError, finite_number, whole_number
from bksdm_jax.base.images import to_uint8
from bksdm_jax.diffusion import guidance
from bksdm_jax.diffusion.noise import as_noise, image_keys
from bksdm_jax.diffusion.samplers import sampler_calls, with_options
from bksdm_jax.diffusion.solver import Calls, run
from bksdm_jax.models.attention import require_attention
from bksdm_jax.models.unet import UNet
from bksdm_jax.pipelines.pipeline import Architectures


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How images are made.

    Attributes:
        steps: sampler steps as Diffusers counts them. PNDM calls the U-Net once more, or nine times more if the model's
            scheduler file doesn't skip the Runge-Kutta steps; Heun's method calls it nearly twice a step.
        guidance_scale: of classifier-free guidance; values up to 1 switch it off.
        guidance_rescale: in how far the guided output gets the standard deviation of the unguided one, 0 to 1.
        resolution: height and width in pixels.
        height, width: in pixels; 0: `resolution`.
        sampler: a key of `SAMPLERS`, or `scheduler`: the model's own. Another than that is made from its scheduler file
            as by Diffusers' `from_config`.
        eta: of DDIM, 0 to 1: 0 is deterministic, 1 has the noise of DDPM.
        seed: image number i starts from noise drawn with `fold_in(key(seed), i)`.
        negative_prompt: what guidance steers away from.
        attention: of the U-Net, a key of `attention.IMPLEMENTATIONS`.
        switch_at: the first steps, this many of them, are made by a teacher; 0: none.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    resolution: int = 512
    height: int = 0
    width: int = 0
    sampler: str = "pndm"
    eta: float = 0.0
    seed: int = 0
    negative_prompt: str = ""
    attention: str = "auto"
    switch_at: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height or self.resolution, self.width or self.resolution


MOST_RESOLUTION = 4096  # pixels
MOST_SEED = 2**32 - 1
"""Larger seeds would silently be cut to 32 bits."""
EncodeCaptions = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""Captions -> the text encoders' inputs, arrays [N, ...], as `Pipeline.caption_inputs`."""
Generate = Callable[[dict[str, Any], Any, Any, jax.Array], jax.Array]
"""(parameters by network, caption inputs [B, ...], the negative prompt's inputs [1, ...], keys [B] or starting noise
[B, h, w, C]) -> uint8 [B, H, W, 3]."""
TEACHER = "teacher"
"""The teacher's denoiser among the parameters, if it makes the first steps."""


def first_step(steps: int, strength: float) -> int:
    """The number of steps that image to image leaves out at the start, as Diffusers counts it.

    Raises `InputError` unless `strength` is in (0, 1] and leaves a step.
    """
    finite_number("config", "strength", strength, 0, 1)
    left = min(int(steps * strength), steps)
    if left < 1:
        raise InputError(f"strength: {strength} of {steps} steps leaves no step; raise strength or steps")
    return steps - left


def require_sampler(config: SamplerConfig, networks: Architectures, strength: float | None = None) -> None:
    """Raises `InputError` for an unknown sampler, or a setting that is out of range or doesn't fit the networks.

    `strength` is that of image to image, None: text to image.
    """
    whole_number("config", "steps", config.steps)
    finite_number("config", "eta", config.eta, 0, 1)
    begin = None if strength is None else first_step(config.steps, strength)
    sampler_calls(config.sampler, networks.schedule, config.steps, begin, config.eta)
    if with_options(networks.schedule, config.sampler).clip_sample:
        logging.warning(
            "sampler: %s clips its estimates of z_0, as by Diffusers' from_config, since the model's scheduler file "
            "doesn't have clip_sample false; what launch.prune writes has it",
            config.sampler,
        )
    finite_number("config", "guidance_scale", config.guidance_scale, 0)
    finite_number("config", "guidance_rescale", config.guidance_rescale, 0, 1)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    whole_number("config", "switch_at", config.switch_at, 0, config.steps)
    for key, pixels in zip(("height", "width"), config.size, strict=True):
        require_resolution(pixels, networks, key if vars(config)[key] else "resolution")


def require_resolution(resolution: int, networks: Architectures, key: str = "resolution") -> None:
    """Raises `InputError` unless the resolution is a multiple of the networks' total downsampling, in bounds."""
    multiple = networks.factor * networks.denoiser.downscale
    if not multiple <= resolution <= MOST_RESOLUTION or resolution % multiple:
        raise InputError(
            f"{key}: {resolution} pixels; this model needs a multiple of {multiple}, {MOST_RESOLUTION} at most"
        )


@dataclasses.dataclass(frozen=True)
class TextToImage:
    """The parts of a sampling run, pure functions of parameters and arrays. Made by `text_to_image`.

    Attributes:
        networks: whose images they are.
        config: how they are made.
        calls: of the U-Net.
        dtype: of the networks' computations.
        teacher: whose denoiser makes the first steps, if `config.switch_at`.
    """

    networks: Architectures
    config: SamplerConfig
    calls: Calls
    dtype: Any
    teacher: Architectures | None = None

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, C]."""
        return self.networks.latent_shape(*self.config.size)

    def condition(self, params: dict[str, Any], inputs: Any) -> Any:
        """Caption inputs [B, ...] -> the denoiser's conditioning, arrays [B, ...]."""
        return self.networks.condition(params, self.dtype, inputs)

    def denoise(
        self,
        params: dict[str, Any],
        conditioning: Any,
        negative: Any,
        noise: jax.Array,
        latents: jax.Array | None = None,
        step_noise: jax.Array | None = None,
        estimates: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Latents [B, h, w, C] and, if `estimates`, those that every call estimates, [N, B, h, w, C]; float32, scaled.

        Args:
            params: by network; the teacher's denoiser under `TEACHER`.
            conditioning: arrays [B, ...].
            negative: that of the negative prompt, arrays [1, ...].
            noise: keys [B], or standard normal [B, h, w, C].
            latents: scaled ones of the images to begin from, [B, h, w, C]; then `calls` are for image to image.
            step_noise: what the steps of some samplers add: keys [B], or [N, B, h, w, C]; None: `noise`, if it is keys.
            estimates: whether to keep them.
        """
        keys = jnp.issubdtype(noise.dtype, jax.dtypes.prng_key)
        step_noise = noise if step_noise is None and keys else step_noise
        negative = jax.tree.map(lambda one, each: jnp.broadcast_to(one, each.shape), negative, conditioning)
        slots = self.calls.begin(as_noise(noise, self.latent_shape), latents)
        split = int(np.searchsorted(self.calls.steps, self.config.switch_at))
        kept, memory = [], None
        for first, last, networks, name in (
            (0, split, self.teacher, TEACHER),
            (split, len(self.calls), self.networks, self.networks.kind.denoiser),
        ):
            if first < last:
                predict = self._predict(networks or self.networks, params[name], conditioning, negative)
                part = self.calls.between(first, last)
                slots, memory, own = run(part, predict, slots, step_noise, None, first, estimates)
                kept.append(own)
        del memory
        return slots[0], jnp.concatenate(kept) if estimates else None

    def _predict(self, networks: Architectures, params: Any, conditioning: Any, negative: Any) -> Any:
        unet = UNet(networks.denoiser, self.dtype, self.config.attention)

        def network(x: jax.Array, t: jax.Array, conditioning: Any) -> jax.Array:
            return unet.apply({"params": params}, x.astype(self.dtype), t, conditioning)

        config = self.config
        predict = guidance.guided(network, conditioning, negative, config.guidance_scale, config.guidance_rescale)
        return lambda memory, x, t, _: (memory, predict(x, t))

    def decode(self, params: dict[str, Any], latents: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] -> uint8 [B, H, W, 3]."""
        return to_uint8(self.networks.decode(params, self.dtype, latents))


def text_to_image(
    networks: Architectures,
    config: SamplerConfig,
    dtype: jnp.dtype = jnp.float32,
    strength: float | None = None,
    teacher: Architectures | None = None,
) -> TextToImage:
    """The parts of a sampling run.

    Args:
        networks: whose images they are.
        config: how they are made.
        dtype: of the networks' computations.
        strength: of image to image; None: text to image.
        teacher: whose denoiser makes the first `config.switch_at` steps.

    Raises:
        InputError: as `require_sampler` and `require_attention`.
    """
    require_sampler(config, networks, strength)
    require_attention(config.attention, dtype)
    if bool(config.switch_at) != (teacher is not None):
        raise InputError(f"switch_at: {config.switch_at}; give it and a teacher, or neither")
    begin = None if strength is None else first_step(config.steps, strength)
    calls = sampler_calls(config.sampler, networks.schedule, config.steps, begin, config.eta)
    return TextToImage(networks, config, calls, dtype, teacher)


def make_generate(networks: Architectures, config: SamplerConfig, dtype: jnp.dtype = jnp.float32) -> Generate:
    """The function from captions to images, to be jitted; raises as `text_to_image`."""
    parts = text_to_image(networks, config, dtype)

    def generate(params: dict[str, Any], captions: Any, negative: Any, noise: jax.Array) -> jax.Array:
        conditioning, without = parts.condition(params, captions), parts.condition(params, negative)
        return parts.decode(params, parts.denoise(params, conditioning, without, noise)[0])

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
