"""This process's memory, and errors of devices that run out of theirs."""

import contextlib
import ctypes
from collections.abc import Iterator

import jax
import psutil

from bksdm_jax.base.errors import InputError, in_short


def resident() -> int:
    """Resident memory of this process, bytes."""
    return psutil.Process().memory_info().rss


def give_back() -> None:
    """Returns freed memory to the system (glibc only); otherwise a gigabyte stays resident after compiling."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Turns a compiler's or device's out-of-memory error into an `InputError` that ends in `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"out of device memory ({in_short(error)}); {advice}") from error
