"""Saves a state of so many MB so often, and prints the resident memory in MB after each save."""

import sys
import tempfile

import jax
import jax.numpy as jnp

from bksdm_jax.base.memory import resident
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.state import TrainState

PARTS = 4


def main(megabytes: int, count: int) -> None:
    """`megabytes` and saves."""
    length = megabytes * 10**6 // 4 // (4 * PARTS)
    leaves = iter(jax.random.normal(jax.random.key(number), (length,)) for number in range(4 * PARTS))
    params, ema, first, second = ({f"w{part}": next(leaves) for part in range(PARTS)} for _ in range(4))
    state = TrainState(jnp.int32(0), jnp.int32(0), params, ema, (first, second))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:
        for step in range(1, count + 1):
            checkpoints.save(state.replace(step=jnp.int32(step)), {}, wait=True)
            print(resident() / 10**6, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
