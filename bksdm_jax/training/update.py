"""One optimiser update, as a function that stands alone, for whatever loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bksdm_jax.training.state import TrainState, ema_decay, update_ema

_TRAINING_STREAM = 2**32 - 1  # keeps the keys of training apart from those that number sampled images

Frozen = Mapping[str, Any]
"""Parameters that training reads only, by network."""
Batch = Mapping[str, jax.Array]
"""Arrays [A, M, ...]: A micro-batches of M examples."""
Loss = Callable[[Any, Frozen, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters, frozen, a micro-batch [M, ...], keys [M]) -> (float32 loss [], every term by name, float32 [])."""
TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_update(loss: Loss, optimizer: optax.GradientTransformation, ema_bound: float, seed: int) -> TrainStep:
    """Builds the update: losses and gradients over the micro-batches, clipping, AdamW, moving average.

    Every example of an update has a key of its own, from seed, update and its place in the batch; so neither
    accumulation nor the number of devices changes what it is trained on.

    Args:
        loss: what is minimised; its terms hold `loss`.
        optimizer: from `make_optimizer`.
        ema_bound: upper bound of the moving average's decay.
        seed: of everything random.

    Returns:
        (state, frozen, batch) -> (new state, float32 metrics: losses by name, `grad_norm` before clipping,
        `update_norm`, `ema_decay`, and `ema_distance`, of the moving average from the weights, in parts of their
        norm). Not compiled yet.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def update(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        parts, share = next(iter(batch.values())).shape[:2]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _TRAINING_STREAM), state.step)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts * share))

        def micro(part: Any) -> tuple[Any, dict[str, jax.Array]]:
            (_, terms), grads = gradient(state.params, frozen, *part)
            return grads, terms

        def accumulate(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, micro(part)), None

        micro_batches = (dict(batch), keys.reshape(parts, share))
        if parts == 1:  # without a loop, in which XLA's CPU convolutions are ten times slower
            grads, terms = micro(jax.tree.map(lambda x: x[0], micro_batches))
        else:
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
        apart = optax.global_norm(jax.tree.map(jnp.subtract, ema, params))
        metrics["ema_distance"] = apart / optax.global_norm(params)
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return update
