"""The teacher's autoencoder."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.images import to_unit
from bksdm_jax.models.vae import VAE, VAEConfig
from bksdm_jax.shapes.render import PIXELS
from bksdm_jax.shapes.scenes import PLACES, parse_caption
from bksdm_jax.shapes_teacher.phase import shuffled
from bksdm_jax.training.train_step import Batch, Frozen, Loss, LossAndTerms

VAE_CONFIG = VAEConfig(widths=(16, 32, 32, 64), layers_per_block=1, norm_groups=8)
"""Downsamples by 8 to 4 channels, as SD's does; the scaling factor is measured after training."""
KL_WEIGHT = 3e-4
"""Weight of the KL divergence (mean over latents) relative to the reconstruction (mean over pixels)."""
OBJECT_WEIGHT = 5.0
"""Weight of the few pixels that differ from the background."""
CROP = 32
"""Size in pixels of the crops that training starts with: they show an object at a quarter of an image's cost."""


def autoencoder_loss(config: VAEConfig) -> Loss:
    """Mean absolute plus mean squared error of the reconstruction, and the Kullback-Leibler divergence.

    Pixels that differ from the background count OBJECT_WEIGHT times. Batches have `images` uint8 [M, H, W, 3] and their
    `background` uint8 [M, 3].
    """
    vae = VAE(config)

    def loss(params: Any, ema: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> LossAndTerms:
        del ema
        images = to_unit(batch["images"])
        mean, log_variance = vae.apply({"params": params}, images, method="encode")
        noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        difference = vae.apply({"params": params}, latents, method="decode") - images
        background = to_unit(batch["background"])[:, None, None]
        differs = jnp.max(jnp.abs(images - background), axis=-1, keepdims=True) > 0.1
        weight = jnp.where(differs, OBJECT_WEIGHT, 1.0)
        absolute, squared = jnp.mean(weight * jnp.abs(difference)), jnp.mean(weight * jnp.square(difference))
        divergence = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        total = absolute + squared + KL_WEIGHT * divergence
        return total, {"loss": total, "loss_absolute": absolute, "loss_squared": squared, "loss_kl": divergence}

    return loss


def whole_images(images: np.ndarray, batch_size: int, seed: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless random batches of images and their background (the first pixel's colour), starting with batch `first`."""
    return shuffled({"images": images, "background": images[:, 0, 0]}, batch_size, seed, first)


def object_crops(
    images: np.ndarray, captions: Sequence[str], batch_size: int, seed: int, first: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """As `whole_images`, of CROP x CROP windows around one of each image's objects."""
    middles = [[PLACES[thing.place] for thing in parse_caption(text).things] for text in captions]
    for number, batch in enumerate(shuffled({"index": np.arange(len(images))}, batch_size, seed, first), start=first):
        rng, windows = np.random.default_rng([seed, 2, number]), []
        for index in batch["index"]:
            x, y = middles[index][rng.integers(len(middles[index]))]
            left, top = np.clip(np.array([x, y]) - CROP / 2 + rng.integers(-8, 9, 2), 0, PIXELS - CROP).astype(int)
            windows.append(images[index, top : top + CROP, left : left + CROP])
        yield {"images": np.stack(windows), "background": images[batch["index"], 0, 0]}
