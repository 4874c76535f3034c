"""Ctrl-C and SIGTERM as a request to stop after the current step."""

import signal
import threading
from types import FrameType


class Interrupts:
    """While entered, the first SIGINT or SIGTERM sets `wanted`; a second one has its usual effect."""

    def __init__(self) -> None:
        self.wanted = False
        self._former: dict[int, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
