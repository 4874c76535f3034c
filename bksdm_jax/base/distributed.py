"""The processes of a run: one per host of a TPU pod or per node of a cluster, one in all on a single machine."""

import itertools
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.processes import NONE, ProcessConfig, require_processes
from bksdm_jax.base.progress import QUIET, waiting

_BARRIER_TIMEOUT = 24 * 3600  # seconds; dead processes are noticed earlier, by their missing heartbeats
_SHUTDOWN_TIMEOUT = 60  # seconds that a process waits for the others when it ends
_barriers = itertools.count()


def connect(config: ProcessConfig) -> None:
    """Connects to the other processes; must come before any other use of JAX.

    Raises:
        InputError: bad settings, no cluster found, or processes that don't connect in time.
    """
    require_processes(config)
    if config.distributed == NONE:
        return
    options = {"initialization_timeout": config.timeout, "shutdown_timeout_seconds": _SHUTDOWN_TIMEOUT}
    if config.explicit:
        options |= {
            "coordinator_address": config.distributed,
            "num_processes": config.processes,
            "process_id": config.process_id,
        }
    elif gpus := _gpus_of_single_task():
        options["local_device_ids"] = gpus
    # Otherwise the runtime intercepts SIGTERM, and a process outside the training loop, which handles it, would go on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # the runtime and the cluster detection raise many types
        where = f"at {config.distributed}" if config.explicit else "of this cluster"
        raise InputError(f"--distributed: can't connect the processes {where} ({in_short(error)})") from error


def _gpus_of_single_task() -> list[int] | None:
    """All GPUs of the node if SLURM runs a single task on it; JAX would take one GPU per task."""
    alone = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if alone and gpus.isdigit() and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None


def is_first() -> bool:
    """Whether this is the process that writes configs, metrics and models."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Waits until every process has arrived; `what` names the barrier.

    It goes through the coordinator, since collectives on devices time out within seconds on some platforms.
    """
    name = f"{what} {next(_barriers)}"  # the coordinator requires unique names
    with waiting("waiting for the other processes", QUIET):
        multihost.sync_global_processes(name, timeout=_BARRIER_TIMEOUT, processes=set(range(jax.process_count())))


def compiled_together(jitted: Any, what: str) -> Callable[..., Any]:
    """A jitted function for arguments of one shape, which runs only after all processes have compiled it.

    Progress says that `what` is compiled. One process may find the program in the compilation cache while another
    compiles it for minutes.
    """
    compiled = None

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            with waiting(f"compiling {what}"):
                compiled = jitted.lower(*arguments).compile()
                barrier("compiled")
        return compiled(*arguments)

    return call


def all_reduce_max(*values: float) -> tuple[float, ...]:
    """The maximum of each value over all processes; every process must call it."""
    if jax.process_count() == 1:
        return values
    found = multihost_utils.process_allgather(np.array(values, np.float32))
    return tuple(float(value) for value in found.max(axis=0))
