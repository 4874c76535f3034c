"""The objective of a fine-tuning: the denoising loss, with prior preservation if there are class images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bksdm_jax.formats.lora_names import TEXT, UNET
from bksdm_jax.models.lora import applied
from bksdm_jax.models.unet import UNet
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.tasks.finetune.trained import Trained
from bksdm_jax.tasks.losses import mean_squared_error, min_snr_weight
from bksdm_jax.tasks.noise import CLASS_STREAM, Augmentation, batch_shapes, frozen_shapes, moments_of, noise_latents
from bksdm_jax.training.train_step import Batch, Frozen, Loss, LossAndTerms, Objective

PRIOR = "prior"
"""The entry of a batch with the class images, as many as there are instance images."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fine-tuning problem.

    Attributes:
        trained: what is trained of which networks.
        prior_weight: of the loss on class images; 0: there are none.
        min_snr_gamma: as of `FinetuneConfig`.
        attention, remat, norms: of the U-Net.
        augmentation: of captions and noise.
    """

    trained: Trained
    prior_weight: float = 0.0
    min_snr_gamma: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    norms: str = "xla"
    augmentation: Augmentation = Augmentation()

    @property
    def networks(self) -> Architectures:
        """The pipeline's."""
        return self.trained.networks


def make_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Loss:
    """Builds the loss of micro-batches: mean over the instance images + `prior_weight` * mean over the class images.

    An image's loss is the mean squared error of the U-Net's prediction (Ruiz et al. 2023, equation 2). The networks
    compute in `dtype`; trained parameters and noise are float32.
    """
    networks, trained = problem.networks, problem.trained
    unet = UNet(networks.denoiser, dtype, problem.attention, problem.remat, problem.norms)
    predicts = networks.schedule.prediction_type

    def loss(params: Any, ema: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> LossAndTerms:
        del ema
        batch = dict(batch)
        if prior := batch.pop(PRIOR, None):
            batch = jax.tree.map(_alternating, batch, dict(prior))
            keys = _alternating(keys, jax.vmap(lambda key: jax.random.fold_in(key, CLASS_STREAM))(keys))
        whole, adapters = trained.whole(params, frozen), trained.adapters(params)
        moments = moments_of(networks, dtype, whole, batch)
        with applied(adapters[TEXT]):
            noisy = noise_latents(networks, dtype, whole, *moments, batch["captions"], keys, problem.augmentation)
        with applied(adapters[UNET]):
            inputs = (noisy.noisy.astype(dtype), noisy.timesteps, noisy.conditioning)
            out = unet.apply({"params": whole[UNET]}, *inputs)
        errors = jax.vmap(mean_squared_error)(out, noisy.target)
        if problem.min_snr_gamma:
            errors *= min_snr_weight(problem.min_snr_gamma, predicts, noisy.alpha_bar)
        if prior is None:
            return (total := jnp.mean(errors)), {"loss": total}
        instance, of_class = jnp.mean(errors[0::2]), jnp.mean(errors[1::2])
        total = instance + problem.prior_weight * of_class
        return total, {"loss": total, "loss_instance": instance, "loss_prior": of_class}

    return loss


def _alternating(first: jax.Array, second: jax.Array) -> jax.Array:
    """[M, ...] and [M, ...] -> [2M, ...] by turns, so that both halves stay on their devices."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def make_objective(
    problem: Problem,
    resolution: int,
    shape: tuple[int, int],
    dtype: jnp.dtype = jnp.float32,
    cached: bool = True,
    with_autoencoder: bool = True,
) -> Objective:
    """The loss of a fine-tuning, and the shapes of its inputs.

    Args:
        problem: the fine-tuning problem.
        resolution: pixels of the images.
        shape: of a batch: micro-batches, images in each.
        dtype: of the networks' computations and of frozen kernels and matrices; frozen vectors are float32.
        cached: whether batches are of latents.
        with_autoencoder: keep the autoencoder among the frozen networks; batches of images need it.
    """
    batch = batch_shapes(problem.networks, resolution, shape, cached)
    if problem.prior_weight:
        batch[PRIOR] = batch_shapes(problem.networks, resolution, shape, cached)
    frozen = frozen_shapes(problem.trained.frozen_shapes(), dtype)
    if not with_autoencoder:
        del frozen[problem.networks.kind.autoencoder]
    return Objective(make_loss(problem, dtype), problem.trained.shapes(), frozen, batch)
