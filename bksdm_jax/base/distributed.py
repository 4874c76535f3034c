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
_BARRIER_TIMEOUT = 24 * 3600  # seconds; a process that died is noticed earlier, by its missing heartbeats
_SHUTDOWN = 60  # seconds that the end of a process waits for the ends of the others
_barriers = itertools.count()


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
    """Joins the other processes; must come before any other use of JAX.

    Raises:
        InputError: bad settings, no cluster found, or processes that don't join in time.
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
    """All GPUs of the node, for a SLURM task that has the node to itself: JAX would take one GPU per task."""
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    return list(range(int(gpus))) if alone and gpus.isdigit() and "JAX_LOCAL_DEVICE_IDS" not in environment else None


def is_first() -> bool:
    """Whether this is the process that writes configs, metrics and models."""
    return jax.process_index() == 0


def barrier(what: str) -> None:
    """Waits until every process has arrived; `what` tells barriers apart.

    It goes through the coordinator, not the devices, which on some platforms time out within seconds.
    """
    name = f"{what} {next(_barriers)}"  # used once, as the coordinator wants it
    multihost.sync_global_processes(name, timeout=_BARRIER_TIMEOUT, processes=set(range(jax.process_count())))


def compiled_together(jitted: Any) -> Callable[..., Any]:
    """A jitted function for arguments of one shape, whose first call begins at the same time in all processes.

    One process may find the program in the compilation cache while another compiles it for minutes.
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
    """The maximum of each value over all processes; every process must call it."""
    if jax.process_count() == 1:
        return values
    found = multihost_utils.process_allgather(np.array(values, np.float32))
    return tuple(float(value) for value in found.max(axis=0))
