"""The processes of one run: one for each host of a TPU pod, or for each node; on one machine there is one."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from bksdm_jax.errors import InputError, in_short, whole_number

NONE, AUTO = "none", "auto"
_PATIENCE = 24 * 3600  # seconds to wait for processes that live; one that died is found out by its missing heartbeats
_SHUTDOWN = 60  # seconds that the end of a process waits for the ends of the others


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
    try:
        jax.distributed.initialize(**options)
    except Exception as error:  # the runtime's types, and those of the clusters' detection
        where = f"at {config.distributed}" if explicit else "as this cluster says"
        raise InputError(f"--distributed: the processes can't be joined {where} ({in_short(error)})") from error


def is_first() -> bool:
    """Whether this process is the one that writes what there is once: configs, metrics, models."""
    return jax.process_index() == 0


def meet(what: str) -> None:
    """Waits until all processes are here; `what` tells places apart.

    The processes' coordinator is asked, not the devices: these give up on others within seconds on some platforms.
    """
    multihost.sync_global_processes(what, timeout=_PATIENCE, processes=set(range(jax.process_count())))


def together(jitted: Any) -> Callable[..., Any]:
    """A jitted function that is called with the same shapes only; all processes begin their first call at one time.

    One process may take the program from the compilation cache where another compiles it for minutes.
    """
    compiled = None

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = jitted.lower(*arguments).compile()
            meet("compiled")
        return compiled(*arguments)

    return call


def anyone(wish: bool) -> bool:
    """Whether any process wishes so; all of them must ask."""
    if jax.process_count() == 1:
        return wish
    return bool(multihost_utils.process_allgather(np.array(wish)).any())
