"""Terms that several tasks use, in float32."""

import jax
import jax.numpy as jnp


def mean_squared_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """mean((a - b)^2) in float32, [] from two arrays of one shape."""
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def min_snr_weight(gamma: float, prediction_type: str, alpha_bar: jax.Array) -> jax.Array:
    """min(SNR, gamma) for `sample`, / SNR for `epsilon`, / (SNR + 1) for `v_prediction`; SNR = abar / (1 - abar).

    [B] -> [B].
    """
    snr = alpha_bar / (1.0 - alpha_bar)
    return jnp.minimum(snr, gamma) / {"epsilon": snr, "v_prediction": snr + 1.0, "sample": 1.0}[prediction_type]
