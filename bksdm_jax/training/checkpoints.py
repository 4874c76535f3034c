"""Training checkpoints with Orbax: `checkpoints/STEP/`, whole or absent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import orbax.checkpoint as ocp

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.signals import Interrupts
from bksdm_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run; use as a context manager, whose end waits for what is being written."""

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: how many of the newest stay; 0 keeps all."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, create=True)
        self._folder = folder
        with self._told("can't be opened; move it away to begin anew"):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with Interrupts() as interrupts, self._told("the last checkpoint can't be written; is the disk full?"):
            self._manager.close()
        if interrupts.wanted:  # only now: Orbax's threads would die of an interpreter that ends under them
            raise KeyboardInterrupt

    def latest(self) -> int | None:
        """The newest step that is there, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes `state` under its step, in the background; does nothing if that step is there."""
        step = int(state.step)
        if step != self._manager.latest_step():
            with self._told(f"checkpoint {step} can't be written; is the disk full?"):
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes, dtypes and shardings of `like`, whose leaves are `ShapeDtypeStruct`s.

        Raises:
            InputError: the checkpoint is damaged, or of another student.
        """
        step = self._manager.latest_step()
        with self._told(f"checkpoint {step} can't be restored; delete it to continue from the one before"):
            return self._manager.restore(step, args=ocp.args.StandardRestore(like))

    @contextlib.contextmanager
    def _told(self, problem: str) -> Iterator[None]:
        """Orbax's many errors as one line."""
        try:
            yield
        except Exception as error:
            raise InputError(f"{self._folder}: {problem} ({in_short(error, 300)})") from error
