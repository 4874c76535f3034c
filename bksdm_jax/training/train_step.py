"""One optimiser update of any objective: as a plain function, and jitted with shardings over devices."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bksdm_jax.training.adamw import make_optimizer, stepped
from bksdm_jax.training.config import OptimizerConfig
from bksdm_jax.training.layouts import placements, with_conv_layout
from bksdm_jax.training.sharding import batch_sharding, device_sharding, parameter_shardings, replicated
from bksdm_jax.training.state import TrainState, create_state, ema_decay, state_norms

_TRAINING_STREAM = 2**32 - 1  # keeps the keys of training apart from those of sampled images

Frozen = Mapping[str, Any]
"""Frozen parameters by network."""
Batch = Mapping[str, Any]
"""Pytree of arrays [A, M, ...]: A micro-batches of M examples."""
LossAndTerms = tuple[jax.Array, dict[str, jax.Array]]
"""Float32 loss [], and every term by name, float32 []."""
Loss = Callable[[Any, Any, Frozen, Batch, jax.Array], LossAndTerms]
"""(parameters, their moving average, frozen, a micro-batch [M, ...], keys [M]) -> loss and terms."""
Update = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, jax.Array]]]
SIGNALS = "signals"
"""The entry of a batch that tells all processes what each wants, int32 [devices]: one of the following."""
GO, STOP, UNUSABLE = 0, 1, 2
"""Train on; save and stop; save and stop, since this process's part of the batch can't be used."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that an update minimises, and the shapes of its inputs as `jax.ShapeDtypeStruct`.

    Attributes:
        loss: its terms include `loss` itself.
        params: of the trained network.
        frozen: parameters of the frozen networks, by name.
        batch: one batch, arrays [A, M, ...].
    """

    loss: Loss
    params: Any
    frozen: dict[str, Any]
    batch: dict[str, Any]


def update_key(seed: int, done: int | jax.Array) -> jax.Array:
    """The key of the update after `done` updates."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _TRAINING_STREAM), done)


def make_update(loss: Loss, config: OptimizerConfig, seed: int) -> Update:
    """Builds the update: losses and gradients over the micro-batches, clipping, AdamW, moving average.

    Each example's key follows from seed, update and its position in the batch, so neither accumulation nor the number
    of devices changes its noise. If the loss or the gradients' norm isn't finite, all but `step` and `skipped` stays
    bit-identical (the settings' bounds keep a step from finite gradients finite); if the batch's signals say
    `UNUSABLE`, all does.

    Returns:
        (state, frozen, batch) -> (new state, float32 metrics: losses by name, `grad_norm` before clipping,
        `applied`, 1 or 0, `skipped`, how many updates were so far, and `signals`, the largest; of a
        moving average its `ema_decay`), not jitted.
    """

    def update(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = dict(batch)
        signal = jnp.max(batch.pop(SIGNALS, jnp.int32(GO)))
        gradient = jax.value_and_grad(loss, has_aux=True)
        count, size = jax.tree.leaves(batch)[0].shape[:2]
        key = update_key(seed, state.step)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count * size))

        def micro(part: Any) -> tuple[Any, dict[str, jax.Array]]:
            (_, terms), grads = gradient(state.params, state.average, frozen, *part)
            return grads, terms

        grads, terms = _mean_over_micro_batches(micro, (batch, keys.reshape(count, size)), count)
        norm = optax.global_norm(grads)
        # Not the new parameters' or the step's norm, though: all that changes would have to wait for it in memory.
        finite = jnp.isfinite(terms["loss"]) & jnp.isfinite(norm)
        usable = signal < UNUSABLE
        apply = usable & finite
        clip = jnp.minimum(1.0, config.clip_norm / norm)
        decay = ema_decay(state.step - state.skipped, config.ema_decay)
        trees = grads, state.params, state.ema, state.opt_state
        params, ema, opt_state = stepped(apply, clip, decay, *trees, config)
        average = {"ema_decay": decay} if jax.tree.leaves(ema) else {}
        steps = state.step + usable.astype(jnp.int32)
        skipped = state.skipped + (usable & ~finite).astype(jnp.int32)
        told = {"applied": apply.astype(jnp.float32), "skipped": skipped, SIGNALS: signal}
        new = TrainState(steps, skipped, params, ema, opt_state)
        return new, terms | {"grad_norm": norm} | average | told

    return update


def _mean_over_micro_batches(micro: Callable[[Any], Any], micro_batches: Any, count: int) -> Any:
    first = jax.tree.map(lambda x: x[0], micro_batches)
    if count == 1:
        return micro(first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(micro, first))
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, micro(part)), None), zeros, micro_batches)
    return jax.tree.map(lambda x: x / count, total)


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """One update, jitted but not compiled, and its arguments as `jax.ShapeDtypeStruct` with shardings and layouts.

    The state is donated and returned with the same shardings and layouts. `norms` is `state_norms`, jitted: apart from
    the update, since it reads the whole state and is wanted at few steps.
    """

    update: Any
    norms: Any
    state: TrainState
    frozen: dict[str, Any]
    batch: dict[str, Any]

    def arguments(self) -> tuple[Any, ...]:
        """The update's arguments."""
        return self.state, self.frozen, self.batch


def make_train_step(
    objective: Objective, config: OptimizerConfig, seed: int, mesh: Mesh, conv_layout: str = "hwio"
) -> TrainStep:
    """Builds the update for a mesh, whose devices may be those of a topology that isn't attached.

    `conv_layout` is one of `CONV_LAYOUTS`; raises `InputError` if it isn't for these devices.
    """
    optimizer = make_optimizer(config)
    update = make_update(objective.loss, config, seed)
    shapes = jax.eval_shape(lambda p: create_state(p, optimizer, config.ema_decay > 0), objective.params)
    state, frozen = (
        with_conv_layout(_sharded(tree, parameter_shardings(mesh, tree)), conv_layout, mesh)
        for tree in (shapes, objective.frozen)
    )
    batch = _sharded(objective.batch, jax.tree.map(lambda _: batch_sharding(mesh), objective.batch))
    batch[SIGNALS] = jax.ShapeDtypeStruct((mesh.size,), jnp.int32, sharding=device_sharding(mesh))
    jitted = jax.jit(update, donate_argnums=0, out_shardings=(placements(state), replicated(mesh)))
    norms = jax.jit(lambda state: state_norms(state, config), out_shardings=replicated(mesh))
    return TrainStep(jitted, norms, state, frozen, batch)


def _sharded(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings)
