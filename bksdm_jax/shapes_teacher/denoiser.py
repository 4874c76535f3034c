"""The teacher's U-Net: SD v1's topology at small widths, trained as SD was."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.models.unet_table import Stage, UNetConfig
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.objective import Problem, make_loss
from bksdm_jax.tasks.noise import drop_captions, noise_latents
from bksdm_jax.training.train_step import Batch, Frozen, Loss, LossAndTerms

WIDTHS = (64, 64, 96, 96)
HEADS = 4
CAPTION_DROPOUT = 0.1
"""Share of the captions that are replaced by the empty one, for classifier-free guidance."""

MIN_SNR_GAMMA = 5.0
"""Of the weights by noise level: objects are placed at high noise."""


def unet_config(context_width: int) -> UNetConfig:
    """SD v1's four stages with two (up: three) ResNet-attention pairs each, at these widths, for 8x8 latents."""
    last = len(WIDTHS) - 1
    down = [Stage(width, HEADS, ("RA" if i < last else "R",) * 2, i < last) for i, width in enumerate(WIDTHS)]
    up = [Stage(width, HEADS, ("RA" if i > 0 else "R",) * 3, i < last) for i, width in enumerate(reversed(WIDTHS))]
    return UNetConfig(
        down=tuple(down),
        mid=Stage(WIDTHS[-1], HEADS, ("RA", "R"), False),
        up=tuple(up),
        stem_width=WIDTHS[0],
        context_width=context_width,
        sample_size=8,
    )


def denoising_loss(networks: Architectures, empty: Mapping[str, np.ndarray]) -> Loss:
    """The task loss of a distillation that removes no blocks and has no teacher; `empty`: the empty caption's inputs.

    Batches have `mean` and `log_variance` float32 [M, h, w, C] and `tokens` int32 [M, T]; frozen is `text_encoder`.
    """
    weights = LossWeights(1.0, 0.0, 0.0, MIN_SNR_GAMMA)
    problem = Problem(plan_removal(networks.denoiser, ()), networks, weights)
    loss_of_noisy = make_loss(problem)

    def loss(params: Any, ema: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> LossAndTerms:
        del ema
        halves = jax.vmap(jax.random.split)(keys)
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, CAPTION_DROPOUT))(halves[:, 0])
        captions = drop_captions({"tokens": batch["tokens"]}, empty, dropped)
        moments = batch["mean"], batch["log_variance"]
        noisy = noise_latents(networks, jnp.float32, frozen, *moments, captions, halves[:, 1])
        return loss_of_noisy(params, frozen, noisy)

    return loss
