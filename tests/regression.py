"""A task for the trainer that compiles in a moment: a line through points, whose batches follow from their step."""

import csv
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.training import trainer
from bksdm_jax.training.config import TrainerConfig
from bksdm_jax.training.state import OptimizerConfig
from bksdm_jax.training.task import Evaluator, Task
from bksdm_jax.training.train_step import Objective

SLOPE, ROWS = np.array([1.0, -2.0, 3.0], np.float32), 8
CONFIG = {"batch_size": 2 * ROWS, "accumulation": 2, "dtype": "float32", "log_every": 1, "checkpoint_every": 4}
RATE = OptimizerConfig(learning_rate=0.1)


def squared_error(params: Any, ema: Any, frozen: Any, batch: Any, keys: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    noise = jax.vmap(jax.random.normal)(keys)
    total = jnp.mean(jnp.square(batch["x"] @ params["slope"] - batch["x"] @ frozen["truth"]["slope"] - 0.1 * noise))
    return total, {"loss": total}


class Regression(Task):
    """A line through points; every batch follows from its step."""

    def __init__(
        self,
        stop_before: int = -1,
        damaged: int = -1,
        infinite: Callable[[int], bool] = lambda step: False,
        probe: Callable[[int], object] = lambda step: None,
    ) -> None:
        """What goes wrong.

        Args:
            stop_before: SIGTERM comes while the batch of this step is read.
            damaged: the batch of this step is unreadable.
            infinite: whether the loss of a step is NaN.
            probe: called with each step that is evaluated.
        """
        self.stop_before, self.damaged, self.infinite, self.probe = stop_before, damaged, infinite, probe
        self.written, self.evaluated = [], []
        shapes = {"slope": jax.ShapeDtypeStruct((3,), jnp.float32)}
        batch = {"x": jax.ShapeDtypeStruct((2, ROWS, 3), jnp.float32)}
        self.objective = Objective(squared_error, shapes, {"truth": shapes}, batch)

    def initial_params(self) -> Any:
        return {"slope": np.zeros(3, np.float32)}

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        yield "truth", {"slope": SLOPE}

    def batches(self, step: int, rows: Any) -> Iterator[dict[str, Any]]:
        while True:
            if step == self.stop_before:
                os.kill(os.getpid(), signal.SIGTERM)
            if step == self.damaged:
                raise InputError("cat.png: truncated")
            x = np.random.default_rng(step).standard_normal((2, ROWS, 3)).astype(np.float32)[:, list(rows)]
            yield {"x": np.full_like(x, np.inf) if self.infinite(step) else x}
            step += 1

    def evaluators(self, mesh: Any, workdir: Path) -> dict[str, Evaluator]:
        def distance(step: int, state: Any, frozen: Any) -> dict[str, float]:
            self.evaluated.append(step)
            self.probe(step)
            return {"distance": float(jnp.abs(state.params["slope"] - frozen["truth"]["slope"]).max())}

        def seen(step: int, state: Any, frozen: Any) -> dict[str, float]:
            self.evaluated.append(f"seen {step}")
            return {}

        return {"probe": Evaluator(2, distance), "look": Evaluator(0, seen, metrics=False)}

    def example_names(self, step: int) -> list[str]:
        return [f"{step}.png"]

    def facts(self, metrics: Any) -> dict[str, float]:
        return {"root": metrics["loss"] ** 0.5} if "loss" in metrics else {}

    def write(self, params: Any, workdir: Path) -> Any:
        self.written.append(params)
        return params["slope"]

    def result(self, workdir: Path) -> Any:
        return workdir / "result"


def run(workdir: Path, steps: int = 7, task: Regression | None = None, **settings: Any) -> tuple[Any, Regression]:
    task = task or Regression()
    return trainer.train(task, TrainerConfig(**{"steps": steps, "optimizer": RATE} | CONFIG | settings), workdir), task


def table(path: Path) -> list[dict[str, str]]:
    """A table without what depends on the clock and the machine."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {k: v for k, v in row.items() if "second" not in k and k not in ("data_wait", "host_memory")} for row in rows
    ]


def checkpoint_steps(workdir: Path, name: str = "checkpoints") -> list[int]:
    """The steps of all checkpoints that a run would look at."""
    folder = workdir / name
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []
