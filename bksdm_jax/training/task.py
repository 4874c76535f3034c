"""The interface between the trainer and what it trains."""

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
    """A function that all processes call at the same steps of a run.

    Attributes:
        every: optimiser updates between calls; 0: only after the last update, which is always evaluated.
        run: (step, state, frozen) -> metrics by name.
        metrics: whether it returns metrics, which are written under the evaluator's name.
    """

    every: int
    run: Callable[[int, TrainState, Frozen], Mapping[str, float]]
    metrics: bool = True


class Task(abc.ABC):
    """What to train, on which data, and what to make of the result; `trainer.train` runs it.

    Attributes:
        objective: the loss, and the shapes of its inputs.
        flops_per_image: FLOPs of an update per image, without recomputation, upsampling counted as a convolution of the
            enlarged map; 0: unknown.
        memory_advice: what to do if the devices' memory is too small.
    """

    objective: Objective
    flops_per_image: float = 0.0
    memory_advice: str = "use a smaller batch_size"

    @abc.abstractmethod
    def initial_params(self) -> Any:
        """Initial parameters, float32 numpy, shaped as `objective.params`; called if there is no checkpoint."""

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        """The name and numpy parameters of each network in `objective.frozen`; by default none.

        Called once, after `initial_params`. The task should drop its references to arrays that it won't need again.
        """
        return iter(())

    @abc.abstractmethod
    def batches(self, step: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Batches for the updates after `step`: pytrees of numpy arrays [A, rows, ...].

        `rows` are the positions in each micro-batch that this process reads, ascending.
        """

    def example_names(self, step: int) -> list[str]:
        """The names of the examples of the update after `step`, of all processes; by default none."""
        del step
        return []

    def evaluators(self, mesh: Mesh, workdir: Path) -> Mapping[str, Evaluator]:
        """Evaluators by name, to be called in this order; by default none."""
        del mesh, workdir
        return {}

    def facts(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Further values to log, computed from an update's metrics; by default none."""
        del metrics
        return {}

    @abc.abstractmethod
    def write(self, params: Any, workdir: Path) -> Any:
        """Makes the run's result from the final parameters (numpy); called in the first process only."""

    def result(self, workdir: Path) -> Any:
        """The result in the other processes; by default the workdir."""
        return workdir


def micro_batches(batches: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Adds the axis of a single micro-batch: pytrees of arrays [M, ...] -> [1, M, ...]."""
    for batch in batches:
        yield jax.tree.map(lambda value: value[None], dict(batch))
