"""The training loop of all tasks."""

import collections
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging
from jax.sharding import Mesh

from bksdm_jax.base.distributed import any_process, barrier, is_first
from bksdm_jax.base.errors import InputError, NotFiniteError, in_short
from bksdm_jax.base.exits import FAILED, RESTART
from bksdm_jax.base.files import is_full
from bksdm_jax.base.memory import give_back, resident
from bksdm_jax.base.peers import before_leaving
from bksdm_jax.base.progress import Progress, stacks_if_stalled, waiting
from bksdm_jax.base.signals import Interrupted, Interrupts, leaving
from bksdm_jax.training.adamw import learning_rate
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import PROFILED, STOP_WITHOUT_ROOM, TrainerConfig
from bksdm_jax.training.health import Health, Outcome, advice, cause
from bksdm_jax.training.rates import Rates
from bksdm_jax.training.replay import save_step
from bksdm_jax.training.sharding import batch_sharding, per_device, zeros
from bksdm_jax.training.state import OptimizerConfig, TrainState
from bksdm_jax.training.task import Evaluator, Task
from bksdm_jax.training.train_step import GO, SIGNALS, STOP, UNUSABLE, Batch, Frozen, Update

Facts = Callable[[list[str]], dict[str, Any]]
"""Names of the evaluators that are due but haven't run -> what to save with a state."""


