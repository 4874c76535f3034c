"""One network of the teacher as a task for the trainer: how long it is trained, on what, with what loss."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder
from bksdm_jax.training.config import TrainerConfig
from bksdm_jax.training.state import OptimizerConfig
from bksdm_jax.training.task import Task, micro_batches
from bksdm_jax.training.train_step import Frozen, Loss, Objective
from bksdm_jax.training.trainer import train


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

    def trainer(self, seed: int) -> TrainerConfig:
        """The same as the trainer's settings."""
        optimizer = OptimizerConfig(
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup,
            cosine_steps=self.steps,
            ema_decay=self.ema_decay,
        )
        return TrainerConfig(
            seed=seed,
            steps=self.steps,
            batch_size=self.batch_size,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=1,
            optimizer=optimizer,
        )


Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]
"""The number of the first update -> endless batches of examples [M, ...] from it on."""


class PhaseTask(Task):
    """The training of one network, see `training.task.Task`; it ends in the parameters themselves."""

    def __init__(self, loss: Loss, params: Any, frozen: Frozen, batches: Batches) -> None:
        """See `train_phase`."""
        self._params, self._frozen, self._batches = params, frozen, batches
        arguments = params, dict(frozen), next(micro_batches(batches(0)))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        self.objective = Objective(loss, *shapes)

    def initial_params(self) -> Any:
        """As given."""
        return self._params

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        """As given."""
        yield from self._frozen.items()

    def batches(self, step: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """All rows: the teacher is made by one process."""
        del rows
        return micro_batches(self._batches(step))

    def write(self, params: Any, workdir: Path) -> Any:
        """The parameters, which `make_teacher` goes on with."""
        del workdir
        return params


def train_phase(
    workdir: Path, phase: Phase, params: Any, frozen: Frozen, loss: Loss, batches: Batches, seed: int
) -> dict[str, Any] | None:
    """Trains from `params`, or from the newest checkpoint in `workdir`.

    Args:
        workdir: for checkpoints and metrics.
        phase: how long and how fast.
        params: where training begins, float32.
        frozen: what the loss reads besides.
        loss: as `make_update` takes it.
        batches: see `Batches`.
        seed: of the noise.

    Returns:
        the moving average as numpy float32, or None if interrupted (the same call continues).

    Raises:
        InputError: the workdir can't be made, more updates were made already, or a loss is not finite.
    """
    make_folder(workdir)
    return train(PhaseTask(loss, params, frozen, batches), phase.trainer(seed), workdir)


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
        epoch, position = divmod(number, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen = order[position * batch_size : (position + 1) * batch_size]
        yield {name: value[chosen] for name, value in examples.items()}
