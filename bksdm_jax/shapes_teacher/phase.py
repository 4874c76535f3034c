"""One network of the teacher as a task for the trainer."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder
from bksdm_jax.shapes_teacher.config import Phase
from bksdm_jax.training.task import Task, micro_batches
from bksdm_jax.training.train_step import Frozen, Loss, Objective
from bksdm_jax.training.trainer import train

Batches = Callable[[int], Iterator[Mapping[str, np.ndarray]]]
"""Number of earlier updates -> endless batches of examples [M, ...]."""


class PhaseTask(Task):
    """The training of one network; the result is its parameters."""

    def __init__(self, loss: Loss, params: Any, frozen: Frozen, batches: Batches) -> None:
        """See `train_phase`."""
        self._params, self._frozen, self._batches = params, frozen, batches
        arguments = params, dict(frozen), next(micro_batches(batches(0)))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        self.objective = Objective(loss, *shapes)

    def initial_params(self) -> Any:
        """The parameters given."""
        return self._params

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        """The frozen networks given."""
        yield from self._frozen.items()

    def batches(self, step: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """All rows, since the teacher is made by a single process."""
        del rows
        return micro_batches(self._batches(step))

    def write(self, params: Any, workdir: Path) -> Any:
        """The parameters, for `make_teacher`."""
        del workdir
        return params


def train_phase(
    workdir: Path, phase: Phase, params: Any, frozen: Frozen, loss: Loss, batches: Batches, seed: int
) -> dict[str, Any] | None:
    """Trains from `params`, float32, or from the newest checkpoint in `workdir`.

    `frozen` are the parameters of other networks that the loss needs; `seed` is the noise's.

    Returns:
        the moving average as numpy float32, or None if interrupted (the same call continues).

    Raises:
        InputError: the workdir can't be created or is already further, or a loss is not finite.
    """
    make_folder(workdir)
    return train(PhaseTask(loss, params, frozen, batches), phase.trainer(seed), workdir, jax.devices()[:1])


def shuffled(
    examples: Mapping[str, np.ndarray], batch_size: int, seed: int, first: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from arrays [N, ...] in memory, shuffled anew each epoch, starting with batch `first`.

    The incomplete last batch of an epoch is dropped. Raises `InputError` if a batch has more than all examples.
    """
    count = len(next(iter(examples.values())))
    if count < batch_size:
        raise InputError(f"batch_size: {batch_size}, but there are only {count} examples")
    per_epoch = count // batch_size
    for number in itertools.count(first):
        epoch, position = divmod(number, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen = order[position * batch_size : (position + 1) * batch_size]
        yield {name: value[chosen] for name, value in examples.items()}
