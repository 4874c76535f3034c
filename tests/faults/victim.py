"""`launch.train`, which also notes what it trains on: `python -m tests.faults.victim FLAGS`.

`FAULTS_NOTES` is a file that gets a line of JSON for each state that training begins with, and for each batch.
`FAULTS_POISON` are steps, separated by commas, whose latents are NaN.
"""

import importlib.abc
import importlib.machinery
import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.digest import digest

TASK = "bksdm_jax.tasks.distill.task"
NAN = 0x7FC0
"""NaN as the bits of a bfloat16."""


def note(**facts: Any) -> None:
    """Appends a line, in one write, so that a kill leaves a whole one or none."""
    with Path(os.environ["FAULTS_NOTES"]).open("ab", buffering=0) as file:
        file.write((json.dumps(facts) + "\n").encode())


def watch(task: Any) -> None:
    """From now on, batches and states are noted."""
    import numpy as np

    from bksdm_jax.training.loop import Loop

    poison = {int(step) for step in os.environ.get("FAULTS_POISON", "").split(",") if step}
    batches, run = task.batches, Loop.run

    def noted(self: Any, step: int, rows: Any) -> Iterator[dict[str, Any]]:
        for batch in batches(self, step, rows):
            step += 1
            spoilt = {"moments": np.full_like(batch["moments"], NAN)} if step in poison else {}
            note(step=step, names=self.example_names(step - 1), batch=digest(batch | spoilt))
            yield batch | spoilt

    def begun(self: Loop, state: Any, *rest: Any) -> Any:
        note(begun=int(state.step), state=digest(state))
        return run(self, state, *rest)

    task.batches, Loop.run = noted, begun


class Watched(importlib.abc.MetaPathFinder):
    """Calls `watch` when the program imports the task, so that it starts as it does otherwise."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The module's own spec, whose execution ends in `watch`."""
        if name != TASK:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def executed(module: Any) -> None:
            execute(module)
            watch(module.DistillTask)

        spec.loader.exec_module = executed
        return spec


def main() -> None:
    """Runs the program."""
    sys.meta_path.insert(0, Watched())
    sys.argv[0] = "train"
    runpy.run_module("launch.train", run_name="__main__")


if __name__ == "__main__":
    main()
