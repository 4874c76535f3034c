"""The trainer: starts or continues the training of any task."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.memory import explain_out_of_memory, give_back
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.cost.chips import chip_of, peak_flops
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import TrainerConfig, require_whole_batches
from bksdm_jax.training.loop import Rates, run_loop
from bksdm_jax.training.sharding import batch_to_global, device_put_global, gather_to_host, make_mesh, own_rows
from bksdm_jax.training.state import TrainState, create_state, make_optimizer
from bksdm_jax.training.task import Task
from bksdm_jax.training.train_step import TrainStep, make_train_step


def train(task: Task, config: TrainerConfig, workdir: Path, devices: list[jax.Device] | None = None) -> Any | None:
    """Trains from the newest checkpoint in `workdir`, or from the task's initial parameters.

    `devices` are all that there are unless given. Returns the task's result, or None if the run was interrupted (the
    same call continues it).

    Raises:
        InputError: a batch that the devices can't share evenly, a workdir that is already further, an unreadable image,
            a loss that is not finite, or devices with too little memory.
    """
    mesh = make_mesh(config.fsdp, devices)
    require_whole_batches(config, mesh.size)
    logging.info("%d device(s), mesh %s", mesh.size, dict(mesh.shape))
    with (
        explain_out_of_memory(task.memory_advice),
        exact_products(config.dtype),
        jax.set_mesh(mesh),
        Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints,
    ):
        with waiting("preparing the update", QUIET):
            step = make_train_step(task.objective, config.optimizer, config.seed, mesh)
        if checkpoints.latest() is None:
            with waiting("preparing the initial weights", QUIET):
                state = _initial_state(task, config, step)
        else:
            with waiting("reading the checkpoint", QUIET):
                state = checkpoints.restore(step.state)
            logging.info("continuing after step %d", int(state.step))
        done = _train_on(task, config, workdir, state, step, mesh, checkpoints)
    if done is None:
        return None
    with waiting("writing the result", QUIET):
        params = gather_to_host({"ema": done.ema, "raw": done.params}[config.save_weights])
        result = task.write(params, workdir) if is_first() else task.result(workdir)
        barrier("written")
    return result


def _initial_state(task: Task, config: TrainerConfig, step: TrainStep) -> TrainState:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state)
    params = device_put_global(task.initial_params(), shardings.params)
    optimizer, trainable = make_optimizer(config.optimizer), task.objective.trainable
    return jax.jit(lambda p: create_state(p, optimizer, trainable), out_shardings=shardings)(params)


def _train_on(
    task: Task,
    config: TrainerConfig,
    workdir: Path,
    state: TrainState,
    step: TrainStep,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> TrainState | None:
    """The state after the last update; None if interrupted before."""
    first = int(state.step)
    if first > config.steps:
        raise InputError(f"steps: {config.steps}, but the run in {workdir} is already at step {first}")
    if first == config.steps:
        logging.info("all %d steps are done", config.steps)
        return state
    with waiting("moving the frozen networks to the devices", QUIET):
        frozen = _device_put_frozen(task, step)
    with waiting("compiling the update"):
        compiled = step.update.lower(state, frozen, step.batch).compile()
    give_back()
    rows = own_rows(mesh, config.batch_size // config.accumulation)
    chip = chip_of(mesh.devices.flat[0].device_kind)
    peak = (peak_flops(chip, config.dtype) or 0.0) * mesh.size
    rates = Rates(config.batch_size, config.batch_size * task.flops_per_image, peak)
    batches = (batch_to_global(mesh, batch) for batch in task.batches(first, rows))
    with waiting("preparing the evaluators", QUIET):
        evaluators = task.evaluators(mesh, workdir)
    state, finished = run_loop(task, state, frozen, compiled, batches, config, rates, workdir, checkpoints, evaluators)
    return state if finished else None


def _device_put_frozen(task: Task, step: TrainStep) -> dict[str, Any]:
    """Casts the frozen networks to the update's dtypes and puts them on the devices, one after the other."""
    frozen = {}
    for name, params in task.frozen_params():
        like = step.frozen[name]
        cast = jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), params, like)
        frozen[name] = device_put_global(cast, jax.tree.map(lambda leaf: leaf.sharding, like))
    give_back()
    return frozen
