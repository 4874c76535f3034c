"""What training changes: parameters, their moving average, the optimiser's moments, the update count."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from bksdm_jax.base import trees


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, clipping and the moving average. Defaults are the reference run's.

    Attributes:
        learning_rate: after the warm-up.
        warmup_steps: updates over which it rises linearly from zero.
        cosine_steps: the update at which it has fallen to zero along a half cosine; 0: it stays constant.
        beta1, beta2, weight_decay, epsilon: as in `optax.adamw`.
        clip_norm: gradients are scaled down to this global norm.
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
    """The rate of the update after n updates: linear warm-up, then constant or a half cosine to zero."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.cosine_steps and warmup:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, config.cosine_steps)
    if config.cosine_steps:
        return optax.cosine_decay_schedule(peak, config.cosine_steps)
    return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decoupled weight decay on every parameter, as PyTorch's."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )


def create_state(params: Any, optimizer: optax.GradientTransformation, trainable: Any = None) -> TrainState:
    """The state before the first update; the moving average begins as a copy of `params`.

    Args:
        params: what is trained, nested by Flax names.
        optimizer: from `make_optimizer`.
        trainable: the same tree of bools: the leaves that are trained, of which alone the optimiser has moments. None:
            all.
    """
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(split(params, trainable)[0]))


def split(params: Any, trainable: Any = None) -> tuple[Any, Any]:
    """The leaves that are trained, and the others, nested as in `params`."""
    if trainable is None:
        return params, {}
    chosen = trees.flatten(trainable)
    parts = ({}, {})
    for name, leaf in trees.flatten(params).items():
        parts[0 if chosen[name] else 1][name] = leaf
    return trees.unflatten(parts[0]), trees.unflatten(parts[1])


def merge(trained: Any, others: Any) -> Any:
    """The inverse of `split`."""
    return trees.unflatten(trees.flatten(trained) | trees.flatten(others)) if others else trained


def ema_decay(done: jax.Array, bound: float) -> jax.Array:
    """Decay of the moving average in the update after `done` updates: min(bound, (1 + n) / (10 + n)), first 0."""
    n = done.astype(jnp.float32)
    return jnp.where(done == 0, 0.0, jnp.minimum(bound, (1.0 + n) / (10.0 + n)))


def update_ema(ema: Any, params: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)
