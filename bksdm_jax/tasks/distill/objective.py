"""The objective of a distillation: noisy batches and the loss on them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.images import to_unit
from bksdm_jax.diffusion.schedule import TARGETS, add_noise
from bksdm_jax.models.unet import FEATURES, Conditioning, UNet, captured, parameter_shapes
from bksdm_jax.models.vae import sample_latents
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.tasks.distill.losses import distillation_terms, min_snr_weight
from bksdm_jax.training.train_step import Batch, Frozen, Loss, LossAndTerms, Objective

_DROPOUT, _OFFSET = 1, 2  # key streams of the augmentations


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Options that the paper doesn't use; off by default.

    Attributes:
        caption_dropout: share of images whose caption is replaced by the empty one (Ho and Salimans 2022).
        empty_inputs: the empty caption's inputs, arrays [...]; needed for caption dropout.
        noise_offset: scale of a normal number per image and channel that is added to the noise, for darker and brighter
            images (N. Guttenberg, "Diffusion with Offset Noise", 2023).
    """

    caption_dropout: float = 0.0
    empty_inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    noise_offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """A distillation problem: networks, loss and options.

    Attributes:
        plan: teacher and student.
        networks: the teacher's pipeline.
        weights: of the loss.
        attention: of the U-Nets.
        remat: of the student; the teacher has no backward pass.
        augmentation: of captions and noise.
    """

    plan: RemovalPlan
    networks: Architectures
    weights: LossWeights = LossWeights()
    attention: str = "auto"
    remat: str = "none"
    augmentation: Augmentation = Augmentation()

    def plain(self) -> "Problem":
        """The same without augmentation and noise-dependent weights, so that runs are comparable."""
        weights = dataclasses.replace(self.weights, min_snr_gamma=0.0)
        return dataclasses.replace(self, weights=weights, augmentation=Augmentation())


@flax.struct.dataclass
class NoisyBatch:
    """A micro-batch with its noise drawn: the U-Nets' inputs and the target."""

    noisy: jax.Array  # [M, h, w, C] float32
    timesteps: jax.Array  # [M] int32
    target: jax.Array  # [M, h, w, C] float32
    conditioning: Conditioning  # arrays [M, ...]
    alpha_bar: jax.Array  # [M] float32, of the timesteps


def noise_latents(
    problem: Problem,
    dtype: jnp.dtype,
    frozen: Frozen,
    mean: jax.Array,
    log_variance: jax.Array,
    captions: Any,
    keys: jax.Array,
) -> NoisyBatch:
    """Draws latents, and noise at timesteps drawn uniformly from the schedule; row i depends on `keys[i]` only.

    Args:
        problem: the distillation problem.
        dtype: of the networks' computations.
        frozen: parameters of the networks that encode captions.
        mean, log_variance: the autoencoder's of the images, [M, h, w, C], unscaled.
        captions: caption inputs, arrays [M, ...].
        keys: [M].
    """
    schedule, shape = problem.networks.schedule, mean.shape[1:]

    def each(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        latent_key, noise_key, time_key = jax.random.split(key, 3)
        time = jax.random.randint(time_key, (), 0, schedule.train_steps)
        return jax.random.normal(latent_key, shape), jax.random.normal(noise_key, shape), time

    latent_noise, noise, timesteps = jax.vmap(each)(keys)
    captions, noise = _augmented(problem.augmentation, captions, noise, keys)
    latents = sample_latents(mean, log_variance, latent_noise, problem.networks.scaling_factor)
    alpha_bar = jnp.asarray(schedule.alphas_cumprod(), jnp.float32)[timesteps]
    conditioning = problem.networks.condition(frozen, dtype, captions)
    target = TARGETS[schedule.prediction_type](latents, noise, alpha_bar)
    return NoisyBatch(add_noise(latents, noise, alpha_bar), timesteps, target, conditioning, alpha_bar)


def _augmented(augmentation: Augmentation, captions: Any, noise: jax.Array, keys: jax.Array) -> tuple[Any, jax.Array]:
    """Applies the augmentations; they have key streams of their own, so the other random numbers stay the same."""
    if augmentation.caption_dropout:
        drawn = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _DROPOUT)))(keys)
        captions = drop_captions(captions, augmentation.empty_inputs, drawn < augmentation.caption_dropout)
    if augmentation.noise_offset:
        channels = (1, 1, noise.shape[-1])
        offset = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, _OFFSET), channels))(keys)
        noise = noise + augmentation.noise_offset * offset
    return captions, noise


def drop_captions(captions: Any, empty: Any, dropped: jax.Array) -> Any:
    """Caption inputs [M, ...], replaced by the empty caption's [...] where `dropped`, bool [M]."""

    def replaced(value: jax.Array, of_empty: np.ndarray) -> jax.Array:
        rows = dropped.reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(rows, jnp.asarray(of_empty, value.dtype), value)

    return jax.tree.map(replaced, dict(captions), dict(empty))


def make_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Callable[[Any, Frozen, NoisyBatch], LossAndTerms]:
    """Builds (student parameters, frozen, noisy batch) -> loss and terms."""
    plan, weights = problem.plan, problem.weights
    student = UNet(plan.student, dtype, problem.attention, problem.remat)
    teacher = UNet(plan.teacher, dtype, problem.attention)
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
        if "moments" in batch:
            both = jax.lax.bitcast_convert_type(batch["moments"], jnp.bfloat16)  # [M, 2, h, w, C]
            moments = both[:, 0], both[:, 1]
        else:
            moments = problem.networks.encode(frozen, dtype, to_unit(batch["images"]))
        noisy = noise_latents(problem, dtype, frozen, *moments, batch["captions"], keys)
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
    plan, networks, struct = problem.plan, problem.networks, jax.ShapeDtypeStruct
    shapes = networks.parameter_shapes()
    frozen = {name: shapes[name] for name in networks.frozen}
    if problem.weights.distils or with_teacher:
        frozen["teacher"] = parameter_shapes(plan.teacher)
    frozen = jax.tree.map(lambda leaf: struct(leaf.shape, dtype if leaf.ndim > 1 else jnp.float32), frozen)
    captions = networks.kind.caption_shapes(networks.configs)
    batch: dict[str, Any] = {"captions": jax.tree.map(lambda x: struct((*shape, *x.shape), x.dtype), captions)}
    if cached:
        batch["moments"] = struct((*shape, 2, *networks.latent_shape(resolution)), jnp.uint16)
    else:
        batch["images"] = struct((*shape, resolution, resolution, 3), jnp.uint8)
    return Objective(make_batch_loss(problem, dtype), parameter_shapes(plan.student), frozen, batch)
