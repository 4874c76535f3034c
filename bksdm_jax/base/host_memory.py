"""Keeps the memory that a computation on CPUs has freed, for the next one."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

import jax

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's numbers of them
_ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "accel/*", "vfio/[0-9]*", "kfd", "dxg")
_OWN = ("MALLOC_", "GLIBC_TUNABLES")


def keep_memory(devices: Path = Path("/dev")) -> None:
    """On a machine that computes on CPUs, has the C library keep what is freed, and JAX compute in the calling thread.

    XLA allocates what a call needs on CPUs, and frees it afterwards. Fresh pages from the system for each call took a
    fifth of a small update's time. The library can keep memory for the main thread only: other threads' heaps are
    smaller. For training only, before JAX's first computation: sampling begins a batch before it waits for the former.
    Only glibc has these settings; a user's own ones are left as they are.
    """
    if any(name.startswith(_OWN) for name in os.environ) or not _on_cpus(devices):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option and set_option(_MMAP_MAX, 0) and set_option(_TRIM_THRESHOLD, -1):
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def _on_cpus(devices: Path) -> bool:
    """Whether JAX will compute on CPUs, as far as can be told before it has looked for other devices."""
    asked = jax.config.jax_platforms or ""
    found: Iterable[Path] = (path for pattern in _ACCELERATORS for path in devices.glob(pattern))
    return asked.split(",")[0] == "cpu" or not (asked or any(found))
