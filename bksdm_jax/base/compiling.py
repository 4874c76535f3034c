"""Compiling several programs at once."""

from concurrent.futures import Future
from threading import Thread

from jax.stages import Compiled, Lowered


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
