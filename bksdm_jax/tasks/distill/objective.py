"""What one update of distillation minimises."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from bksdm_jax.base.images import to_unit
from bksdm_jax.diffusion.schedule import TARGETS, ScheduleConfig, add_noise
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder
from bksdm_jax.models.unet import FEATURES, UNet, captured
from bksdm_jax.models.vae import VAE, VAEConfig, sample_latents
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.tasks.distill.losses import LossWeights, distillation_terms, min_snr_weight
from bksdm_jax.training.update import Batch, Frozen, Loss, TrainStep, make_update

_DROPOUT, _OFFSET = 1, 2  # numbers of the streams that are drawn besides


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What some add to the paper's training; nothing by default.

    Attributes:
        caption_dropout: share of images whose caption is the empty one, for guidance (Ho and Salimans 2022).
        empty_tokens: the empty caption's token ids; needed where captions are dropped.
        noise_offset: times a normal number for each image and channel, which is added to the noise: pictures become
            darker and brighter (N. Guttenberg, "Diffusion with Offset Noise", 2023).
    """

    caption_dropout: float = 0.0
    empty_tokens: tuple[int, ...] = ()
    noise_offset: float = 0.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is distilled.

    Attributes:
        plan: teacher and student.
        vae, text_encoder, schedule: of the teacher's pipeline.
        weights: of the losses.
        attention: of the U-Nets.
        remat: of the student; nothing of the teacher is kept for a backward pass.
        augmentation: of captions and noise.
    """

    plan: RemovalPlan
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    schedule: ScheduleConfig
    weights: LossWeights = LossWeights()
    attention: str = "auto"
    remat: str = "none"
    augmentation: Augmentation = Augmentation()


@flax.struct.dataclass
class NoisyBatch:
    """Everything random about a micro-batch, drawn: noisy latents, their timesteps, the target, conditioning."""

    noisy: jax.Array  # [M, h, w, C] float32
    timesteps: jax.Array  # [M] int32
    target: jax.Array  # [M, h, w, C] float32
    conditioning: Mapping[str, jax.Array]  # arrays [M, ...]
    alpha_bar: jax.Array  # [M] float32, of the timesteps


def draw_noisy_batch(
    problem: Problem, dtype: jnp.dtype, frozen: Frozen, images: jax.Array, tokens: jax.Array, keys: jax.Array
) -> NoisyBatch:
    """Encodes a micro-batch and adds noise at timesteps uniform over the schedule's.

    Args:
        problem: what is distilled.
        dtype: of the networks' computations.
        frozen: parameters under `vae` and `text_encoder`.
        images: uint8 [M, H, W, 3].
        tokens: int32 [M, T].
        keys: [M]; row i is drawn with `keys[i]` alone.
    """
    moments = VAE(problem.vae, dtype).apply({"params": frozen["vae"]}, to_unit(images), method="encode")
    return noise_latents(problem, dtype, frozen, *moments, tokens, keys)


def noise_latents(
    problem: Problem,
    dtype: jnp.dtype,
    frozen: Frozen,
    mean: jax.Array,
    log_variance: jax.Array,
    tokens: jax.Array,
    keys: jax.Array,
) -> NoisyBatch:
    """The rest of `draw_noisy_batch`, from what the autoencoder makes of the images.

    Args:
        problem, dtype, tokens, keys: as there.
        frozen: parameters under `text_encoder`.
        mean, log_variance: [M, h, w, C], unscaled.
    """
    count, shape = problem.schedule.train_steps, mean.shape[1:]

    def each(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        latent_key, noise_key, time_key = jax.random.split(key, 3)
        time = jax.random.randint(time_key, (), 0, count)
        return jax.random.normal(latent_key, shape), jax.random.normal(noise_key, shape), time

    latent_noise, noise, timesteps = jax.vmap(each)(keys)
    tokens, noise = _augmented(problem.augmentation, tokens, noise, keys)
    latents = sample_latents(mean, log_variance, latent_noise, problem.vae.scaling_factor)
    alpha_bar = jnp.asarray(problem.schedule.alphas_cumprod(), jnp.float32)[timesteps]
    context = CLIPTextEncoder(problem.text_encoder, dtype).apply({"params": frozen["text_encoder"]}, tokens)
    target = TARGETS[problem.schedule.prediction](latents, noise, alpha_bar)
    return NoisyBatch(add_noise(latents, noise, alpha_bar), timesteps, target, {"context": context}, alpha_bar)


def _augmented(
    augmentation: Augmentation, tokens: jax.Array, noise: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Drawn with keys of their own, so that what is without them stays as it is."""
    if augmentation.caption_dropout:
        gone = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _DROPOUT)))(keys)
        empty = jnp.asarray(augmentation.empty_tokens, tokens.dtype)
        tokens = jnp.where((gone < augmentation.caption_dropout)[:, None], empty, tokens)
    if augmentation.noise_offset:
        channels = (1, 1, noise.shape[-1])
        offset = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, _OFFSET), channels))(keys)
        noise = noise + augmentation.noise_offset * offset
    return tokens, noise


