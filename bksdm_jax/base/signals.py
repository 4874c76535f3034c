"""Ctrl-C and SIGTERM: as an exception, as a request to stop after the current step, and while Python doesn't run."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from bksdm_jax.base.peers import leave

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 0.05  # seconds after which a signal whose exception was ignored is sent again
_MOST_PENDING = 64  # bytes, one for each signal
_PATIENCE = 3.0  # seconds within which the main thread should come back from a library's C++ to Python
Leave = Callable[[int], tuple[int, str] | None]
"""Signal number -> exit status, and the line that says what is left behind; None: the main thread must come back."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, as the program's exit status and last line; `number` if it is to end the program."""

    def __init__(self, status: int, line: str, number: int = 0) -> None:
        super().__init__(line)
        self.status, self.line, self.number = status, line, number


class Interrupts:
    """While entered, the first SIGINT or SIGTERM sets `wanted`.

    A SIGTERM after that changes nothing, since schedulers send it twice; a SIGINT has its usual effect.
    """

    def __init__(self) -> None:
        self.wanted, self._raises = False, False
        self._former: dict[int, Any] = {}
        self._patient = contextlib.ExitStack()

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._patient.enter_context(leaving(lambda number: None))
            self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        self._patient.close()

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """In this block the signal raises `Interrupted` too, and at once if it came before."""
        self._raises = True
        try:
            if self.wanted:
                raise Interrupted(0, "")
            yield
        finally:
            self._raises = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        _handled.set()
        first, self.wanted = not self.wanted, True
        if signal.SIGINT in self._former:
            signal.signal(signal.SIGINT, self._former.pop(signal.SIGINT))
        if self._raises and first:
            raise Interrupted(0, "")

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def interrupted(number: int) -> tuple[int, str]:
    """Exit status and last line of a program that a signal ended."""
    return 128 + number, "interrupted"


_handled = threading.Event()
_leaves: list[Leave] = [interrupted]


@contextlib.contextmanager
def leaving(how: Leave) -> Iterator[None]:
    """In this block, `how` says what becomes of the program if a signal ends it.

    It may be called in another thread, while the main thread is in a library that can't be interrupted.
    """
    _leaves.append(how)
    try:
        yield
    finally:
        _leaves.remove(how)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """For a whole program: signals raise `Interrupted`; in a call that Python can't interrupt they end the program.

    Python's handlers wait until such a call, XLA's compilation say, returns; a thread, woken through a pipe, doesn't.
    Where Python ignores exceptions, as in JAX's callback of the garbage collector, `Interrupted` is raised again later.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = {number: signal.signal(number, _raise) for number in _SIGNALS}
    former_writing = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    former_hook = sys.unraisablehook

    def ignored(told: Any) -> None:
        if not isinstance(told.exc_value, Interrupted):
            former_hook(told)
        elif told.exc_value.number:
            threading.Timer(_AGAIN, os.kill, (os.getpid(), told.exc_value.number)).start()

    sys.unraisablehook = ignored
    over = threading.Event()
    threading.Thread(target=_watch, args=(reading, over), daemon=True, name="signals").start()
    try:
        yield
    finally:
        over.set()
        if sys.unraisablehook is ignored:
            sys.unraisablehook = former_hook
        signal.set_wakeup_fd(former_writing)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the thread


def _raise(number: int, frame: FrameType | None) -> None:
    _handled.set()
    raise Interrupted(*(_leaves[-1](number) or interrupted(number)), number)


def _watch(reading: int, over: threading.Event) -> None:
    with open(reading, "rb", buffering=0) as file:
        while received := file.read(1):
            number = received[0]
            if number in _SIGNALS and not _handled.wait(_PATIENCE) and not over.is_set():
                left = _leaves[-1](number)
                if left and not _handled.is_set():  # saving may have taken a while
                    leave(*left)
            _handled.clear()
            if select.select([file], [], [], 0)[0]:  # the same signal again, for which Python calls its handler once
                file.read(_MOST_PENDING)
