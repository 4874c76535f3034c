"""Classifier-free guidance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def guided(
    network: Callable[[jax.Array, jax.Array, Any], jax.Array], conditioning: Any, negative: Any, scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """e_negative + scale (e_conditional - e_negative) (Ho and Salimans 2022), from one call at twice the batch size.

    Args:
        network: (latents [B, H, W, C], timesteps [B], conditioning) -> [B, H, W, C].
        conditioning: pytree of arrays [B, ...]; without arrays there is no guidance.
        negative: the same for the empty (or negative) prompt; unused if `scale` is at most 1.
        scale: guidance scale; at most 1 disables guidance, at the original batch size.

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
