"""An update that wasn't finite, saved with all that is needed to compute exactly it again."""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from bksdm_jax.base.compiling import lower
from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.training.health import Health, Outcome
from bksdm_jax.training.layouts import relaid
from bksdm_jax.training.sharding import batch_to_global, own_rows, per_device
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.task import Task
from bksdm_jax.training.train_step import GO, SIGNALS, TrainStep, update_key

FOLDER = "not_finite"
_STATE, _FACTS = "state", "step.json"


def save_step(workdir: Path, task: Task, state: TrainState, outcome: Outcome, seed: int) -> Path:
    """Writes `not_finite/STEP/` for a skipped update, whose state has counted it: the state before, names, key, norms.

    All processes must call it; an older folder of that step is replaced.
    """
    folder = workdir.absolute() / FOLDER / f"{outcome.step:06d}"
    before = state.replace(step=state.step - 1, skipped=state.skipped - 1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / _STATE, before, force=True)
    if is_first():
        key = jax.random.key_data(update_key(seed, outcome.step - 1))
        facts = {
            "step": outcome.step,
            "examples": task.example_names(outcome.step - 1),
            "key": [int(word) for word in key],
            "metrics": outcome.values | {name: repr(value) for name, value in outcome.others.items()},
        }
        write_json(folder / _FACTS, facts)
    barrier("step saved")
    return folder


def replay(task: Task, folder: str, step: TrainStep, frozen: Any, mesh: Mesh, micro_batch: int) -> str:
    """Computes the update that a folder of `save_step` is of, and describes it; changes nothing.

    Raises `InputError` if the folder isn't one of those, or is of another network.
    """
    path = local_path("replay", folder).absolute()
    facts = read_json(path / _FACTS)
    if not isinstance(facts.get("step"), int) or not isinstance(facts.get("examples"), list):
        raise InputError(f"{path / _FACTS}: not of a saved step")
    try:
        with ocp.StandardCheckpointer() as checkpointer, waiting("reading the state", QUIET):
            state = relaid(checkpointer.restore(path / _STATE, step.state), step.state)
    except Exception as error:  # Orbax's are of many types
        raise InputError(f"{path}: can't be restored; it is of another network ({in_short(error)})") from error
    with waiting("compiling the update"):
        compiled = lower(step.update, state, frozen, step.batch).compile()
    batches = task.batches(int(state.step), own_rows(mesh, micro_batch))
    batch = batch_to_global(mesh, next(batches)) | {SIGNALS: per_device(mesh, GO)}
    outcome = Health().judge(facts["step"], compiled(state, frozen, batch)[1])
    lines = [f"step {outcome.step}: {json.dumps(facts['examples'], ensure_ascii=False)}"]
    before = facts.get("metrics", {})
    for name, value in (outcome.others | outcome.values).items():
        lines.append(f"{name} {value:.9g}; in the run {before.get(name)}")
    return "\n".join(lines)