def make_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Callable[[Any, Frozen, NoisyBatch], tuple[Any, Any]]:
    """Builds (student parameters, frozen, noisy batch) -> (float32 loss [], every term by name, float32 [])."""
    plan = problem.plan
    student = UNet(plan.student, dtype, problem.attention, problem.remat)
    teacher = UNet(plan.teacher, dtype, problem.attention)
    weights = problem.weights
    pairs = weighted_pairs(plan, weights.feature_source, weights.feature_scales)

    def run(network: UNet, params: Any, noisy_batch: NoisyBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs = (noisy_batch.noisy.astype(dtype), noisy_batch.timesteps, noisy_batch.conditioning)
        out, sown = network.apply({"params": params}, *inputs, mutable=[FEATURES])
        return out, captured(sown)

    def loss(params: Any, frozen: Frozen, noisy_batch: NoisyBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        theirs, their_features = run(teacher, frozen["teacher"], noisy_batch) if weights.distils else (None, None)
        ours, our_features = run(student, params, noisy_batch)
        gamma, prediction = weights.min_snr_gamma, problem.schedule.prediction
        terms = distillation_terms(
            weights,
            noisy_batch.target,
            ours,
            our_features,
            theirs,
            their_features,
            pairs,
            min_snr_weight(gamma, prediction, noisy_batch.alpha_bar) if gamma else None,
        )
        return terms["loss"], terms

    return loss


def make_batch_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Loss:
    """Builds the loss of a micro-batch as `training_batches` yields it, in the form that `make_update` takes.

    Args:
        problem: what is distilled.
        dtype: of the networks' computations; parameters of the student, losses and noise are float32.

    Returns:
        see `Loss`; frozen are `teacher` (not needed without distillation), `vae` and `text_encoder`; with cached
        latents the autoencoder isn't run.
    """
    clean = make_loss(problem, dtype)

    def loss(params: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        if "moments" in batch:
            moments = jax.lax.bitcast_convert_type(batch["moments"], jnp.bfloat16)  # [M, 2, h, w, C]
            noisy = noise_latents(problem, dtype, frozen, moments[:, 0], moments[:, 1], batch["tokens"], keys)
        else:
            noisy = draw_noisy_batch(problem, dtype, frozen, batch["images"], batch["tokens"], keys)
        return clean(params, frozen, noisy)

    return loss


def make_train_step(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    ema_bound: float,
    seed: int,
    dtype: jnp.dtype = jnp.float32,
) -> TrainStep:
    """Builds one update of distillation: `make_update` of `make_batch_loss`, whose arguments these are."""
    return make_update(make_batch_loss(problem, dtype), optimizer, ema_bound, seed)
