"""Progress of long work: a bar or clock on a terminal, lines in a log, where no long work is silent.

clu's `ReportProgress` knows training steps only, and no terminal.
"""

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging
from tqdm import tqdm

EVERY = 15.0
"""Seconds between lines in a log, at most."""
QUIET = 5.0
"""Seconds for which work says nothing that is usually short."""
_REFRESH = 1.0  # seconds between changes on a terminal
_under_way: list["_Ticker"] = []  # what began last is the last, and it alone speaks


class _Ticker:
    """Calls `tick` after `first` seconds and then every `every`, in a thread, between `start` and `stop`.

    `leave_out` is called with the seconds that were spent in `waiting` meanwhile.
    """

    def __init__(
        self, tick: Callable[[], object], first: float, every: float, leave_out: Callable[[float], None] | None = None
    ) -> None:
        self.leave_out = leave_out
        self._tick, self._first, self._every = tick, first, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        _under_way.append(self)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        _under_way.remove(self)

    def _run(self) -> None:
        pause = self._first
        while not self._ended.wait(pause):
            if _under_way[-1] is self:
                self._tick()
            pause = self._every


class Progress:
    """Counts up to `total`; use as a context manager.

    On a terminal it draws a tqdm bar; elsewhere it logs count, rate and remaining time, at the end and every `every`
    seconds, even if nothing advances. Time spent in `waiting`, as for compiling, doesn't count for the rate.
    """

    def __init__(self, what: str, total: int, done: int = 0, every: float = EVERY) -> None:
        self._what, self._total, self._done, self._note = what, total, done, ""
        self._first, self._start = done, time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=what) if sys.stderr.isatty() else None
        tick, every = (self._bar.refresh, _REFRESH) if self._bar is not None else (self._say, every)
        self._ticker = _Ticker(tick, min(QUIET, every), every, self._leave_out)

    def __enter__(self) -> "Progress":
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticker.stop()
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more as done; `note` (say, the loss) is shown beside the count."""
        self._done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
        elif self._done == self._total:
            self._say()

    def _say(self) -> None:
        text, seconds = f"{self._what}: {self._done} of {self._total}", time.monotonic() - self._start
        if self._done > self._first and seconds > 0:
            rate = (self._done - self._first) / seconds
            text += f", {rate:.2f}/s, {(self._total - self._done) / rate:.0f} s left"
        logging.info("%s", f"{text} {self._note}".rstrip())

    def _leave_out(self, seconds: float) -> None:
        self._start += seconds
        if self._bar is not None:
            self._bar.unpause()


@contextlib.contextmanager
def waiting(what: str, quiet: float = 0.0, every: float = EVERY) -> Iterator[None]:
    """Shows uncountable work such as compiling: a clock on a terminal, else lines before, after and every `every` s.

    Nothing is shown in the first `quiet` seconds, nor afterwards if the work ends within them.
    """
    start, clock, spoken = time.monotonic(), None, not quiet
    terminal = sys.stderr.isatty()

    def tick() -> None:
        nonlocal clock, spoken
        spoken = True
        if not terminal:
            logging.info("%s: %.0f s ...", what, time.monotonic() - start)
        elif clock is None:
            clock = tqdm(desc=what, bar_format="{desc}: {elapsed}")
            clock.start_t -= time.monotonic() - start
        else:
            clock.refresh()

    if terminal and not quiet:
        tick()
    elif not quiet:
        logging.info("%s ...", what)
    every = _REFRESH if terminal else every
    ticker = _Ticker(tick, quiet or every, every)
    ticker.start()
    try:
        yield
    finally:
        ticker.stop()
        if clock is not None:
            clock.close()
        for outer in reversed(_under_way):
            if outer.leave_out is None:  # another `waiting`, which will leave out all of its time
                break
            outer.leave_out(time.monotonic() - start)
    if spoken and not terminal:
        logging.info("%s: %.0f s", what, time.monotonic() - start)


@contextlib.contextmanager
def stacks_if_stalled(seconds: float) -> Iterator[None]:
    """Prints the stacks of all threads if this takes longer than so many seconds, and goes on; 0: never."""
    if seconds:
        with contextlib.suppress(ValueError, OSError, AttributeError):  # stderr has no descriptor, as in a notebook
            faulthandler.dump_traceback_later(seconds, file=sys.__stderr__)
    try:
        yield
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()
