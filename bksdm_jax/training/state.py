"""The training state: parameters, their moving average, the optimiser's moments, the number of updates."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from bksdm_jax.training.config import OptimizerConfig


@flax.struct.dataclass
class TrainState:
    """`step` counts updates, `skipped` those that changed nothing else.

    `params`, and their moving average `ema`, are float32; `ema` is empty if none is kept.
    """

    step: jax.Array
    skipped: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @property
    def average(self) -> Any:
        """The moving average, or the parameters if none is kept."""
        return self.ema if jax.tree.leaves(self.ema) else self.params


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


def create_state(params: Any, optimizer: optax.GradientTransformation, averaged: bool = True) -> TrainState:
    """The state before the first update; the moving average, if it is to be kept, starts as a copy of `params`."""
    ema = jax.tree.map(jnp.copy, params) if averaged else {}
    counts = [jnp.zeros((), jnp.int32) for _ in range(2)]  # two arrays, since both are donated
    return TrainState(*counts, params, ema, optimizer.init(params))


def ema_decay(done: jax.Array, bound: float) -> jax.Array:
    """The moving average's decay after n = `done` updates: min(bound, (1 + n) / (10 + n)), or 0 for n = 0."""
    n = done.astype(jnp.float32)
    return jnp.where(done == 0, 0.0, jnp.minimum(bound, (1.0 + n) / (10.0 + n)))


def ema_distance(state: TrainState) -> jax.Array:
    """|ema - params| / |params| over all parameters, float32 []; 0 if no moving average is kept."""
    if not jax.tree.leaves(state.ema):
        return jnp.zeros(())
    apart = jax.tree.map(jnp.subtract, state.ema, state.params)
    return optax.global_norm(apart) / optax.global_norm(state.params)
