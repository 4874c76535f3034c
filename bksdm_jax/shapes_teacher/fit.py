"""Trains one network of the teacher with the project's update, loop and checkpoints."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder
from bksdm_jax.base.progress import waiting
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.loop import LoopConfig, run_loop
from bksdm_jax.training.state import OptimizerConfig, create_state, make_optimizer
from bksdm_jax.training.update import Frozen, Loss, make_update


@dataclasses.dataclass(frozen=True)
class Phase:
    """How long and how fast one network is trained.

    Attributes:
        steps: updates.
        batch_size: examples an update.
        learning_rate: after the warm-up; it then falls along a cosine to zero.
        warmup: updates.
        ema_decay: of the moving average, which is what is kept.
        checkpoint_every, log_every: updates.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    ema_decay: float = 0.999
    checkpoint_every: int = 250
    log_every: int = 50

    @property
    def optimizer(self) -> OptimizerConfig:
        """The same as the optimiser's settings."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup,
            cosine_steps=self.steps,
            ema_decay=self.ema_decay,
        )


def fit(
    workdir: Path,
    phase: Phase,
    params: Any,
    frozen: Frozen,
    loss: Loss,
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    seed: int,
) -> dict[str, Any] | None:
    """Trains from `params`, or from the newest checkpoint in `workdir`.

    Args:
        workdir: for checkpoints and metrics.
        phase: how long and how fast.
        params: where training begins, float32.
        frozen: what the loss reads besides.
        loss: as `make_update` takes it.
        batches: examples [M, ...] from the given update on.
        seed: of the noise.

    Returns:
        the moving average as numpy float32, or None if interrupted (the same call continues).

    Raises:
        InputError: the workdir can't be made, more updates were made already, or a loss is not finite.
    """
    make_folder(workdir)
    optimizer = make_optimizer(phase.optimizer)
    state = jax.jit(lambda p: create_state(p, optimizer))(params)
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
        first = int(state.step)
        if first > phase.steps:
            raise InputError(f"steps: {phase.steps}, but {workdir} has made {first} already")
        if first < phase.steps:
            update = jax.jit(make_update(loss, optimizer, phase.ema_decay, seed), donate_argnums=0)
            parted = ({name: value[None] for name, value in batch.items()} for batch in batches(first))
            one = next(parted)
            with waiting(f"{workdir.name}: compiling the update"):
                update = update.lower(state, frozen, one).compile()
            state, finished = run_loop(
                state,
                frozen,
                update,
                itertools.chain([one], parted),
                LoopConfig(phase.steps, phase.log_every, phase.checkpoint_every, 0, phase.batch_size),
                workdir,
                checkpoints,
            )
            if not finished:
                return None
    return jax.tree.map(np.asarray, state.ema)


def shuffled(
    examples: Mapping[str, np.ndarray], batch_size: int, seed: int, first: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of random examples out of arrays [N, ...] that lie in memory, every epoch in its own order.

    Args:
        examples: arrays of one length N.
        batch_size: at most N; what is left of an epoch is not seen.
        seed: of the orders.
        first: the batch to begin with.

    Raises:
        InputError: fewer examples than a batch has.
    """
    count = len(next(iter(examples.values())))
    if count < batch_size:
        raise InputError(f"batch_size: {count} examples, fewer than a batch of {batch_size}")
    per_epoch = count // batch_size
    for number in itertools.count(first):
        epoch, place = divmod(number, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen = order[place * batch_size : (place + 1) * batch_size]
        yield {name: value[chosen] for name, value in examples.items()}
