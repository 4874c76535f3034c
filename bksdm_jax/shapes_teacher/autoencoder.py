"""The teacher's autoencoder."""

from typing import Any

import jax
import jax.numpy as jnp

from bksdm_jax.images import to_unit
from bksdm_jax.models.vae import VAE, VAEConfig
from bksdm_jax.training.update import Batch, Frozen, Loss

VAE_CONFIG = VAEConfig(widths=(16, 32, 32, 64), layers_per_block=1, norm_groups=8)
"""Halved three times as SD's, to 4 channels. Its scaling factor is measured after training."""
KL_WEIGHT = 3e-4
"""Of the divergence from the standard normal, mean over latents, beside the reconstruction, mean over pixels."""
OBJECT_WEIGHT = 5.0


def object_weight(images: jax.Array) -> jax.Array:
    """OBJECT_WEIGHT where an image differs from its first pixel, which is background, else 1: [M, H, W, 1]."""
    differs = jnp.max(jnp.abs(images - images[:, :1, :1]), axis=-1, keepdims=True) > 0.1
    return jnp.where(differs, OBJECT_WEIGHT, 1.0)


def autoencoder_loss(config: VAEConfig) -> Loss:
    """Mean absolute plus mean squared error of the reconstruction, and the Kullback-Leibler divergence.

    Pixels of objects count OBJECT_WEIGHT times: they are few, and everything depends on them. Batches have
    `images` uint8 [M, H, W, 3].
    """
    vae = VAE(config)

    def loss(params: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        images = to_unit(batch["images"])
        mean, log_variance = vae.apply({"params": params}, images, method="encode")
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        difference = vae.apply({"params": params}, latents, method="decode") - images
        weight = object_weight(images)
        absolute, squared = jnp.mean(weight * jnp.abs(difference)), jnp.mean(weight * jnp.square(difference))
        divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        total = absolute + squared + KL_WEIGHT * divergence
        return total, {"loss": total, "loss_absolute": absolute, "loss_squared": squared, "loss_kl": divergence}

    return loss
