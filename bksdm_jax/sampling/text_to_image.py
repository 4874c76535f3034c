"""Text to image: captions and noise in, pixels out, by functions to be jitted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError, NotFiniteError, finite_number, shown, whole_number
from bksdm_jax.base.images import to_uint8, to_unit
from bksdm_jax.diffusion import guidance
from bksdm_jax.diffusion.noise import as_noise
from bksdm_jax.diffusion.samplers import sampler_calls, with_options
from bksdm_jax.diffusion.solver import Calls, PredictWith, run
from bksdm_jax.models.attend import require_attention
from bksdm_jax.models.norms import require_norms
from bksdm_jax.models.tiling import decode_in_slices, decode_in_tiles
from bksdm_jax.models.unet import UNet, deep_cache_calls
from bksdm_jax.models.unet_table import cuts
from bksdm_jax.models.vae import sample_latents
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.sampling.config import MOST_RESOLUTION, SamplerConfig, require_sampling

_TILE = 64  # latent positions
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
    require_sampling(config)
    begin = None if strength is None else first_step(config.steps, strength)
    sampler_calls(config.sampler, networks.schedule, config.steps, begin, config.eta)
    whole_number("config", "switch_at", config.switch_at, 0, config.steps - (begin or 0) - 1)
    if config.deep_cache > 1:
        whole_number("config", "deep_cache_cut", config.deep_cache_cut, 0, len(cuts(networks.denoiser)) - 1)
    for key, pixels in zip(("height", "width"), config.size, strict=True):
        require_multiple(pixels, networks.factor, key if vars(config)[key] else "resolution")


def warn_of_clipping(config: SamplerConfig, networks: Architectures) -> None:
    """Logs if the sampler clips its estimates of z_0."""
    if with_options(networks.schedule, config.sampler).clip_sample:
        logging.warning(
            "sampler: %s clips its estimates of z_0, as by Diffusers' from_config, since the model's scheduler file "
            "doesn't have clip_sample false; what launch.prune writes has it",
            config.sampler,
        )


def require_resolution(resolution: int, networks: Architectures) -> None:
    """Raises `InputError` unless the resolution is a multiple of the networks' total downsampling, in bounds."""
    require_multiple(resolution, networks.factor * networks.denoiser.downscale)


def require_multiple(resolution: int, multiple: int, key: str = "resolution") -> None:
    """Raises `InputError`, with `key`, unless the resolution in pixels is a multiple, in bounds."""
    if not multiple <= resolution <= MOST_RESOLUTION or resolution % multiple:
        raise InputError(
            f"{key}: {resolution} pixels; this model needs a multiple of {multiple}, {MOST_RESOLUTION} at most"
        )


