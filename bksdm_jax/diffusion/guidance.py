"""Classifier-free guidance."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def guided(
    network: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    text: jax.Array,
    empty: jax.Array,
    scale: float,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """e_empty + scale (e_text - e_empty) (Ho and Salimans 2022), both from one call at twice the batch.

    Args:
        network: (latents [B, H, W, C], timesteps [B], text states [B, T, K]) -> [B, H, W, C].
        text: states of the prompts, [B, T, K].
        empty: states of the empty (or negative) prompt, [B, T, K]; unused where `scale` is at most 1.
        scale: strength; at most 1 means no guidance, and a single batch.

    Returns:
        (latents, timestep []) -> float32 prediction.
    """
    states = text if scale <= 1.0 else jnp.concatenate([empty, text])

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        batch = states.shape[0]
        inputs = x if scale <= 1.0 else jnp.concatenate([x, x])
        out = network(inputs, jnp.broadcast_to(t, (batch,)), states).astype(jnp.float32)
        if scale <= 1.0:
            return out
        without, with_text = jnp.split(out, 2)
        return without + scale * (with_text - without)

    return predict
