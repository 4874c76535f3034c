"""Processes that want one folder at the same moment: `python -m tests.lock_races workdirs|folders FOLDER`."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bksdm_jax.base import locks
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.folders import atomic_folder
from bksdm_jax.base.workdir import claim, require_same

PROCESSES, ROUNDS = 3, 50
_PERIOD = 0.04  # seconds
_WRITTEN = 20


def workdirs(folder: Path, number: int, start: float) -> int:
    """Tries one workdir after the other, and keeps it; `won_*` in it, or `lost_*` beside it, tells."""
    locks._SIGNING = 0.0
    for turn in range(ROUNDS):
        workdir, begin = folder / f"{turn}", start + _PERIOD * turn
        time.sleep(max(0.0, begin - 0.002 - time.monotonic()))
        while time.monotonic() < begin:
            pass
        try:
            require_same(workdir, {"seed": 0}, ())
            claim(workdir, {"seed": 0})
            (workdir / f"won_{number}").touch()
        except InputError:
            (folder / f"lost_{turn}_{number}").touch()
    time.sleep(max(0.0, start + _PERIOD * ROUNDS + 0.2 - time.monotonic()))
    return 0


def folders(folder: Path, number: int, start: float) -> int:
    """Writes one folder again and again; 1 if it was given one that isn't empty."""
    time.sleep(max(0.0, start - time.monotonic()))
    written = 0
    while written < _WRITTEN:
        try:
            with atomic_folder(folder / "made") as made:
                if any(made.iterdir()):
                    return 1
                for name in ("a", "b"):
                    (made / name).write_text(str(number))
        except InputError:
            time.sleep(0.001)
        else:
            written += 1
    return 0


def _race(call: Callable[[Path, int, float], int], folder: Path) -> bool:
    start, children = time.monotonic() + 0.2, []
    for number in range(PROCESSES):
        if (child := os.fork()) == 0:
            os._exit(call(folder, number, start))
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children] == [0] * PROCESSES


if __name__ == "__main__":
    sys.exit(not _race({"workdirs": workdirs, "folders": folders}[sys.argv[1]], Path(sys.argv[2])))
