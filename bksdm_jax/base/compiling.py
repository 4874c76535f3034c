"""From functions to compiled programs."""

import contextlib
import gc
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Thread
from typing import Any

from jax.stages import Compiled, Lowered


def lower(jitted: Any, *arguments: Any) -> Lowered:
    """Traces and lowers a jitted function, within `uncollected`."""
    with uncollected():
        return jitted.lower(*arguments)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Python looks for no unreachable cycles of objects meanwhile, which took a quarter of tracing an update: it makes
    hundreds of thousands of objects that stay.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def compile_beside(program: Lowered, *others: Lowered) -> list[Compiled]:
    """Compiles programs beside each other: XLA leaves cores idle while it optimises one as a whole.

    The first, which takes longest, is compiled in this thread, and the others don't keep a process from ending,
    so a signal ends it at once.
    """
    found: list[Future[Compiled]] = [Future() for _ in others]

    def compile_other(lowered: Lowered, future: Future[Compiled]) -> None:
        try:
            future.set_result(lowered.compile())
        except BaseException as error:  # raised by `result`
            future.set_exception(error)

    for each in zip(others, found, strict=True):
        Thread(target=compile_other, args=each, daemon=True).start()
    return [program.compile(), *(future.result() for future in found)]
