"""The one training loop."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from bksdm_jax.errors import InputError
from bksdm_jax.interrupts import Interrupts
from bksdm_jax.progress import Progress
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.update import Frozen, TrainStep


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
    workdir: Path,
    checkpoints: Checkpoints,
    draw_sheet: Callable[[int, TrainState], None] | None = None,
) -> tuple[TrainState, bool]:
    """Trains from `state.step` to `config.steps`; `draw_sheet`, where given, is called at every due step.

    Metrics go to `workdir`, as `writers.make_writer` says.

    Returns:
        the state, and whether it got to the end; Ctrl-C or SIGTERM ends it earlier, with a checkpoint.

    Raises:
        InputError: a loss is not finite; the steps since the last checkpoint are not saved.
    """
    # Brings TensorFlow: seconds that a command which fails before, or doesn't train, shouldn't wait for.
    from bksdm_jax.training.writers import make_writer  # noqa: PLC0415

    first = int(state.step)
    writer = make_writer(workdir, first)
    previous: tuple[int, Mapping[str, jax.Array]] | None = None
    since, counted = time.monotonic(), first  # the window that the rate is taken over
    with Interrupts() as interrupts, Progress("training", config.steps, done=first) as progress:
        for step in range(first + 1, config.steps + 1):
            state, metrics = train_step(state, frozen, next(batches))
            if previous is not None:  # waits for it, so that one update is under way and one being prepared
                _finite_values(*previous)
            previous = (step, metrics)
            logging_now = _due(step, config.log_every, config.steps)
            stopping = interrupts.wanted  # read once: a wish that comes later ends the next step, which saves
            saving = _due(step, config.checkpoint_every, config.steps) or stopping
            note = ""
            if logging_now or saving:
                values = _finite_values(step, metrics)
                note = f"loss {values['loss']:.4g}"
            if logging_now:
                rate = (step - counted) * config.images_per_step / (time.monotonic() - since)
                writer.write_scalars(step, values | {"images_per_second": rate})
                writer.flush()
                since, counted = time.monotonic(), step
            if draw_sheet is not None and _due(step, config.sheet_every, config.steps):
                draw_sheet(step, state)  # before saving: a run that continues after this step won't draw it again
                since, counted = time.monotonic(), step
            if saving:
                checkpoints.save(state)
            progress.advance(note=note)
            if stopping:
                return state, step == config.steps
    return state, True


def _due(step: int, period: int, steps: int) -> bool:
    return step == steps or (period > 0 and step % period == 0)


def _finite_values(step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step as floats, the losses first."""
    names = sorted(metrics, key=lambda name: (not name.startswith("loss"), name))
    values = {name: float(np.asarray(metrics[name])) for name in names}
    if not np.isfinite([values["loss"], values["grad_norm"], values["update_norm"]]).all():
        facts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise InputError(
            f"training: the loss is not finite at step {step} ({facts}); the checkpoints before it stay; "
            "try a lower optimizer.learning_rate, or dtype float32"
        )
    return values
