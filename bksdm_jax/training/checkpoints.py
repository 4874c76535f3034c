"""Training checkpoints with Orbax: `checkpoints/STEP/`, written atomically."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.signals import Interrupts
from bksdm_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run; use as a context manager, which waits for pending writes at its end."""

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: how many of the newest are kept; 0: all."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, create=True)
        self._folder = folder
        with self._explained("can't be opened; move it away to start over"):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        problem = "the last checkpoint can't be written; is the disk full?"
        with Interrupts() as interrupts, self._explained(problem), waiting("writing the last checkpoint", QUIET):
            self._manager.close()
        if interrupts.wanted:  # only now: Orbax's threads crash if the interpreter exits while they write
            raise KeyboardInterrupt

    def latest(self) -> int | None:
        """The newest checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes `state` under its step in the background, unless that checkpoint exists."""
        step = int(state.step)
        if step != self._manager.latest_step():
            with self._explained(f"checkpoint {step} can't be written; is the disk full?"):
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes, dtypes and shardings of `like`, whose leaves are `ShapeDtypeStruct`s.

        Raises `InputError` if the checkpoint is damaged or of another network.
        """
        step = self._manager.latest_step()
        with self._explained(f"checkpoint {step} can't be restored; delete it to continue from the one before"):
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    @contextlib.contextmanager
    def _explained(self, problem: str) -> Iterator[None]:
        """Turns Orbax's errors, of many types, into an `InputError`."""
        try:
            yield
        except Exception as error:
            raise InputError(f"{self._folder}: {problem} ({in_short(error, 300)})") from error
