"""The training state: parameters, their moving average, the optimiser's moments, the number of updates."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from bksdm_jax.base import trees


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, gradient clipping and moving average. Defaults are the reference run's.

    Attributes:
        learning_rate: after the warm-up.
        warmup_steps: updates over which the rate rises linearly from zero.
        cosine_steps: the update at which it reaches zero along a half cosine; 0: it stays constant.
        beta1, beta2, weight_decay, epsilon: as in `optax.adamw`.
        clip_norm: largest global norm of the gradients; larger ones are scaled down to it.
        ema_decay: upper bound of the moving average's decay.
    """

    learning_rate: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    warmup_steps: int = 0
    cosine_steps: int = 0


@flax.struct.dataclass
class TrainState:
    """`step` counts optimiser updates; `params`, and their moving average `ema`, are float32."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Number of earlier updates -> rate: linear warm-up, then constant or a half cosine to zero."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.cosine_steps and warmup:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.cosine_steps, warmup + 1))
    if config.cosine_steps:
        return optax.cosine_decay_schedule(peak, config.cosine_steps)
    return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay on every parameter, as in PyTorch."""
    rate, weight_decay = learning_rate(config), config.weight_decay
    adamw = optax.adamw(rate, config.beta1, config.beta2, config.epsilon, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def create_state(params: Any, optimizer: optax.GradientTransformation, trainable: Any = None) -> TrainState:
    """The state before the first update; the moving average starts as a copy of `params`.

    `trainable` is a tree of bools like `params`, True for trained leaves; only these have moments. None: all.
    """
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(split(params, trainable)[0]))


def split(params: Any, trainable: Any = None) -> tuple[Any, Any]:
    """The trained leaves, and the others, nested as in `params`."""
    if trainable is None:
        return params, {}
    chosen, leaves = trees.flatten(trainable), trees.flatten(params)
    trained = {name: leaf for name, leaf in leaves.items() if chosen[name]}
    others = {name: leaf for name, leaf in leaves.items() if not chosen[name]}
    return trees.unflatten(trained), trees.unflatten(others)


def merge(trained: Any, others: Any) -> Any:
    """The inverse of `split`."""
    return trees.unflatten(trees.flatten(trained) | trees.flatten(others)) if others else trained


def ema_decay(done: jax.Array, bound: float) -> jax.Array:
    """The moving average's decay after n = `done` updates: min(bound, (1 + n) / (10 + n)), or 0 for n = 0."""
    n = done.astype(jnp.float32)
    return jnp.where(done == 0, 0.0, jnp.minimum(bound, (1.0 + n) / (10.0 + n)))
