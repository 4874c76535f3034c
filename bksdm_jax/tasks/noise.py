"""Noisy batches: latents of images, and the noise, timesteps and targets that tasks draw for them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.images import to_unit
from bksdm_jax.diffusion.schedule import TARGETS, add_noise
from bksdm_jax.models.unet import Conditioning
from bksdm_jax.models.vae import sample_latents
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.training.train_step import Batch

# Key streams besides those of `jax.random.split(key, 3)`, which are those of `fold_in` for 0, 1 and 2.
_DROPOUT, _OFFSET = 101, 102
CLASS_STREAM = 103
"""Of a class image beside an instance image."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Options that the paper doesn't use; off by default.

    Attributes:
        caption_dropout: share of images whose caption is replaced by the empty one (Ho and Salimans 2022).
        empty_inputs: the empty caption's inputs, arrays [...]; needed for caption dropout.
        noise_offset: scale of a normal number per image and channel that is added to the noise, for darker and brighter
            images (N. Guttenberg, "Diffusion with Offset Noise", 2023).
    """

    caption_dropout: float = 0.0
    empty_inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    noise_offset: float = 0.0


@flax.struct.dataclass
class NoisyBatch:
    """A micro-batch with its noise drawn: the U-Nets' inputs and the target."""

    noisy: jax.Array  # [M, h, w, C] float32
    timesteps: jax.Array  # [M] int32
    target: jax.Array  # [M, h, w, C] float32
    conditioning: Conditioning  # arrays [M, ...]
    alpha_bar: jax.Array  # [M] float32, of the timesteps


def noise_latents(
    networks: Architectures,
    dtype: jnp.dtype,
    params: Mapping[str, Any],
    mean: jax.Array,
    log_variance: jax.Array,
    captions: Any,
    keys: jax.Array,
    augmentation: Augmentation = Augmentation(),
) -> NoisyBatch:
    """Draws latents, and noise at timesteps drawn uniformly from the schedule; row i depends on `keys[i]` only.

    Args:
        networks: the pipeline's.
        dtype: of the networks' computations.
        params: of the networks that encode captions, by name.
        mean, log_variance: the autoencoder's of the images, [M, h, w, C], unscaled.
        captions: caption inputs, arrays [M, ...].
        keys: [M].
        augmentation: of captions and noise.
    """
    schedule, shape = networks.schedule, mean.shape[1:]

    def each(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        latent_key, noise_key, time_key = jax.random.split(key, 3)
        time = jax.random.randint(time_key, (), 0, schedule.train_steps)
        return jax.random.normal(latent_key, shape), jax.random.normal(noise_key, shape), time

    latent_noise, noise, timesteps = jax.vmap(each)(keys)
    captions, noise = _augmented(augmentation, captions, noise, keys)
    latents = sample_latents(mean, log_variance, latent_noise, networks.scaling_factor)
    alpha_bar = jnp.asarray(schedule.alphas_cumprod(), jnp.float32)[timesteps]
    conditioning = networks.condition(params, dtype, captions)
    target = TARGETS[schedule.prediction_type](latents, noise, alpha_bar)
    return NoisyBatch(add_noise(latents, noise, alpha_bar), timesteps, target, conditioning, alpha_bar)


def _augmented(augmentation: Augmentation, captions: Any, noise: jax.Array, keys: jax.Array) -> tuple[Any, jax.Array]:
    """Applies the augmentations; they have key streams of their own, so the other random numbers stay the same."""
    if augmentation.caption_dropout:
        drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _DROPOUT)))(keys)
        captions = drop_captions(captions, augmentation.empty_inputs, drawn < augmentation.caption_dropout)
    if augmentation.noise_offset:
        channels = (1, 1, noise.shape[-1])
        offset = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, _OFFSET), channels))(keys)
        noise = noise + augmentation.noise_offset * offset
    return captions, noise


def drop_captions(captions: Any, empty: Any, dropped: jax.Array) -> Any:
    """Caption inputs [M, ...], replaced by the empty caption's [...] where `dropped`, bool [M]."""

    def replaced(value: jax.Array, of_empty: np.ndarray) -> jax.Array:
        rows = dropped.reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(rows, jnp.asarray(of_empty, value.dtype), value)

    return jax.tree.map(replaced, dict(captions), dict(empty))


def moments_of(
    networks: Architectures, dtype: jnp.dtype, params: Mapping[str, Any], batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of a micro-batch's unscaled latents, [M, h, w, C]; cached ones aren't encoded again."""
    if "moments" in batch:
        both = jax.lax.bitcast_convert_type(batch["moments"], jnp.bfloat16)  # [M, 2, h, w, C]
        return both[:, 0], both[:, 1]
    return networks.encode(params, dtype, to_unit(batch["images"]))


def batch_shapes(networks: Architectures, resolution: int, shape: tuple[int, int], cached: bool) -> dict[str, Any]:
    """Of a batch: captions, and `images` or, if `cached`, `moments`; `shape`: micro-batches, images in each."""
    struct = jax.ShapeDtypeStruct
    captions = networks.kind.caption_shapes(networks.configs)
    batch: dict[str, Any] = {"captions": jax.tree.map(lambda x: struct((*shape, *x.shape), x.dtype), captions)}
    if cached:
        batch["moments"] = struct((*shape, 2, *networks.latent_shape(resolution)), jnp.uint16)
    else:
        batch["images"] = struct((*shape, resolution, resolution, 3), jnp.uint8)
    return batch


def frozen_shapes(shapes: Any, dtype: jnp.dtype) -> Any:
    """Of frozen parameters: kernels and matrices in `dtype`, vectors in float32."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype if leaf.ndim > 1 else jnp.float32), shapes)
