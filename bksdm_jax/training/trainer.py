"""The trainer: starts or continues the training of any task."""

import json
from collections.abc import Collection
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from bksdm_jax.base.compiling import compile_beside, lower
from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.files import read_json
from bksdm_jax.base.locks import locked
from bksdm_jax.base.memory import explain_out_of_memory, give_back
from bksdm_jax.base.paths import MOST_READ, AnyPath, is_remote, to_path
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.signals import Interrupted, interrupted, leaving
from bksdm_jax.base.workdir import difference
from bksdm_jax.cost.chips import chip_of, peak_flops
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import TrainerConfig, require_whole_batches
from bksdm_jax.training.layouts import placements, relaid
from bksdm_jax.training.loop import Loop
from bksdm_jax.training.rates import Rates
from bksdm_jax.training.records import note_change, workdir_files
from bksdm_jax.training.replay import replay
from bksdm_jax.training.sharding import batch_to_global, device_put_global, gather_to_host, make_mesh, own_rows
from bksdm_jax.training.state import TrainState, create_state
from bksdm_jax.training.task import Task
from bksdm_jax.training.train_step import TrainStep, make_train_step

_RATE = "optimizer.learning_rate"
_RUN = ".run"  # the folder whose lock the run holds that uses a folder of checkpoints


def train(
    task: Task,
    config: TrainerConfig,
    workdir: Path,
    devices: list[jax.Device] | None = None,
    may_change: Collection[str] = (),
) -> Any | None:
    """Trains from the newest whole checkpoint, or from the task's initial parameters.

    `devices` are all that there are unless given; `may_change` are settings that may differ from those in the newest
    checkpoint. Returns the task's result, or None if the run was interrupted, with its state saved (the same call
    continues it).

    Raises:
        Interrupted: a signal came before there was anything to save.
        InputError: a batch that the devices can't share evenly, a workdir that is already further, checkpoints of
            another run, or that another program uses, an unreadable image, too many updates that aren't finite, a last
            checkpoint that can't be written, or too little memory.
    """
    with _locked_checkpoints(config):
        return _train(task, config, workdir, make_mesh(config.fsdp, devices), may_change)


def _locked_checkpoints(config: TrainerConfig) -> AbstractContextManager[None]:
    """Of a folder outside of the workdir, which has a lock of its own; one in a bucket can't be locked."""
    if not config.checkpoints or is_remote(config.checkpoints) or not is_first():
        return nullcontext()
    return locked(Path(to_path(config.checkpoints)) / _RUN)


def _train(task: Task, config: TrainerConfig, workdir: Path, mesh: Mesh, may_change: Collection[str]) -> Any | None:
    require_whole_batches(config, mesh.size)
    logging.info("%d device(s), mesh %s", mesh.size, dict(mesh.shape))
    checkpoints = Checkpoints(checkpoint_folder(config, workdir), config.keep_checkpoints, config.keep_every)
    _require_own(checkpoints, workdir, may_change)

    def left(number: int) -> tuple[int, str]:
        """For a signal outside of the loop."""
        if checkpoints.latest() is None:
            status, line = interrupted(number)
            return status, f"{line} before there was anything to save; the same command starts again"
        return RESTART, f"interrupted; the same command continues from step {checkpoints.latest()}"

    try:
        with (
            explain_out_of_memory(task.memory_advice),
            exact_products(config.dtype),
            jax.set_mesh(mesh),
            leaving(left),
        ):
            with checkpoints:
                done = _state_after(task, config, workdir, mesh, checkpoints)
            return None if done is None else _written(task, config, workdir, done)
    except Interrupted:
        if checkpoints.latest() is None:
            raise
        return None


def _require_own(checkpoints: Checkpoints, workdir: Path, may_change: Collection[str]) -> None:
    """Raises `InputError` if the newest checkpoint is of a run with other settings than the workdir's."""
    files = checkpoints.facts().get("files", {}) if checkpoints.latest() is not None else {}
    if "config.json" in files and (workdir / "config.json").is_file():
        present = read_json(workdir / "config.json", MOST_READ)
        if changed := difference(json.loads(files["config.json"]), present, may_change):
            changed = changed.replace("in this workdir", "in the newest checkpoint")
            raise InputError(f"{checkpoints.folder}: of another run: {changed}; choose another folder for checkpoints")


def checkpoint_folder(config: TrainerConfig, workdir: Path) -> AnyPath:
    """The folder of a run's checkpoints."""
    return to_path(config.checkpoints) if config.checkpoints else workdir / "checkpoints"


