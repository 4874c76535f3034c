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
    """AdamW with decoupled weight decay on every parameter, as in PyTorch; its gradients are to be clipped before."""
    rate, weight_decay = learning_rate(config), config.weight_decay
    adamw = optax.adamw(rate, config.beta1, config.beta2, config.epsilon, weight_decay=weight_decay)
    # Checkpoints have an empty state before AdamW's, from when this clipped.
    return optax.chain(optax.identity(), adamw)


def create_state(params: Any, optimizer: optax.GradientTransformation, averaged: bool = True) -> TrainState:
    """The state before the first update; the moving average, if it is to be kept, starts as a copy of `params`."""
    ema = jax.tree.map(jnp.copy, params) if averaged else {}
    counts = [jnp.zeros((), jnp.int32) for _ in range(2)]  # two arrays, since both are donated
    return TrainState(*counts, params, ema, optimizer.init(params))


def ema_decay(done: jax.Array, bound: float) -> jax.Array:
    """The moving average's decay after n = `done` updates: min(bound, (1 + n) / (10 + n)), or 0 for n = 0."""
    n = done.astype(jnp.float32)
    return jnp.where(done == 0, 0.0, jnp.minimum(bound, (1.0 + n) / (10.0 + n)))


def state_norms(state: TrainState, config: OptimizerConfig) -> dict[str, jax.Array]:
    """Norms over all parameters, float32 [].

    `update_norm` is that of the last step that was applied, 0 before the first, with weight decay from the new
    parameters; if a moving average is kept, `ema_distance` is |ema - params| / |params|.
    """
    applied = _adam(state.opt_state).count > 0
    norm = optax.global_norm(adam_step(state.opt_state, state.params, config))
    found = {"update_norm": jnp.where(applied, norm, 0.0)}
    if jax.tree.leaves(state.ema):
        apart = jax.tree.map(jnp.subtract, state.ema, state.params)
        found["ema_distance"] = optax.global_norm(apart) / optax.global_norm(state.params)
    return found


def adam_step(opt_state: Any, params: Any, config: OptimizerConfig) -> Any:
    """What AdamW (Loshchilov and Hutter 2019) subtracts from `params`, by its moments m and v after n updates:

    rate * (m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + epsilon) + weight_decay * params).
    """
    adam = _adam(opt_state)
    done = jnp.maximum(adam.count, 1)
    with jax.numpy_dtype_promotion("standard"):  # Optax relies on implicit promotion
        rate = learning_rate(config)(done - 1)
    corrections = [1.0 - jnp.float32(beta) ** done.astype(jnp.float32) for beta in (config.beta1, config.beta2)]

    def step(mean: jax.Array, square: jax.Array, params: jax.Array) -> jax.Array:
        deviation = jnp.sqrt(square / corrections[1]) + config.epsilon
        return rate * (mean / corrections[0] / deviation + config.weight_decay * params)

    return jax.tree.map(step, adam.mu, adam.nu, params)


def _adam(opt_state: Any) -> optax.ScaleByAdamState:
    (adam,) = (one for one in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(one))
    return adam


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
