"""The training loop of all tasks."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.distributed import all_reduce_max, barrier, is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.memory import give_back, resident
from bksdm_jax.base.progress import Progress, waiting
from bksdm_jax.base.signals import Interrupts
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import PROFILED, TrainerConfig
from bksdm_jax.training.state import OptimizerConfig, TrainState, learning_rate
from bksdm_jax.training.task import Evaluator, Task
from bksdm_jax.training.train_step import Batch, Frozen, Update

_ASK_SECONDS, _ASK_MOST = 2.0, 100  # seconds, and at most updates, between agreements on whether to stop


class Rates:
    """Throughput of updates over a window.

    clu's `ReportProgress` includes evaluators in its window, and measures neither images, FLOPs nor waiting.
    """

    def __init__(self, images: int, flops: float = 0.0, peak: float = 0.0) -> None:
        """Images and FLOPs of an update, and the peak of all devices together in FLOP/s; 0: unknown."""
        self._images, self._flops, self._peak = images, flops, peak
        self.begin(0)

    def begin(self, step: int) -> None:
        """Starts a new window after this step."""
        self._since, self._step, self._waited = time.monotonic(), step, 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; measures the time spent waiting for it."""
        start = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - start
        return batch

    def until(self, step: int) -> dict[str, float]:
        """Images and FLOPs per second, and the fractions of the peak and of the time spent waiting for data."""
        seconds = time.monotonic() - self._since
        rate = (step - self._step) / seconds
        found = {"images_per_second": rate * self._images, "data_wait": self._waited / seconds}
        if self._flops:
            found["flops_per_second"] = rate * self._flops
        if self._flops and self._peak:
            found["mfu"] = rate * self._flops / self._peak
        self.begin(step)
        return found


class Stop:
    """Lets all processes agree on whether to stop.

    They do so about every two seconds, since each has to wait for the others; the slowest process's updates determine
    after how many steps that is.
    """

    def __init__(self, step: int) -> None:
        self._asked, self._next, self._since = step, step + 1, time.monotonic()

    def after(self, step: int, wanted: bool) -> bool:
        """To be called after every step; the same in all processes. `wanted`: this process was asked to stop."""
        if jax.process_count() == 1:
            return wanted
        if step < self._next:
            return False
        now = time.monotonic()
        any_wanted, seconds = all_reduce_max(wanted, (now - self._since) / (step - self._asked))
        self._next = step + max(1, min(round(_ASK_SECONDS / max(seconds, 1e-6)), _ASK_MOST))
        self._asked, self._since = step, now
        return bool(any_wanted)


def run_loop(
    task: Task,
    state: TrainState,
    frozen: Frozen,
    update: Update,
    batches: Iterator[Batch],
    config: TrainerConfig,
    rates: Rates,
    workdir: Path,
    checkpoints: Checkpoints,
    evaluators: Mapping[str, Evaluator],
) -> tuple[TrainState, bool]:
    """Trains from `state.step` to `config.steps`; returns the state, and whether training is finished.

    Metrics go to `workdir`, see `writers.make_writer`, and the profiler's trace to `profile/` in it. Ctrl-C or SIGTERM
    ends training early, with a checkpoint. Raises `InputError` if a batch can't be read, with a checkpoint too unless
    there are other processes, which may be in the next update; and if a loss is not finite, without a checkpoint.
    """
    # Imports TensorFlow, which takes seconds that commands which fail early or don't train shouldn't wait for.
    from bksdm_jax.training.writers import make_writer  # noqa: PLC0415

    first = int(state.step)
    writer = make_writer(workdir, first)
    writers = {name: make_writer(workdir, first, name) for name, one in evaluators.items() if one.metrics}
    previous: tuple[int, Mapping[str, jax.Array]] | None = None
    barrier("ready to train")  # all have compiled, and the first process has its writers
    stop, rate = Stop(first), _compiled_rate(config.optimizer)
    rates.begin(first)
    with Interrupts() as interrupts, Progress("training", config.steps, done=first) as progress, ExitStack() as profile:
        for step in range(first + 1, config.steps + 1):
            if step == config.profile_step and is_first():
                profile.enter_context(jax.profiler.trace(workdir / "profile"))
            with _saving_before_errors(state, previous, checkpoints):
                batch = rates.next_batch(batches)
            state, metrics = update(state, frozen, batch)
            if config.profile_step and step == config.profile_step + PROFILED - 1:
                jax.block_until_ready(metrics)  # clu's periodic_actions.Profile wouldn't wait
                profile.close()
            if previous is not None:  # waits for it, so that one update runs while the next is prepared
                _finite_values(*previous)
            previous = (step, metrics)
            logging_now = _due(step, config.log_every, config.steps)
            stopping = stop.after(step, interrupts.wanted)  # read once per step, so that the step that stops also saves
            saving = _due(step, config.checkpoint_every, config.steps) or stopping
            values = _finite_values(step, metrics) if logging_now or saving else {}
            if logging_now:
                facts = {"learning_rate": float(rate(step - 1))} | task.facts(values)
                writer.write_scalars(step, values | facts | rates.until(step) | {"host_memory": resident() / 2**30})
                writer.flush()
            if due := {name: one for name, one in evaluators.items() if _due(step, one.every, config.steps)}:
                _evaluate(due, step, state, frozen, writers)  # before saving, since a continued run won't repeat them
                rates.begin(step)
            if saving:
                give_back()
                checkpoints.save(state)
            progress.advance(note=f"loss {values['loss']:.4g}" if values else "")
            if stopping:
                return state, step == config.steps
    return state, True


@contextmanager
def _saving_before_errors(
    state: TrainState, last: tuple[int, Mapping[str, jax.Array]] | None, checkpoints: Checkpoints
) -> Iterator[None]:
    """Saves the state if a batch can't be read, and says so in the `InputError`.

    `last` are step and metrics of the last update; None: there was none.
    """
    try:
        yield
    except InputError as error:
        if jax.process_count() == 1 and last is not None:
            _finite_values(*last)
            checkpoints.save(state)
            done = f"; the state of step {last[0]} was saved, and the same command continues from there"
        else:
            saved = checkpoints.latest()
            done = f"; the same command continues from step {saved}" if saved else ""
        raise InputError(f"{error}{done}") from error


def _compiled_rate(config: OptimizerConfig) -> Callable[[int], Any]:
    rate = learning_rate(config)
    rate(0)  # compiles its operations, which must not count as training
    return rate


def _evaluate(
    evaluators: Mapping[str, Evaluator], step: int, state: TrainState, frozen: Frozen, writers: Mapping[str, Any]
) -> None:
    for name, evaluator in evaluators.items():
        with waiting(f"{name} at step {step}"):
            found = evaluator.run(step, state, frozen)
        if evaluator.metrics:
            writers[name].write_scalars(step, found)
            writers[name].flush()


def _due(step: int, period: int, steps: int) -> bool:
    return step == steps or (period > 0 and step % period == 0)


def _finite_values(step: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """The metrics of a step as floats, the losses first."""
    names = sorted(metrics, key=lambda name: (not name.startswith("loss"), name))
    values = {name: float(np.asarray(metrics[name])) for name in names}
    if not np.isfinite([values["loss"], values["grad_norm"], values["update_norm"]]).all():
        facts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise InputError(
            f"training: the loss is not finite at step {step} ({facts}); earlier checkpoints are kept; "
            "try a lower optimizer.learning_rate, or dtype float32"
        )
    return values
