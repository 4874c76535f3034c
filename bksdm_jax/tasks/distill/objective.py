"""The objective of a distillation: noisy batches and the loss on them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bksdm_jax.models.unet import FEATURES, UNet, captured, parameter_shapes
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.tasks.distill.losses import distillation_terms
from bksdm_jax.tasks.losses import min_snr_weight
from bksdm_jax.tasks.noise import (
    Augmentation,
    NoisyBatch,
    batch_shapes,
    frozen_shapes,
    moments_of,
    noise_latents,
)
from bksdm_jax.training.train_step import Batch, Frozen, Loss, LossAndTerms, Objective


@dataclasses.dataclass(frozen=True)
class Problem:
    """A distillation problem: networks, loss and options.

    Attributes:
        plan: teacher and student.
        networks: the teacher's pipeline.
        weights: of the loss.
        attention: of the U-Nets.
        remat: of the student; the teacher has no backward pass.
        norms: of the U-Nets.
        augmentation: of captions and noise.
    """

    plan: RemovalPlan
    networks: Architectures
    weights: LossWeights = LossWeights()
    attention: str = "auto"
    remat: str = "none"
    norms: str = "xla"
    augmentation: Augmentation = Augmentation()

    def plain(self) -> "Problem":
        """The same without augmentation and noise-dependent weights, so that runs are comparable."""
        weights = dataclasses.replace(self.weights, min_snr_gamma=0.0)
        return dataclasses.replace(self, weights=weights, augmentation=Augmentation())


def make_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Callable[[Any, Frozen, NoisyBatch], LossAndTerms]:
    """Builds (student parameters, frozen, noisy batch) -> loss and terms."""
    plan, weights = problem.plan, problem.weights
    student = UNet(plan.student, dtype, problem.attention, problem.remat, problem.norms)
    teacher = UNet(plan.teacher, dtype, problem.attention, norms=problem.norms)
    pairs = weighted_pairs(plan, weights.feature_source, weights.feature_scales)

    def run(network: UNet, params: Any, noisy_batch: NoisyBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs = (noisy_batch.noisy.astype(dtype), noisy_batch.timesteps, noisy_batch.conditioning)
        out, sown = network.apply({"params": params}, *inputs, mutable=[FEATURES])
        return out, captured(sown)

    def loss(params: Any, frozen: Frozen, noisy_batch: NoisyBatch) -> LossAndTerms:
        theirs = run(teacher, frozen["teacher"], noisy_batch) if weights.distils else (None, None)
        ours = run(student, params, noisy_batch)
        image_weights = None
        if weights.min_snr_gamma:
            predicts = problem.networks.schedule.prediction_type
            image_weights = min_snr_weight(weights.min_snr_gamma, predicts, noisy_batch.alpha_bar)
        terms = distillation_terms(weights, noisy_batch.target, *ours, *theirs, pairs, image_weights)
        return terms["loss"], terms

    return loss


def make_batch_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Loss:
    """Builds the loss of micro-batches from `training_batches`, for `make_update`.

    The networks compute in `dtype`; the student's parameters, losses and noise are float32. `frozen` holds `teacher`
    (not needed without distillation) and the teacher's other networks. The autoencoder isn't run for cached latents.
    """
    loss_of_noisy = make_loss(problem, dtype)

    def loss(params: Any, ema: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> LossAndTerms:
        del ema
        moments = moments_of(problem.networks, dtype, frozen, batch)
        drawn = (*moments, batch["captions"], keys, problem.augmentation)
        noisy = noise_latents(problem.networks, dtype, frozen, *drawn)
        return loss_of_noisy(params, frozen, noisy)

    return loss


def make_objective(
    problem: Problem,
    resolution: int,
    shape: tuple[int, int],
    dtype: jnp.dtype = jnp.float32,
    cached: bool = False,
    with_teacher: bool = False,
) -> Objective:
    """The loss of a distillation, and the shapes of its inputs.

    Args:
        problem: the distillation problem.
        resolution: pixels of the images.
        shape: of a batch: micro-batches, images in each.
        dtype: of the networks' computations and of frozen kernels and matrices; frozen vectors are float32.
        cached: whether batches are of cached latents.
        with_teacher: keep the teacher even if the loss doesn't need it.
    """
    plan, networks = problem.plan, problem.networks
    shapes = networks.parameter_shapes()
    frozen = {name: shapes[name] for name in networks.frozen}
    if problem.weights.distils or with_teacher:
        frozen["teacher"] = parameter_shapes(plan.teacher)
    batch = batch_shapes(networks, resolution, shape, cached)
    loss = make_batch_loss(problem, dtype)
    return Objective(loss, parameter_shapes(plan.student), frozen_shapes(frozen, dtype), batch)
