"""The one training loop."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from clu.metric_writers import MetricWriter

from bksdm_jax.errors import InputError
from bksdm_jax.progress import Progress
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.interrupts import Interrupts
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.step import Frozen, TrainStep


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """When things happen, in optimiser updates; the last update logs, saves and draws a sheet in any case.

    Attributes:
        steps: updates in all.
        log_every, checkpoint_every, sheet_every: periods; 0: only at the end.
        images_per_step: for the rate.
    """

    steps: int
    log_every: int
    checkpoint_every: int
    sheet_every: int
    images_per_step: int


def run_loop(
    state: TrainState,
    frozen: Frozen,
    train_step: TrainStep,
    batches: Iterator[Mapping[str, jax.Array]],
    config: LoopConfig,
    writer: MetricWriter,
    checkpoints: Checkpoints,
    draw_sheet: Callable[[int, TrainState], None],
) -> tuple[TrainState, bool]:
    """Trains from `state.step` to `config.steps`.

    Returns:
        the state, and whether it got to the end; Ctrl-C or SIGTERM ends it earlier, with a checkpoint.

    Raises:
        InputError: a loss is not finite; nothing is saved from then on.
    """
    first = int(state.step)
    pending: list[tuple[int, Mapping[str, jax.Array]]] = []  # not looked at yet: looking waits for the device
    since = time.monotonic()
    with Interrupts() as interrupts, Progress("training", config.steps, done=first) as progress:
        for step in range(first + 1, config.steps + 1):
            state, metrics = train_step(state, frozen, next(batches))
            pending.append((step, metrics))
            last = step == config.steps

            def due(period: int, step: int = step, last: bool = last) -> bool:
                return last or (period > 0 and step % period == 0)

            saving = due(config.checkpoint_every) or interrupts.wanted
            note = ""
            if due(config.log_every) or saving:
                values = _require_finite(pending)
                seconds, since = time.monotonic() - since, time.monotonic()
                values["images_per_second"] = len(pending) * config.images_per_step / seconds
                note = f"loss {values['loss']:.4g}"
                pending = []
                if due(config.log_every):
                    writer.write_scalars(step, values)
                    writer.flush()
            if saving:
                checkpoints.save(state)
            if due(config.sheet_every):
                draw_sheet(step, state)
                since = time.monotonic()
            progress.advance(note=note)
            if interrupts.wanted:
                return state, last
    return state, True


def _require_finite(pending: list[tuple[int, Mapping[str, jax.Array]]]) -> dict[str, Any]:
    """The newest metrics as floats, once the losses of all pending steps are found finite."""
    for step, metrics in pending:
        names = sorted(metrics, key=lambda name: (not name.startswith("loss"), name))  # the losses first
        values = {name: float(np.asarray(metrics[name])) for name in names}
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            facts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            raise InputError(
                f"training: the loss is not finite at step {step} ({facts}); the checkpoints before it stay; "
                "try a lower optimizer.learning_rate, or dtype float32"
            )
    return values
