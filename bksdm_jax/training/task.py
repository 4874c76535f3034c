"""What the trainer is given to train, and what it asks of it."""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bksdm_jax.training.state import TrainState
from bksdm_jax.training.train_step import Frozen, Objective


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Something that is done now and then while a run trains, by all processes at the same steps.

    Attributes:
        every: optimiser updates between its calls; 0: once at the end. The last update calls it in any case.
        run: (step, state, frozen) -> metrics by name.
        metrics: whether it has metrics, which are then written under the evaluator's name.
    """

    every: int
    run: Callable[[int, TrainState, Frozen], Mapping[str, float]]
    metrics: bool = True


class Task(abc.ABC):
    """A training: what is trained on what, and what becomes of it. `trainer.train` runs it.

    Attributes:
        objective: the loss, and the shapes of what it takes.
        flops_per_image: of the products that an update can't do without; 0: not known.
    """

    objective: Objective
    flops_per_image: float = 0.0

    @abc.abstractmethod
    def initial_params(self) -> Any:
        """The first parameters, float32 numpy in `objective.params`' shapes; called if there is no checkpoint."""

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        """Each network of `objective.frozen` with its parameters as numpy arrays; by default there are none.

        Called once, after `initial_params`; what the task doesn't need later it should drop as they are taken.
        """
        return iter(())

    @abc.abstractmethod
    def batches(self, step: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Batches from the update after `step` on: pytrees of numpy arrays [A, rows, ...].

        `rows` are the positions in each micro-batch that this process reads, ascending.
        """

    def evaluators(self, mesh: Mesh, workdir: Path) -> Mapping[str, Evaluator]:
        """What is done besides training, by name; called in this order. By default nothing."""
        del mesh, workdir
        return {}

    def facts(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """What is logged besides the metrics of an update, and follows from them. By default nothing."""
        del metrics
        return {}

    @abc.abstractmethod
    def write(self, params: Any, workdir: Path) -> Any:
        """Makes the run's result of the final parameters (numpy); called by the first process alone."""


def micro_batches(batches: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches of examples, pytrees of arrays [M, ...], as updates of one micro-batch, [1, M, ...]."""
    for batch in batches:
        yield jax.tree.map(lambda value: value[None], dict(batch))
