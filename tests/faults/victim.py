"""`launch.train`, which also notes what it trains on: `python -m tests.faults.victim FLAGS`.

`FAULTS_NOTES` is a file that gets a line of JSON for each state that training begins with, and for each batch.
`FAULTS_POISON` are steps, separated by commas, whose latents are NaN.
"""

import hashlib
import json
import os
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bksdm_jax.tasks.distill.task import DistillTask
from bksdm_jax.training.loop import Loop

NAN = 0x7FC0
"""NaN as the bits of a bfloat16."""


def digest(state: Any) -> str:
    """Of the numbers in a state, whatever its containers and shardings are."""
    found = sorted(hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for leaf in jax.tree.leaves(state))
    return hashlib.sha256("".join(found).encode()).hexdigest()


def note(**facts: Any) -> None:
    """Appends a line, in one write, so that a kill leaves a whole one or none."""
    with open(os.environ["FAULTS_NOTES"], "ab", buffering=0) as file:
        file.write((json.dumps(facts) + "\n").encode())


def main() -> None:
    """Runs the program."""
    poison = {int(step) for step in os.environ.get("FAULTS_POISON", "").split(",") if step}
    batches, run = DistillTask.batches, Loop.run

    def noted(self: DistillTask, step: int, rows: Any) -> Iterator[dict[str, Any]]:
        for batch in batches(self, step, rows):
            step += 1
            if step in poison:
                batch = batch | {"moments": np.full_like(batch["moments"], NAN)}
            note(step=step, names=self.example_names(step - 1), batch=digest(batch))
            yield batch

    def begun(self: Loop, state: Any, *rest: Any) -> Any:
        note(begun=int(state.step), state=digest(state))
        return run(self, state, *rest)

    DistillTask.batches, Loop.run = noted, begun
    sys.argv[0] = "train"
    runpy.run_module("launch.train", run_name="__main__")


if __name__ == "__main__":
    main()
