"""Training checkpoints with Orbax: `checkpoints/STEP/`, whole or absent."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from bksdm_jax.errors import InputError
from bksdm_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run; use as a context manager, whose end waits for what is being written."""

    def __init__(self, folder: Path, keep: int) -> None:
        """`keep`: how many of the newest stay; 0 keeps all."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, create=True)
        self._folder, self._manager = folder, ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The newest step that is there, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes `state` under its step, in the background; does nothing if that step is there."""
        step = int(state.step)
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes, dtypes and shardings of `like`.

        Raises:
            InputError: the checkpoint is damaged, or of another student.
        """
        step = self._manager.latest_step()
        abstract: Any = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # Orbax raises many types
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{self._folder / str(step)}: this checkpoint can't be restored ({reason}); "
                "delete it to continue from the one before"
            ) from error
