"""Losses on images that training doesn't see, always with the same noise, so that they can be compared."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bksdm_jax.base.distributed import compiled_together
from bksdm_jax.training.sharding import replicated
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.task import Evaluator
from bksdm_jax.training.train_step import Batch, Frozen, Loss

_STREAM = 2**32 - 2  # keeps the keys of validation apart from those of training


def validation(
    loss: Loss, batches: Callable[[], Iterator[Batch]], count: int, every: int, seed: int, mesh: Mesh
) -> Evaluator:
    """Means over `count` batches: of the moving average's terms, and under `raw/` of the weights' losses.

    Args:
        loss: as `make_update` takes it.
        batches: the batches of one micro-batch each, global arrays [1, M, ...], from the first one on.
        count: how many of them.
        every: as `Evaluator` has it.
        seed: of the noise, which follows from it and from an image's position, whatever the size of a batch.
        mesh: of the devices.
    """

    def terms(params: Any, frozen: Frozen, batch: Batch, number: jax.Array) -> dict[str, jax.Array]:
        share = jax.tree.leaves(batch)[0].shape[1]
        key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(_STREAM))
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(number * share + jnp.arange(share))
        return loss(params, params, frozen, jax.tree.map(lambda value: value[0], dict(batch)), keys)[1]

    evaluate = compiled_together(jax.jit(terms, out_shardings=replicated(mesh)))

    def run(step: int, state: TrainState, frozen: Frozen) -> dict[str, float]:
        del step
        sums: dict[str, float] = {}
        for number, batch in zip(range(count), batches(), strict=False):
            found = evaluate(state.ema, frozen, batch, np.int32(number))
            raw = evaluate(state.params, frozen, batch, np.int32(number))
            found = found | {f"raw/{name}": value for name, value in raw.items() if name.startswith("loss")}
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value) / count
        return sums

    return Evaluator(every, run)
