"""Classifier-free guidance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Network = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""(latents [B, H, W, C], timesteps [B], conditioning) -> [B, H, W, C]."""


def guides(conditioning: Any, scale: float) -> bool:
    """Whether there is guidance: not with a scale up to 1, nor without conditioning."""
    return scale > 1.0 and bool(jax.tree.leaves(conditioning))


def both(conditioning: Any, negative: Any, scale: float) -> Any:
    """The conditioning of a call of the network: the negative one, then the other, if there is guidance."""
    if not guides(conditioning, scale):
        return conditioning
    return jax.tree.map(lambda *pair: jnp.concatenate(pair), negative, conditioning)


def combined(out: jax.Array, scale: float, rescale: float = 0.0) -> jax.Array:
    """The guided output, e_negative + scale (e_conditional - e_negative) (Ho and Salimans 2022).

    Args:
        out: of the network for `both`, float32 [2B, H, W, C].
        scale: of guidance.
        rescale: in how far the result gets the standard deviation of e_conditional, 0 to 1 (Lin et al. 2023, section
            3.4).
    """
    without, conditional = jnp.split(out, 2)
    result = without + scale * (conditional - without)
    if not rescale:
        return result
    axes = (1, 2, 3)
    ratio = jnp.std(conditional, axes, keepdims=True) / jnp.std(result, axes, keepdims=True)
    return result * (rescale * ratio + (1 - rescale))


def guided(
    network: Network, conditioning: Any, negative: Any, scale: float, rescale: float = 0.0
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The network with guidance, from one call at twice the batch size: (latents, timestep []) -> float32.

    Args:
        network: called with the batch size itself if there is no guidance.
        conditioning, negative: pytrees of arrays [B, ...], the latter for the empty (or negative) prompt.
        scale: at most 1, or conditioning without arrays, disables guidance.
        rescale: as in `combined`.
    """
    inputs, doubled = both(conditioning, negative, scale), guides(conditioning, scale)

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        x = jnp.concatenate([x, x]) if doubled else x
        out = network(x, jnp.broadcast_to(t, x.shape[:1]), inputs).astype(jnp.float32)
        return combined(out, scale, rescale) if doubled else out

    return predict
