"""The processes of a run: one per host of a TPU pod or per node of a cluster, one in all on a single machine."""

import dataclasses
import itertools
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from bksdm_jax.base import peers, relay
from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.exits import FAILED
from bksdm_jax.base.processes import NONE, ProcessConfig, require_processes
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.rendezvous import meet

_BARRIER_TIMEOUT = 24 * 3600  # seconds; `peers` notices lost processes earlier
_HEARTBEAT_TIMEOUT = 7 * 24 * 3600  # seconds, after which the runtime aborts; `peers` takes its place
_SHUTDOWN_TIMEOUT = 120  # seconds that a process waits for the others when all have ended
_barriers = itertools.count()


@dataclasses.dataclass(frozen=True)
class _Cluster:
    """Address of the first process, their number, the index of this one, and its devices (None: all)."""

    address: str
    processes: int
    index: int
    devices: list[int] | None


def connect(config: ProcessConfig) -> None:
    """Connects to the other processes; must come before any other use of JAX, and within `peers.ending_together`.

    From then on `peers` ends this process, with one line, when another fails or is lost.

    Raises:
        InputError: bad settings, no cluster found, or processes that don't come within `config.timeout` seconds.
    """
    require_processes(config)
    if config.distributed == NONE:
        return
    # Otherwise the runtime intercepts SIGTERM, and a process outside the training loop, which handles it, would go on.
    jax.config.update("jax_enable_preemption_service", False)
    where = f"at {config.distributed}" if config.explicit else "of this cluster"
    try:
        cluster = _cluster(config)
        options = {} if cluster is None else _met(cluster, config.timeout)
        if cluster is None and (gpus := _gpus_of_single_task()):
            options["local_device_ids"] = gpus
        _initialize(options, config.timeout, where)
        processes = jax.process_count() if cluster else 0
    except InputError:
        raise
    except Exception as error:  # the runtime and the cluster detection raise many types
        raise InputError(f"--distributed: can't connect the processes {where} ({in_short(error)})") from error
    if cluster and processes != cluster.processes:
        raise InputError(
            f"--distributed: JAX found {processes} processes, expected {cluster.processes}; "
            "all need devices of the same platform"
        )


def _cluster(config: ProcessConfig) -> _Cluster | None:
    """The processes as given, or as JAX's own detection finds them; None if only JAX can tell."""
    if config.explicit:
        return _Cluster(config.distributed, config.processes, config.process_id, None)
    try:
        from jax._src.clusters import ClusterEnv  # noqa: PLC0415 (private, it may be missing)

        found = ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, _gpus_of_single_task(), None, config.timeout
        )
        address, processes, index, devices = found
    except (ImportError, AttributeError, TypeError):
        return None
    known = isinstance(address, str) and isinstance(processes, int) and isinstance(index, int)
    if not known or not re.fullmatch(r".+:\d+", address):
        return None
    return _Cluster(address, processes, index, None if devices is None else list(devices))


def _met(cluster: _Cluster, timeout: int) -> dict[str, Any]:
    """Meets the other processes; returns the settings with which the runtime connects."""
    links = meet(cluster.address, cluster.processes, cluster.index, timeout)
    peers.watch(cluster.index, links, timeout)
    address = cluster.address
    if cluster.index and not getattr(jax.config, "jax_mtls_cert_file", None):  # certificates name the true address
        host, _, port = address.rpartition(":")
        address = relay.start(host.strip("[]"), int(port)) or address
    options = {
        "coordinator_address": address,
        "num_processes": cluster.processes,
        "process_id": cluster.index,
        "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT,
    }
    return options | ({"local_device_ids": cluster.devices} if cluster.devices is not None else {})


def _initialize(options: dict[str, Any], timeout: int, where: str) -> None:
    """Connects the runtime, which would abort this process if that took longer than its own limit."""
    line = f"error: --distributed: JAX's runtime didn't connect the processes {where} within {timeout} s"
    watchdog = threading.Timer(timeout, peers.leave, (FAILED, line))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            **options, initialization_timeout=2 * timeout + 60, shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT
        )
    finally:
        watchdog.cancel()


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


def any_process(wanted: bool) -> bool:
    """Whether any process wants something; all must ask, while nothing else runs on the devices."""
    if jax.process_count() == 1:
        return wanted
    barrier("asked")
    return bool(np.any(multihost_utils.process_allgather(np.array(wanted))))


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