def not_finite(index: int, prompt: str, dtype: str = "") -> NotFiniteError:
    """The error for image number `index`, whose pixels aren't finite; `dtype` is that of the networks, if known."""
    how = "" if dtype == "float32" else "set dtype to float32, or "
    return NotFiniteError(
        f"image {index} ({shown(prompt)}): its pixels aren't finite, so it isn't written; {how}lower guidance_scale or "
        "choose another sampler, with which the model doesn't diverge"
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
            negative: that of the negative prompt, arrays [1, ...]; entries that it lacks are the conditioning's, such
                as masks of blocks.
            noise: keys [B], or standard normal [B, h, w, C].
            latents: scaled ones of the images to begin from, [B, h, w, C]; then `calls` are for image to image.
            step_noise: what the steps of some samplers add: keys [B], or [N, B, h, w, C]; None: `noise`, if it is keys.
            estimates: whether to keep them.
        """
        keys = jnp.issubdtype(noise.dtype, jax.dtypes.prng_key)
        step_noise = noise if step_noise is None and keys else step_noise
        negative = dict(conditioning) | dict(negative)
        negative = jax.tree.map(lambda one, each: jnp.broadcast_to(one, each.shape), negative, dict(conditioning))
        slots = self.calls.begin(as_noise(noise, self.latent_shape), latents)
        split = int(np.searchsorted(self.calls.steps, self.config.switch_at))
        kept = []
        for first, last, networks, name in (
            (0, split, self.teacher, TEACHER),
            (split, len(self.calls), self.networks, self.networks.kind.denoiser),
        ):
            if networks is None or first == last:
                continue
            unet = UNet(networks.denoiser, self.dtype, self.config.attention, norms=self.config.norms)
            network = _Network(unet, params[name], self.config)
            predict, memory = network.predict(conditioning, negative, slots[0], first)
            part = self.calls.between(first, last)
            slots, _, own = run(part, predict, slots, step_noise, memory, first, estimates)
            kept.append(own)
        return slots[0], jnp.concatenate(kept) if estimates else None

    def encode(self, params: dict[str, Any], images: jax.Array, noise: jax.Array) -> jax.Array:
        """Images uint8 [B, H, W, 3] -> scaled latents [B, h, w, C], drawn with `noise`: keys [B], or [B, h, w, C]."""
        mean, log_variance = self.networks.encode(params, self.dtype, to_unit(images).astype(self.dtype))
        return sample_latents(mean, log_variance, as_noise(noise, mean.shape[1:]), self.networks.scaling_factor)

    def decode(self, params: dict[str, Any], latents: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] -> uint8 [B, H, W, 3]."""
        return self.decode_checked(params, latents)[0]

    def decode_checked(self, params: dict[str, Any], latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The same, and whether the latents and pixels of each image are finite, bool [B]."""

        def decode(latents: jax.Array) -> jax.Array:
            return self.networks.decode(params, self.dtype, latents)

        if self.config.decode == "slices":
            pixels = decode_in_slices(decode, latents)
        else:
            pixels = decode_in_tiles(decode, latents, _TILE) if self.config.decode == "tiles" else decode(latents)
        finite = [jnp.isfinite(part).all(axis=(1, 2, 3)) for part in (latents, pixels)]
        return to_uint8(pixels), finite[0] & finite[1]


@dataclasses.dataclass(frozen=True)
class _Network:
    """A denoiser with its parameters."""

    unet: UNet
    params: Any
    config: SamplerConfig

    def predict(self, conditioning: Any, negative: Any, x: jax.Array, first: int) -> tuple[PredictWith, Any]:
        """The guided network, from call number `first` on, and its memory before that."""
        config, dtype = self.config, self.unet.dtype
        scale, rescale = config.guidance_scale, config.guidance_rescale
        if config.deep_cache < 2:

            def network(x: jax.Array, t: jax.Array, conditioning: Any) -> jax.Array:
                return self.unet.apply({"params": self.params}, x.astype(dtype), t, conditioning)

            guided = guidance.guided(network, conditioning, negative, scale, rescale)
            return lambda memory, x, t, _: (memory, guided(x, t)), None
        full, shallow = deep_cache_calls(self.unet.clone(cut=config.deep_cache_cut))
        both, doubled = guidance.both(conditioning, negative, scale), guidance.guides(conditioning, scale)

        def inputs(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
            x = jnp.concatenate([x, x]) if doubled else x
            return x.astype(dtype), jnp.broadcast_to(t, x.shape[:1]), both

        def predict(deep: jax.Array, x: jax.Array, t: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
            whole = (number - first) % config.deep_cache == 0
            out, deep = jax.lax.cond(whole, full, shallow, self.params, *inputs(x, t), deep)
            out = out.astype(jnp.float32)
            return deep, guidance.combined(out, scale, rescale) if doubled else out

        _, deep = jax.eval_shape(full, self.params, *inputs(x, jnp.float32(0)), None)
        return predict, jnp.zeros(deep.shape, deep.dtype)


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
        InputError: as `require_sampler`, `require_attention` and `require_norms`.
    """
    require_sampler(config, networks, strength)
    require_attention(config.attention, dtype)
    require_norms(config.norms)
    if bool(config.switch_at) != (teacher is not None):
        raise InputError(f"switch_at: {config.switch_at}; give it and a teacher, or neither")
    if teacher is not None and config.deep_cache > 1:
        whole_number("teacher", "deep_cache_cut", config.deep_cache_cut, 0, len(cuts(teacher.denoiser)) - 1)
    begin = None if strength is None else first_step(config.steps, strength)
    calls = sampler_calls(config.sampler, networks.schedule, config.steps, begin, config.eta)
    return TextToImage(networks, config, calls, dtype, teacher)
