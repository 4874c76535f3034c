"""Training checkpoints: `STEP/` with the state, written by Orbax in the background, facts and checksums."""

import contextlib
import functools
import json
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from bksdm_jax.base.checksums import NAME, damage, write_checksums
from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.locks import locked
from bksdm_jax.base.memory import give_back
from bksdm_jax.base.paths import is_remote, to_path
from bksdm_jax.base.peers import take_time
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.signals import Interrupted, Interrupts
from bksdm_jax.training.sharding import on_host
from bksdm_jax.training.state import TrainState

_STATE, _FACTS = "state", "facts.json"
_DAMAGED = ".damaged"
_LATE, _GONE = 3600.0, 30.0  # seconds until another process completes a checkpoint; for which it may be invisible
_LOOK = 0.2  # seconds between two looks


class Checkpoints:
    """The checkpoints of one run; use as a context manager, which waits for what is being written at its end.

    Attributes:
        folder: of all checkpoints.
        problem: why the last checkpoint that was begun can't be written; None: it could.
        blocked: seconds that `save` took of the training's time.
    """

    def __init__(self, folder: str | Path, keep: int, keep_every: int = 0) -> None:
        """Checks the checkpoints in a folder, on disk or in a bucket, and removes or renames what isn't whole.

        Args:
            folder: created by the first checkpoint.
            keep: how many of the newest are kept; 0: all.
            keep_every: those whose step is a multiple are kept too; 0: none.

        Raises:
            InputError: the folder can't be used, or there are checkpoints of which none is whole.
        """
        self.problem: InputError | None = None
        self.blocked = 0.0
        self.folder, self._keep, self._keep_every = to_path(folder), keep, keep_every
        self._thread: threading.Thread | None = None
        self._saving = threading.Lock()  # a signal may come in another thread
        with self._explained("can't be opened; move it away to start over"):
            self._latest = self._newest_whole()
        _expect_late_writes()
        self._checkpointer = ocp.StandardCheckpointer()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with Interrupts() as interrupts, waiting("writing the last checkpoint", QUIET):
            self.join()
            with self._explained("the last checkpoint can't be written"):
                self._checkpointer.close()
        if self.problem and kind is None:
            raise self.problem
        if interrupts.wanted:  # only now: Orbax's threads crash if the interpreter exits while they write
            raise Interrupted(RESTART, f"interrupted; the newest checkpoint is {self._latest}")

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._latest

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were written to the end, ascending."""
        return sorted(step for step in _steps(self.folder) if (self.folder / str(step) / NAME).exists())

    def facts(self) -> dict[str, Any]:
        """What was saved with the newest whole checkpoint's state."""
        return read_facts(self.folder / str(self._latest))

    def save(self, state: TrainState, facts: Mapping[str, Any], wait: bool = False) -> None:
        """Writes `state` under its step in the background, with facts, plain data, unless that checkpoint exists.

        What goes wrong is logged, at once, and is in `problem` until the next call; then the older checkpoints are as
        they were. `wait`: returns when all is written.
        """
        begin = time.monotonic()
        with self._saving:
            self._save(state, facts)
            if wait:
                self.join()
        self.blocked += time.monotonic() - begin

    def _save(self, state: TrainState, facts: Mapping[str, Any]) -> None:
        step = int(state.step)
        self.join()
        if step != self._latest:
            self.problem = None
            try:
                if is_first():
                    with contextlib.suppress(OSError):  # the others wait; saving will fail in all alike
                        _remove(self.folder / str(step))
                if jax.process_count() == 1:
                    _require_folders(self.folder / str(step))
                barrier("ready to save")
                self._checkpointer.save(self.folder / str(step) / _STATE, state)
            except Exception as error:
                self._note(step, error)
            else:
                self._thread = threading.Thread(target=self._finish, args=(step, dict(facts)), name="checkpoint")
                self._thread.start()

    def save_alone(self, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Writes `state` from this process's devices, since others are lost; does nothing where that is impossible.

        Raises an error, of many types, if an update that needs the others hasn't ended.
        """
        whole = on_host(state)
        take_time()  # now it can't hang
        if whole is None or is_remote(self.folder) or int(whole.step) == self._latest:
            return
        step, alone = int(whole.step), {jax.process_index()}
        options = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes=alone, barrier_sync_key_prefix="alone"
        )
        with locked(Path(self.folder)):  # others that are left do the same
            checkpoint = self.folder / str(step)
            if damage(checkpoint):
                _remove(checkpoint)
                with ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
                    checkpointer.save(checkpoint / _STATE, whole)
                _complete(checkpoint, facts)
                logging.warning("the state of step %d was saved", step)

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes, dtypes and shardings of `like`, whose leaves are `ShapeDtypeStruct`s.

        Raises `InputError` if it is of another network.
        """
        with self._explained(f"checkpoint {self._latest} can't be restored; it is of another network or program"):
            return self._checkpointer.restore(self.folder / str(self._latest) / _STATE, like)

    def _finish(self, step: int, facts: dict[str, Any]) -> None:
        """Waits until a state is written, makes its checkpoint whole, and deletes old ones; runs in a thread."""
        folder = self.folder / str(step)
        try:
            self._checkpointer.wait_until_finished()
            if is_first():
                _complete(folder, facts)
            else:
                _wait_until_complete(folder)
        except Exception as error:
            self._note(step, error)
        else:
            self._latest = step
            if is_first():
                self._remove_outdated()
        give_back()  # else as much as the state stays resident, more after some saves than after others

    def join(self) -> None:
        """Waits until what is being written is."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def _note(self, step: int, error: Exception) -> None:
        last = f"the newest whole one is {self._latest}" if self._latest is not None else "there is no other"
        self.problem = InputError(
            f"{self.folder}: checkpoint {step} can't be written ({_reason(error)}); {last}; "
            "is the disk full, or read-only?"
        )
        logging.error("%s", self.problem)
        if is_first():
            with contextlib.suppress(OSError):
                _remove(self.folder / str(step))  # its space may be what the next one needs

    def _remove_outdated(self) -> None:
        try:
            steps = sorted(_steps(self.folder), reverse=True)
            for step in steps[self._keep :] if self._keep else []:
                if not self._keep_every or step % self._keep_every:
                    _remove(self.folder / str(step))
        except Exception as error:  # the new one is whole all the same
            logging.warning("%s: old checkpoints can't be deleted (%s)", self.folder, _reason(error))

    def _newest_whole(self) -> int | None:
        """The newest whole checkpoint's step, the same in all processes."""
        found = -1
        if is_first():
            with waiting("checking the newest checkpoint", QUIET):
                whole = newest_whole(self.folder, tidy=True)
            found = -1 if whole is None else whole
        barrier("checkpoints are checked")
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return None if found < 0 else found

    @contextlib.contextmanager
    def _explained(self, problem: str) -> Iterator[None]:
        """Turns Orbax's errors, of many types, into an `InputError`."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{self.folder}: {problem} ({in_short(error, 300)})") from error


def newest_whole(folder: epath.Path, tidy: bool = False) -> int | None:
    """The step of the newest checkpoint that is whole, None if there are no checkpoints.

    `tidy`: of newer ones, deletes those that were not written to the end, and renames damaged ones to `STEP.damaged`.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    damaged: dict[int, str] = {}
    unfinished: list[int] = []
    whole = None
    for step in sorted(_steps(folder), reverse=True):
        problem = damage(folder / str(step))
        if not problem:
            whole = step
            break
        logging.warning("%s: skipped, since %s", folder / str(step), problem)
        if (folder / str(step) / NAME).exists():
            damaged[step] = problem
        else:
            unfinished.append(step)
    if damaged and whole is None:
        told = "; ".join(f"{step}: {problem}" for step, problem in damaged.items())
        raise InputError(
            f"{folder}: no checkpoint is whole ({told}); restore one, or move the folder away to start over"
        )
    if tidy:
        for step in unfinished:
            _remove(folder / str(step))
        for step in damaged:
            _remove(folder / f"{step}{_DAMAGED}")
            (folder / str(step)).rename(folder / f"{step}{_DAMAGED}")
    return whole


def read_facts(checkpoint: epath.Path) -> dict[str, Any]:
    """What was saved with a whole checkpoint's state."""
    return json.loads((checkpoint / _FACTS).read_text())


def _complete(checkpoint: epath.Path, facts: Mapping[str, Any]) -> None:
    (checkpoint / _FACTS).write_text(json.dumps(facts, sort_keys=True, allow_nan=False))
    write_checksums(checkpoint)


def _wait_until_complete(checkpoint: epath.Path) -> None:
    """Waits for the first process, which completes a checkpoint; raises `TimeoutError` if it doesn't."""
    begin = seen = time.monotonic()
    while not (checkpoint / NAME).exists():
        now = time.monotonic()
        seen = now if checkpoint.exists() else seen
        if now - begin > _LATE or now - seen > _GONE:
            raise TimeoutError("the first process hasn't completed it")
        time.sleep(_LOOK)


def _require_folders(folder: epath.Path) -> None:
    """Makes a folder, and one in it for a moment; raises `OSError` if that can't be.

    If Orbax can't make its folders, its threads wait minutes for them, and the program can't end before.
    """
    if not is_remote(folder):
        folder.mkdir(parents=True)
        (folder / "any").mkdir()
        (folder / "any").rmdir()


@functools.cache
def _expect_late_writes() -> None:
    """Hides warnings of writes that outlive a failed checkpoint."""
    logging.logging.getLogger("asyncio").setLevel(logging.logging.CRITICAL)  # nothing else uses it
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    former = sys.unraisablehook

    def hook(told: Any) -> None:
        if told.object is not None or str(told.exc_value) != "Event loop is closed":
            former(told)

    sys.unraisablehook = hook


def _reason(error: Exception) -> str:
    """The system's reason, which TensorStore tells after long paths, or the beginning of the message."""
    found = re.search(r": ([^:]+) \[os_error_code=", str(error))
    return found[1] if found else in_short(error, 300)


def _steps(folder: epath.Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def _remove(folder: epath.Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder.rmtree()
