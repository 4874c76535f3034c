"""Classifier-free guidance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def guided(
    network: Callable[[jax.Array, jax.Array, Any], jax.Array], conditioning: Any, negative: Any, scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """e_negative + scale (e_conditional - e_negative) (Ho and Salimans 2022), both from one call at twice the batch.

    Args:
        network: (latents [B, H, W, C], timesteps [B], conditioning) -> [B, H, W, C].
        conditioning: pytree of arrays [B, ...] that the network takes; one without arrays is never guided.
        negative: the same of the empty (or negative) prompt; unused where `scale` is at most 1.
        scale: guidance scale; at most 1 means no guidance, and a single batch.

    Returns:
        (latents, timestep []) -> float32 prediction.
    """
    guides = scale > 1.0 and bool(jax.tree.leaves(conditioning))
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair), negative, conditioning) if guides else conditioning

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([x, x]) if guides else x
        out = network(inputs, jnp.broadcast_to(t, inputs.shape[:1]), both).astype(jnp.float32)
        if not guides:
            return out
        without, conditional = jnp.split(out, 2)
        return without + scale * (conditional - without)

    return predict