def train_again(task: Task, config: TrainerConfig) -> str:
    """Computes the skipped update in the folder `config.replay` again, and describes it.

    Raises `InputError` if the folder can't be used.
    """
    mesh = make_mesh(config.fsdp)
    require_whole_batches(config, mesh.size)
    with explain_out_of_memory(task.memory_advice), exact_products(config.dtype), jax.set_mesh(mesh):
        step = make_train_step(task.objective, config.optimizer, config.seed, mesh, config.conv_layout)
        task.initial_params()  # what comes before the frozen ones
        frozen = _device_put_frozen(task, step)
        return replay(task, config.replay, step, frozen, mesh, config.batch_size // config.accumulation)


def _state_after(
    task: Task, config: TrainerConfig, workdir: Path, mesh: Mesh, checkpoints: Checkpoints
) -> TrainState | None:
    """The state after the last update, from the newest checkpoint's or the initial one; None if interrupted before."""
    with waiting("preparing the update", QUIET):
        step = make_train_step(task.objective, config.optimizer, config.seed, mesh, config.conv_layout)
    if checkpoints.latest() is None:
        with waiting("preparing the initial weights", QUIET):
            state, pending = _initial_state(task, config, step), None if config.evaluate_first else []
    else:
        with waiting("reading the checkpoint", QUIET):
            state = relaid(checkpoints.restore(step.state), step.state)
        logging.info("continuing after step %d", int(state.step))
        facts = checkpoints.facts()
        pending = facts["pending"]
        note_change(workdir, int(state.step), _RATE, facts[_RATE], config.optimizer.learning_rate)
    return _train_on(task, config, workdir, state, pending, step, mesh, checkpoints)


def _written(task: Task, config: TrainerConfig, workdir: Path, state: TrainState) -> Any:
    with waiting("writing the result", QUIET):
        params = gather_to_host({"ema": state.average, "raw": state.params}[config.save_weights])
        result = task.write(params, workdir) if is_first() else task.result(workdir)
        barrier("written")
    return result


def _initial_state(task: Task, config: TrainerConfig, step: TrainStep) -> TrainState:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, step.state.params)
    params = device_put_global(task.initial_params(), shardings)
    optimizer, averaged = make_optimizer(config.optimizer), config.optimizer.ema_decay > 0
    return jax.jit(lambda p: create_state(p, optimizer, averaged), out_shardings=placements(step.state))(params)


def _train_on(
    task: Task,
    config: TrainerConfig,
    workdir: Path,
    state: TrainState,
    pending: list[str] | None,
    step: TrainStep,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> TrainState | None:
    """As `_state_after`; `pending` evaluators, or all if None, are due for `state`."""
    first = int(state.step)
    if first > config.steps:
        raise InputError(f"steps: {config.steps}, but the run in {workdir} is already at step {first}")
    if first == config.steps and not pending:
        logging.info("all %d steps are done", config.steps)
        return state
    with waiting("moving the frozen networks to the devices", QUIET):
        frozen = _device_put_frozen(task, step)
    with waiting("compiling the update"):
        compiled, norms = compile_beside(lower(step.update, state, frozen, step.batch), lower(step.norms, state))
    give_back()
    rows = own_rows(mesh, config.batch_size // config.accumulation)
    chip = chip_of(mesh.devices.flat[0].device_kind)
    peak = (peak_flops(chip, config.dtype) or 0.0) * mesh.size
    rates = Rates(config.batch_size, config.batch_size * task.flops_per_image, peak)
    with waiting("preparing the evaluators", QUIET):
        evaluators = task.evaluators(mesh, workdir)
        pending = list(evaluators) if pending is None else pending

    def facts(left: list[str]) -> dict[str, Any]:
        files = workdir_files(workdir) if config.checkpoints else {}
        return {"pending": left, _RATE: config.optimizer.learning_rate, "files": files}

    loop = Loop(task, frozen, compiled, norms, config, rates, workdir, checkpoints, evaluators, facts, mesh)
    with closing(task.batches(first, rows)) as batches:
        done, finished = loop.run(state, (batch_to_global(mesh, batch) for batch in batches), pending)
    return done if finished else None


def _device_put_frozen(task: Task, step: TrainStep) -> dict[str, Any]:
    """Casts the frozen networks to the update's dtypes and puts them on the devices, one after the other."""
    frozen = {}
    for name, params in task.frozen_params():
        like = step.frozen[name]
        cast = jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), params, like)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        frozen[name] = relaid(device_put_global(cast, shardings), like)
    give_back()
    return frozen