class Loop:
    """Trains from a state to `config.steps`; the same in all processes.

    What a process wants (to stop, or that its part of a batch can't be used) travels with the batch, so that all
    learn of it with the update's metrics, which are read while the next update runs.
    """

    def __init__(
        self,
        task: Task,
        frozen: Frozen,
        update: Update,
        norms: Callable[[TrainState], Mapping[str, jax.Array]],
        config: TrainerConfig,
        rates: Rates,
        workdir: Path,
        checkpoints: Checkpoints,
        evaluators: Mapping[str, Evaluator],
        facts: Facts,
        mesh: Mesh,
    ) -> None:
        """`norms` of the state are taken at the steps that log.

        `workdir` gets the metrics, see `writers.make_writer`, and the profiler's trace in `profile/`.
        """
        self._task, self._frozen, self._update, self._config = task, frozen, update, config
        self._norms = norms
        self._rates, self._workdir, self._checkpoints, self._evaluators = rates, workdir, checkpoints, evaluators
        self._facts, self._mesh = facts, mesh
        self._signals = {signal: per_device(mesh, signal) for signal in (GO, STOP, UNUSABLE)}
        self._health = Health()
        self._unread: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._writers: dict[str, Any] = {}
        self._last: tuple[TrainState, list[str]] | None = None
        self._broken: InputError | None = None

    def run(self, state: TrainState, batches: Iterator[Batch], pending: list[str]) -> tuple[TrainState, bool]:
        """Returns the state, and whether training is finished; `pending` evaluators run before the first update.

        Ctrl-C or SIGTERM ends training early, with a checkpoint. Raises `InputError`, with a checkpoint, if a batch
        can't be read, and without one if too many updates in a row aren't finite.
        """
        config, first = self._config, int(state.step)
        pending = [name for name in pending if name in self._evaluators]  # they may be switched off since
        self._open_writers(first, pending)
        rate = _compiled_rate(config.optimizer)
        barrier("ready to train")  # all have compiled, and the first process has its writers
        total = config.steps
        with (
            before_leaving(self._rescue),
            Interrupts() as interrupts,
            Progress("training", total, first) as progress,
            ExitStack() as profile,
        ):
            if pending and (left := self._evaluate(pending, first, state, interrupts)):
                self._save(state, left)
                return state, False
            self._rates.begin(first)
            for step in range(first + 1, total + 1):
                if step == config.profile_step and is_first():
                    profile.enter_context(jax.profiler.trace(self._workdir / "profile"))
                self._require_room()
                due = [name for name, one in self._evaluators.items() if _due(step, one.every, total)]
                logging_now, saving = _due(step, config.log_every, total), _due(step, config.checkpoint_every, total)
                with stacks_if_stalled(config.stack_dump_seconds):
                    batch = self._next(batches, interrupts)
                    self._last = None  # the update takes the state's memory
                    state, metrics = self._update(state, self._frozen, batch)
                    self._last = state, due
                    self._unread.append((step, metrics))
                    if config.profile_step and step == config.profile_step + PROFILED - 1:
                        jax.block_until_ready(metrics)  # clu's periodic_actions.Profile wouldn't wait
                        profile.close()
                    stopping = interrupts.wanted and jax.process_count() == 1
                    outcome = self._judge(state, batch, at_once=bool(logging_now or saving or due or stopping))
                    stopping |= outcome is not None and outcome.signal == STOP
                    norms = {name: float(norm) for name, norm in self._norms(state).items()} if logging_now else {}
                if logging_now:
                    values = outcome.values
                    facts = {"learning_rate": float(rate(step - 1 - int(values["skipped"])))} | self._task.facts(values)
                    facts |= {name: norm for name, norm in norms.items() if outcome.applied and math.isfinite(norm)}
                    facts |= self._rates.until(step) | {"host_memory": resident() / 2**30}
                    self._write("", step, values | facts)
                left = []
                if due:  # before saving, so that a run doesn't continue from weights that can't be evaluated
                    left = due if stopping else self._evaluate(due, step, state, interrupts)
                    self._rates.begin(step)
                    stopping |= bool(left)
                if stopping or (saving and (step == total or not self._health.in_a_row)):
                    self._save(state, left)
                known = outcome is not None and outcome.step == step and "loss" in outcome.values
                progress.advance(note=f"loss {outcome.values['loss']:.4g}" if known else "")
                if stopping:
                    return state, step == total and not left
        return state, True

    def _rescue(self) -> None:
        """Saves the state, if it is at rest and here as a whole, since another process is lost."""
        if self._last and not self._health.in_a_row:
            state, left = self._last
            try:
                self._checkpoints.save_alone(state, self._facts(left))
            except Exception as error:  # of many types, as of an update that can't end without the others
                logging.warning("the state since the newest checkpoint isn't saved (%s)", in_short(error))

    def _open_writers(self, first: int, pending: list[str]) -> None:
        # Imports TensorFlow, which takes seconds that commands which fail early or don't train shouldn't wait for.
        from bksdm_jax.training.writers import make_writer  # noqa: PLC0415

        names = ["", *(name for name, one in self._evaluators.items() if one.metrics)]
        self._writers = {name: make_writer(self._workdir, first - (name in pending), name) for name in names}

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        self._writers[name].write_scalars(step, values)
        self._writers[name].flush()

    def _judge(self, state: TrainState, batch: Batch, at_once: bool) -> Outcome | None:
        """What is known of the updates so far: all `at_once`, else all but the last, which runs meanwhile."""
        outcome = None
        at_once |= self._config.most_skipped == 1  # so that the state before a skipped update is known
        while len(self._unread) > (0 if at_once or self._health.in_a_row else 1):
            outcome = self._health.judge(*self._unread.popleft())
            if outcome.signal == UNUSABLE:
                self._end_unusable(state, outcome)
            if self._health.in_a_row >= self._config.most_skipped:
                self._end_not_finite(state, batch, outcome)
        return outcome

    def _next(self, batches: Iterator[Batch], interrupts: Interrupts) -> Batch:
        """The next batch with what this process wants; one of zeros, marked as such, if it can't be read."""
        if self._broken is None:
            try:
                batch = self._rates.next_batch(batches)
                several = jax.process_count() > 1
                return batch | {SIGNALS: self._signals[STOP if several and interrupts.wanted else GO]}
            except InputError as error:
                self._broken = error
        return zeros(self._task.objective.batch, batch_sharding(self._mesh)) | {SIGNALS: self._signals[UNUSABLE]}

    def _end_unusable(self, state: TrainState, outcome: Outcome) -> NoReturn:
        """Saves the state before a batch that a process couldn't read, and raises that process's error."""
        if int(state.step) and not self._health.in_a_row:
            self._save(state, [], wait=True)
        done = self._continues()
        if self._broken is None:
            raise PeerError(f"training: another process can't read its part of batch {outcome.step}{done}")
        raise InputError(f"{self._broken}{done}") from self._broken

    def _end_not_finite(self, state: TrainState, batch: Batch, outcome: Outcome) -> NoReturn:
        """Saves the last of too many updates in a row that changed nothing, and raises an error that explains it."""
        why = cause(state, self._frozen, batch)
        told = (
            f"training: {self._health.in_a_row} update(s) up to step {outcome.step} were skipped, since numbers aren't "
            f"finite ({outcome.text()}); {why}; {self._advice()}"
        )
        try:
            folder = save_step(self._workdir, self._task, state, outcome, self._config.seed)
        except Exception as error:  # Orbax's are of many types; what is known matters more
            raise InputError(f"{told}; the last one can't be saved for a replay ({in_short(error)})") from error
        raise InputError(f"{told}; to compute the last one again: --config.replay={folder}")

    def _continues(self) -> str:
        saved = self._checkpoints.latest()
        return f"; the same command continues from step {saved}" if saved else ""

    def _advice(self) -> str:
        self._checkpoints.join()  # the newest one may just be being written
        return advice(self._config, self._checkpoints.steps(), str(self._checkpoints.folder))

    def _evaluate(self, due: list[str], step: int, state: TrainState, interrupts: Interrupts) -> list[str]:
        """Runs evaluators; returns the names of those that a signal has kept from it."""
        left = list(due)
        self._last = state, left

        def save(number: int) -> tuple[int, str] | None:
            """For a signal while a library compiles."""
            if jax.process_count() > 1:
                return None
            try:
                self._save(state, left, wait=True)
            except InputError as error:
                return FAILED, f"error: {error}"
            if self._checkpoints.problem:
                return FAILED, f"error: {self._checkpoints.problem}"
            return RESTART, f"interrupted; the same command continues after step {step}"

        alone = jax.process_count() == 1  # several must stop at the same place
        try:
            with leaving(save), interrupts.raising() if alone else nullcontext():
                while left and (alone or not any_process(interrupts.wanted)):
                    self._run_evaluator(left[0], step, state)
                    left.pop(0)
        except Interrupted:
            if not interrupts.wanted:
                raise
        except NotFiniteError:
            raise
        except InputError as error:
            if alone:
                self._save(state, left, wait=True)
            raise InputError(f"{error}{self._continues()}") from error
        return left

    def _run_evaluator(self, name: str, step: int, state: TrainState) -> None:
        evaluator = self._evaluators[name]
        try:
            with waiting(f"{name} at step {step}"):
                found = evaluator.run(step, state, self._frozen)
        except InputError as error:
            if not is_full(error.__cause__):
                raise
            logging.error("%s at step %d: %s; training goes on without it", name, step, error)
            return
        if wrong := [key for key, value in found.items() if not math.isfinite(value)]:
            why = cause(state, self._frozen, {})
            raise NotFiniteError(f"{name} at step {step}: {', '.join(wrong[:5])} not finite; {why}; {self._advice()}")
        if evaluator.metrics:
            self._write(name, step, found)

    def _save(self, state: TrainState, left: list[str], wait: bool = False) -> None:
        """Begins a checkpoint; raises `InputError` if it can't and the run is to end then."""
        give_back()
        self._checkpoints.join()
        self._require_room()
        self._checkpoints.save(state, self._facts(left), wait)
        self._require_room()

    def _require_room(self) -> None:
        if self._checkpoints.problem and self._config.without_room == STOP_WITHOUT_ROOM:
            raise self._checkpoints.problem


class PeerError(RuntimeError):
    """Another process has failed; `base.peers` ends this one with that one's reason."""


def _compiled_rate(config: OptimizerConfig) -> Callable[[int], Any]:
    rate = learning_rate(config)
    rate(0)  # compiles its operations, which must not count as training
    return rate


def _due(step: int, period: int, steps: int) -> bool:
    return step == steps or (period > 0 and step % period == 0)
