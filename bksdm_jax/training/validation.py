"""Losses on images that training doesn't see, always with the same noise, so that they can be compared."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from bksdm_jax.base.distributed import together
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.update import Batch, Frozen, Loss

_STREAM = 2**32 - 2  # keeps the keys of validation apart from those of training


def make_validation(loss: Loss, seed: int, whole: NamedSharding) -> Any:
    """Builds what takes the losses of a batch: (weights, frozen, batch, its number) -> every term by name.

    It is compiled at its first call.

    Args:
        loss: as `make_update` takes it.
        seed: of the noise, which follows from it and from an image's place, whatever the size of a batch.
        whole: the sharding of the terms.
    """

    def evaluate(params: Any, frozen: Frozen, batch: Batch, number: jax.Array) -> dict[str, jax.Array]:
        _, share = next(iter(batch.values())).shape[:2]
        key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(_STREAM))
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(number * share + jnp.arange(share))
        return loss(params, frozen, {name: value[0] for name, value in batch.items()}, keys)[1]

    return together(jax.jit(evaluate, out_shardings=whole))


def validate(
    evaluate: Any,
    state: TrainState,
    frozen: Frozen,
    batches: Callable[[], Iterator[Mapping[str, jax.Array]]],
    count: int,
) -> dict[str, float]:
    """Means over the first `count` batches: of the moving average's terms, and under `raw/` of the weights' losses."""
    sums: dict[str, float] = {}
    for number, batch in zip(range(count), batches(), strict=False):
        step = np.int32(number)
        found = evaluate(state.ema, frozen, batch, step)
        raw = evaluate(state.params, frozen, batch, step)
        found = found | {f"raw/{name}": value for name, value in raw.items() if name.startswith("loss")}
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value) / count
    return sums
