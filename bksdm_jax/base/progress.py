"""Progress of long work: a bar on a terminal, plain lines in a log.

clu's `ReportProgress` knows training steps only, and no terminal.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from absl import logging
from tqdm import tqdm

_EVERY = 30.0  # seconds between lines


class Progress:
    """Counts up to `total`; use as a context manager.

    On a terminal it draws a tqdm bar; elsewhere it logs count, rate and remaining time, at most every half minute.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done = what, total, done
        self._first, self._start, self._last = done, time.monotonic(), time.monotonic()
        self._bar = tqdm(total=total, initial=done, desc=what) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more as done; `note` (say, the loss) is shown beside the count."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= _EVERY or self._done == self._total:
            self._last = now
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            logging.info("%s: %d of %d, %.2f/s, %.0f s left %s", self._what, self._done, self._total, rate, left, note)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows uncountable work such as compiling: a clock on a terminal, else a log line before and after it."""
    start = time.monotonic()
    if not sys.stderr.isatty():
        logging.info("%s ...", what)
        yield
        logging.info("%s: %.0f s", what, time.monotonic() - start)
        return
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}") as clock:

        def tick() -> None:
            while not done.wait(1.0):
                clock.refresh()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
