"""What an update's metrics say about it: whether it changed anything, and what the processes want."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from bksdm_jax.training.config import TrainerConfig
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.train_step import SIGNALS, UNUSABLE, Frozen


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An update, as its metrics tell it.

    Attributes:
        step: its number.
        values: its finite metrics, the losses first.
        others: its other metrics.
        signal: the largest of all processes.
        applied: whether it changed anything.
    """

    step: int
    values: dict[str, float]
    others: dict[str, float]
    signal: int
    applied: bool

    def text(self) -> str:
        """The metrics that aren't finite, and the norms."""
        told = self.others | {name: value for name, value in self.values.items() if name.endswith("norm")}
        return ", ".join(f"{name} {value:.4g}" for name, value in told.items())


class Health:
    """Counts the updates in a row that changed nothing, since a number wasn't finite.

    Attributes:
        in_a_row: how many the last ones were.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def judge(self, step: int, metrics: Mapping[str, jax.Array]) -> Outcome:
        """Waits for an update; must be called once for each, in order."""
        names = sorted(metrics, key=lambda name: (not name.startswith("loss"), name))
        found = {name: float(np.asarray(metrics[name])) for name in names}
        signal, applied = int(found.pop(SIGNALS)), bool(found.pop("applied"))
        finite = {name: value for name, value in found.items() if np.isfinite(value)}
        others = {name: value for name, value in found.items() if name not in finite}
        outcome = Outcome(step, finite, others, signal, applied)
        if applied or signal == UNUSABLE:
            self.in_a_row = 0 if applied else self.in_a_row
        else:
            self.in_a_row += 1
            logging.warning(
                "step %d changed nothing, since not all of its numbers are finite (%s); %d in a row, %d so far",
                *(step, outcome.text(), self.in_a_row, found["skipped"]),
            )
        return outcome


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in floats] or [True]).all()


def cause(state: TrainState, frozen: Frozen, batch: Any) -> str:
    """Whether weights, data or neither explain an update that isn't finite, and what to do; all processes must ask."""
    for name, params in frozen.items():
        if not _all_finite(params):
            return f"the weights of the {name} aren't finite: use others"
    if not _all_finite((state.params, state.ema)):
        return "the trained weights aren't finite: go back to an earlier checkpoint"
    if not _all_finite(batch):
        return "the data aren't finite: prepare them again"
    return "weights and data are finite, so the training diverges: lower the learning rate"


def advice(config: TrainerConfig, steps: list[int], folder: str) -> str:
    """How a diverged run can continue, with the whole checkpoints that it has."""
    rate = config.optimizer.learning_rate / 10
    told = f"in this workdir with --config.optimizer.learning_rate={rate:g}"
    if config.dtype != "float32":
        told += ", or in another workdir with --config.dtype=float32"
    if not steps:
        return f"nothing was saved, so the same command starts again, {told}"
    told = f"the same command continues from step {steps[-1]}, {told}"
    if len(steps) > 1:
        told += f"; to go back to step {steps[-2]}, move {folder}/{steps[-1]} away"
    return told
