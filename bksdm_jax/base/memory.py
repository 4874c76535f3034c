"""The memory of this process, and running out of a device's."""

import contextlib
import ctypes
from collections.abc import Iterator

import jax
import psutil

from bksdm_jax.base.errors import InputError, in_short


def resident() -> int:
    """Bytes of this process that are in the machine's memory."""
    return psutil.Process().memory_info().rss


def give_back() -> None:
    """Hands memory that was freed back to the system, where the C library is GNU's.

    It would keep a gigabyte that compiling took, and what saving takes each time.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def exhaustion_told(advice: str) -> Iterator[None]:
    """Turns the compiler's or a device's lack of memory into an `InputError` that ends in `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"the devices' memory doesn't suffice ({in_short(error)}); {advice}") from error
