"""The training state: parameters, their moving average, the optimiser's moments, the number of updates."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from bksdm_jax.training.adamw import adam_of, adam_step, factors
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
    adam = adam_of(state.opt_state)
    at = factors(jnp.maximum(adam.count, 1), config)
    steps = jax.tree.map(lambda *leaves: adam_step(*leaves, at, config), adam.mu, adam.nu, state.params)
    found = {"update_norm": jnp.where(adam.count > 0, optax.global_norm(steps), 0.0)}
    if jax.tree.leaves(state.ema):
        apart = jax.tree.map(jnp.subtract, state.ema, state.params)
        found["ema_distance"] = optax.global_norm(apart) / optax.global_norm(state.params)
    return found
