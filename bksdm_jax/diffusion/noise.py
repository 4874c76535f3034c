"""Per-image noise: drawn from keys, or given as an array."""

import jax
import jax.numpy as jnp


def image_keys(seed: int, indices: jax.Array) -> jax.Array:
    """Keys [B]; key i depends only on `seed` and the image index `indices[i]` (uint32 [B])."""
    key = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def as_noise(noise: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 [B, *shape]: drawn from keys [B], or `noise` itself if it is an array of numbers."""
    if not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return noise
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(noise)


def step_noise(noise: jax.Array, step: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The noise of a stochastic sampler's step: drawn from keys [B], or row `step` of an array [steps, B, *shape]."""
    if not jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return noise[step]
    # From 1, since the key itself draws the starting noise.
    return as_noise(jax.vmap(lambda key: jax.random.fold_in(key, step + 1))(noise), shape)
