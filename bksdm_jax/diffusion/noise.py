"""Noise that each image has for itself: from keys, or given."""

import jax
import jax.numpy as jnp


def image_keys(seed: int, indices: jax.Array) -> jax.Array:
    """Keys [B]; key i depends on `seed` and the image number `indices[i]` (uint32 [B]) alone."""
    key = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def starting_noise(seed: int, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [B, *shape]; row i depends on `seed` and `indices[i]` alone."""
    return as_noise(image_keys(seed, indices), shape)


def as_noise(noise: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [B, *shape] drawn with keys [B], or such an array as it is."""
    if not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return noise
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(noise)


def step_noise(noise: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What a step of a stochastic sampler adds: drawn with keys [B], or row `step` of an array [steps, B, *shape]."""
    if not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return noise[step]
    # Counted from 1, since a key itself draws the starting noise.
    return as_noise(jax.vmap(lambda key: jax.random.fold_in(key, step + 1))(noise), shape)
