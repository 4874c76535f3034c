"""Losses on held-out images, always with the same noise, so that they are comparable."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bksdm_jax.base.distributed import compiled_together
from bksdm_jax.training.sharding import batch_to_global, replicated
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.task import Evaluator
from bksdm_jax.training.train_step import Batch, Frozen, Loss

_STREAM = 2**32 - 2  # keeps the keys of validation apart from those of training


def validation(
    loss: Loss, batches: Callable[[], Iterator[Batch]], count: int, every: int, seed: int, mesh: Mesh
) -> Evaluator:
    """Mean terms over `count` batches of the moving average, and under `raw/` the mean losses of the weights.

    `batches` returns an iterator over this process's rows of batches of one micro-batch, arrays [1, M, ...]. An image's
    noise follows from `seed` and the image's position, whatever the batch size.
    """

    def terms(params: Any, ema: Any, frozen: Frozen, batch: Batch, number: jax.Array) -> dict[str, jax.Array]:
        share = jax.tree.leaves(batch)[0].shape[1]
        key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(_STREAM))
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(number * share + jnp.arange(share))
        return loss(params, ema, frozen, jax.tree.map(lambda value: value[0], dict(batch)), keys)[1]

    evaluate = compiled_together(jax.jit(terms, out_shardings=replicated(mesh)), "the validation")

    def run(step: int, state: TrainState, frozen: Frozen) -> dict[str, float]:
        del step
        sums: dict[str, float] = {}
        for number, rows in zip(range(count), batches(), strict=False):
            batch = batch_to_global(mesh, rows)
            found = evaluate(state.average, state.average, frozen, batch, np.int32(number))
            raw = evaluate(state.params, state.average, frozen, batch, np.int32(number))
            found = found | {f"raw/{name}": value for name, value in raw.items() if name.startswith("loss")}
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value) / count
        return sums

    return Evaluator(every, run)
