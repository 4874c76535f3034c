"""One optimiser update of distillation, as a function that stands alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from bksdm_jax.diffusion.schedule import TARGETS, ScheduleConfig, add_noise
from bksdm_jax.images import to_unit
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder
from bksdm_jax.models.unet import FEATURES, UNet, captured
from bksdm_jax.models.vae import VAE, VAEConfig, sample_latents
from bksdm_jax.pruning.plan import RemovalPlan
from bksdm_jax.training.losses import LossWeights, distillation_terms
from bksdm_jax.training.state import TrainState, ema_decay, update_ema

_TRAINING_STREAM = 2**32 - 1  # keeps the keys of training apart from those that number sampled images

Frozen = Mapping[str, Any]
"""Parameters that training reads only, under `teacher` (not needed without distillation), `vae`, `text_encoder`."""
Batch = Mapping[str, jax.Array]
"""`images` uint8 [A, M, H, W, 3] and `tokens` int32 [A, M, T]: A micro-batches of M images."""
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is distilled: the plan, the frozen networks, the schedule, the weights of the losses."""

    plan: RemovalPlan
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    schedule: ScheduleConfig
    weights: LossWeights = LossWeights()


@flax.struct.dataclass
class NoisyBatch:
    """Everything random about a micro-batch, drawn: noisy latents, their timesteps, the target, text states."""

    noisy: jax.Array  # [M, h, w, C] float32
    timesteps: jax.Array  # [M] int32
    target: jax.Array  # [M, h, w, C] float32
    context: jax.Array  # [M, T, K]


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
    mean, log_variance = VAE(problem.vae, dtype).apply({"params": frozen["vae"]}, to_unit(images), method="encode")
    count, shape = problem.schedule.train_steps, mean.shape[1:]

    def each(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        latent_key, noise_key, time_key = jax.random.split(key, 3)
        time = jax.random.randint(time_key, (), 0, count)
        return jax.random.normal(latent_key, shape), jax.random.normal(noise_key, shape), time

    latent_noise, noise, timesteps = jax.vmap(each)(keys)
    latents = sample_latents(mean, log_variance, latent_noise, problem.vae.scaling_factor)
    alpha_bar = jnp.asarray(problem.schedule.alphas_cumprod(), jnp.float32)[timesteps]
    context = CLIPTextEncoder(problem.text_encoder, dtype).apply({"params": frozen["text_encoder"]}, tokens)
    target = TARGETS[problem.schedule.prediction](latents, noise, alpha_bar)
    return NoisyBatch(add_noise(latents, noise, alpha_bar), timesteps, target, context)


def make_loss(problem: Problem, dtype: jnp.dtype = jnp.float32) -> Callable[[Any, Frozen, NoisyBatch], tuple[Any, Any]]:
    """Builds (student parameters, frozen, noisy batch) -> (float32 loss [], every term by name, float32 [])."""
    student, teacher = UNet(problem.plan.student, dtype), UNet(problem.plan.teacher, dtype)
    weights = problem.weights

    def run(network: UNet, params: Any, noisy_batch: NoisyBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        inputs = (noisy_batch.noisy.astype(dtype), noisy_batch.timesteps, noisy_batch.context)
        out, sown = network.apply({"params": params}, *inputs, mutable=[FEATURES])
        return out, captured(sown)

    def loss(params: Any, frozen: Frozen, noisy_batch: NoisyBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        theirs, their_features = run(teacher, frozen["teacher"], noisy_batch) if weights.distils else (None, None)
        ours, our_features = run(student, params, noisy_batch)
        pairs = problem.plan.features
        terms = distillation_terms(weights, noisy_batch.target, ours, our_features, theirs, their_features, pairs)
        return terms["loss"], terms

    return loss


def make_train_step(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    ema_bound: float,
    seed: int,
    dtype: jnp.dtype = jnp.float32,
) -> TrainStep:
    """Builds the update: losses and gradients over the micro-batches, clipping, AdamW, moving average.

    Every image of an update has a key of its own, from seed, update and its place in the batch; so neither
    accumulation nor the number of devices changes what it is trained on.

    Args:
        problem: what is distilled.
        optimizer: from `make_optimizer`.
        ema_bound: upper bound of the moving average's decay.
        seed: of everything random.
        dtype: of the networks' computations; parameters of the student, losses and noise are float32.

    Returns:
        (state, frozen, batch) -> (new state, float32 metrics: losses by name, `grad_norm` before clipping,
        `update_norm`, `ema_decay`). Not compiled yet.
    """
    gradient = jax.value_and_grad(make_loss(problem, dtype), has_aux=True)

    def train_step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        parts, share = batch["images"].shape[:2]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _TRAINING_STREAM), state.step)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts * share))

        def micro(part: Any) -> tuple[Any, dict[str, jax.Array]]:
            (_, terms), grads = gradient(state.params, frozen, draw_noisy_batch(problem, dtype, frozen, *part))
            return grads, terms

        def accumulate(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, micro(part)), None

        micro_batches = (batch["images"], batch["tokens"], keys.reshape(parts, share))
        shapes = jax.eval_shape(micro, jax.tree.map(lambda x: x[0], micro_batches))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (grads, terms), _ = jax.lax.scan(accumulate, zeros, micro_batches)
        grads, terms = jax.tree.map(lambda x: x / parts, (grads, terms))
        with jax.numpy_dtype_promotion("standard"):  # Optax relies on implicit promotion
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step, ema_bound)
        metrics = terms | {
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "ema_decay": decay,
        }
        ema = update_ema(state.ema, params, decay)
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return train_step
