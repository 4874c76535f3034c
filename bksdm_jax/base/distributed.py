"""The processes of one run: one for each host of a TPU pod, or for each node; on one machine there is one."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from bksdm_jax.base.errors import InputError, in_short, whole_number

NONE, AUTO = "none", "auto"
_PATIENCE = 24 * 3600  # seconds to wait for processes that live; one that died is found out by its missing heartbeats
_SHUTDOWN = 60  # seconds that the end of a process waits for the ends of the others
_meetings = itertools.count()


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Which processes make up a run.

    Attributes:
        distributed: `none`: this one alone; `auto`: as the cluster says (TPU pods, SLURM, Kubernetes, MPI); or
            `HOST:PORT` of the first process, with
        processes, process_id: how many there are, and this one's number, from 0.
        timeout: seconds to wait for the others.
    """

    distributed: str = NONE
    processes: int = 0
    process_id: int = -1
    timeout: int = 300


def connect(config: ProcessConfig) -> None:
    """Joins the other processes, before anything else is asked of JAX.

    Raises:
        InputError: settings that can't be used, no cluster where one was to be found, or others that don't come.
    """
    explicit = config.distributed not in (NONE, AUTO)
    if not explicit and (config.processes, config.process_id) != (0, -1):
        raise InputError(
            f"--distributed: {config.distributed}, which has no --processes or --process_id; give HOST:PORT"
        )
    if config.distributed == NONE:
        return
    options: dict[str, object] = {"initialization_timeout": config.timeout, "shutdown_timeout_seconds": _SHUTDOWN}
    if explicit:
        if not re.fullmatch(r".+:\d+", config.distributed):
            raise InputError(f"--distributed: {config.distributed!r}; expected none, auto, or HOST:PORT")
        whole_number("--distributed", "processes", config.processes)
        whole_number("--distributed", "process_id", config.process_id, 0, config.processes - 1)
        options |= {
            "coordinator_address": config.distributed,
            "num_processes": config.processes,
            "process_id": config.process_id,
        }
    elif gpus := _gpus_of_a_lone_task(os.environ):
        options["local_device_ids"] = gpus
    # Otherwise the runtime catches SIGTERM for a protocol of its own, and a process that isn't in the training loop,
    # which listens itself, would go on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # the runtime's types, and those of the clusters' detection
        where = f"at {config.distributed}" if explicit else "as this cluster says"
        raise InputError(f"--distributed: the processes can't be joined {where} ({in_short(error)})") from error


def _gpus_of_a_lone_task(environment: Mapping[str, str]) -> list[int] | None:
    """All GPUs of the node, for a SLURM task that has it to itself: JAX would take one GPU a task."""
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if alone and gpus.isdigit() and "JAX_LOCAL_DEVICE_IDS" not in environment else None


def is_first() -> bool:
    """Whether this process is the one that writes what there is once: configs, metrics, models."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Waits until all processes are here; `what` tells places apart.

    The processes' coordinator is asked, not the devices: these give up on others within seconds on some platforms.
    """
    name = f"{what} {next(_meetings)}"  # used once, as the coordinator wants it
    multihost.sync_global_processes(name, timeout=_PATIENCE, processes=set(range(jax.process_count())))


def compiled_together(jitted: Any) -> Callable[..., Any]:
    """A jitted function that is called with the same shapes only; all processes begin their first call at one time.

    One process may take the program from the compilation cache where another compiles it for minutes.
    """
    compiled = None

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = jitted.lower(*arguments).compile()
            barrier("compiled")
        return compiled(*arguments)

    return call


def all_reduce_max(*values: float) -> tuple[float, ...]:
    """Each value's largest among all processes; all of them must ask."""
    if jax.process_count() == 1:
        return values
    found = multihost_utils.process_allgather(np.array(values, np.float32))
    return tuple(float(value) for value in found.max(axis=0))
