"""The thread that watches the other processes of a run; see `peers`."""

import dataclasses
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from bksdm_jax.base.exits import FAILED, RESTART
from bksdm_jax.base.links import Link, number_of, text_of
from bksdm_jax.base.rendezvous import beat_every

INTERRUPTED = 130
_TERMINATED = 143
_TICK = 0.1  # seconds
_GRACE = 3.0  # seconds for an error of one's own, when another fails: often it's the same
_TOLD = 2.0  # seconds until the others must have taken notice
_AGAIN = "the same command continues"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why this process must end.

    Attributes:
        status: of its exit.
        text: the line to print, without `error: `; empty: nothing.
        due: `time.monotonic()` when it must end, if it hasn't by itself.
    """

    status: int
    text: str
    due: float


class Monitor:
    """Watches the processes at the other ends of links: all others in the first process, the first in the others.

    Args:
        index: of this process.
        links: to the others.
        timeout: seconds without a sign of life after which a process is lost.
        end: called, in the thread, to end this process.
    """

    def __init__(
        self, index: int, links: list[Link], timeout: float, end: Callable[[Verdict, float], NoReturn]
    ) -> None:
        self._index, self._links, self._timeout, self._end = index, links, timeout, end
        self._every, self._grace = beat_every(timeout), min(_GRACE, timeout / 2)
        self._verdict: Verdict | None = None
        self._ended: dict[int, int] = {}  # statuses of others
        self._own: tuple[int, str] | None = None  # status and reason with which this one ends
        self._waits = False  # for the others to end, having ended well
        self._silent = False  # whether the first process misses another
        self._hurry = False  # not to wait for an error of this process
        self._told: set[int] = set()
        self._noticed, self._all_ended = threading.Event(), threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        for link in self._links:
            self._selector.register(link.connection, selectors.EVENT_READ, link)
        self._thread.start()

    def tell(self, status: int, reason: str) -> None:
        """Tells the others that this process ends now; waits for at most two seconds until they know."""
        self._own = status, reason
        self._noticed.wait(_TOLD)

    def finish(self, status: int) -> None:
        """Tells the others that this process has ended well, or stopped with status 75; waits until all have ended."""
        self._waits = True
        self._own = status, ""
        self._all_ended.wait()

    def explain(self) -> None:
        """Returns when every other process has given a sign of life since the call; else the process ends."""
        asked = time.monotonic() + 4 * self._every  # by then the first process knows who is silent
        self._hurry = True
        while True:
            time.sleep(_TICK)
            if (
                self._verdict is None
                and not self._silent
                and all(link.heard > asked or link.index in self._ended for link in self._links)
            ):
                return

    def _run(self) -> None:
        last, beat, told = time.monotonic(), 0.0, None
        while True:
            ready = self._selector.select(_TICK)
            now = time.monotonic()
            if now - last > self._every:  # this process was stopped: that is no one else's silence
                for link in self._links:
                    link.heard += now - last
            last = now
            for key, _ in ready:
                for message in key.data.receive():
                    self._note(key.data, message)
                if key.data.closed:
                    self._selector.unregister(key.fileobj)
            if self._own != told:
                told = self._own
                self._say_how_it_ends()
            if now >= beat:
                beat = now + self._every
                for link in self._links:
                    link.send("beat", silent=self._index == 0 and self._misses(now))
            self._judge(now)

    @property
    def _open(self) -> list[Link]:
        return [link for link in self._links if not link.closed]

    def _misses(self, now: float) -> bool:
        return any(now - link.heard > 2.5 * self._every for link in self._links if link.index not in self._ended)

    def _note(self, link: Link, message: dict[str, Any]) -> None:
        kind, status = message["kind"], number_of(message, "status", FAILED)
        if kind == "beat":
            self._silent = message.get("silent") is True
        elif kind == "heard":
            self._told.add(link.index)
        elif kind == "all ended":
            link.send("heard")
            self._all_ended.set()
        elif kind == "end":
            self._ended[link.index] = status
            link.send("heard")
            self._decide_by_end(link, status, text_of(message, "reason"))
        elif kind == "verdict" and self._index:
            link.send("heard")
            if number_of(message, "about") == self._index:
                status, text = RESTART, f"this process didn't answer, and the others have ended; {_AGAIN}"
            else:
                text = text_of(message, "text", 600)
            self._decide(status, text, min(max(number_of(message, "patience", 0), 0), self._timeout), 0)

    def _decide_by_end(self, link: Link, status: int, reason: str) -> None:
        if status == 0:
            return
        if status == RESTART:
            self._decide(RESTART, f"{link.name} stopped early; {_AGAIN}", self._timeout, link.index)
        elif status in (INTERRUPTED, _TERMINATED):
            self._decide(RESTART, f"{link.name} was interrupted; {_AGAIN}", self._grace, link.index)
        else:
            self._decide(FAILED, f"{link.name} failed: {reason or f'status {status}'}", self._grace, link.index)

    def _decide(self, status: int, text: str, patience: float, about: int) -> None:
        due = time.monotonic() + patience
        if self._verdict is not None and self._verdict.due <= due:
            return
        self._verdict = Verdict(status, text, due)
        if self._index == 0:
            for link in self._links:
                if link.index == about and about in self._ended:
                    continue
                link.send("verdict", status=status, text=text, patience=int(patience), about=about)

    def _say_how_it_ends(self) -> None:
        status, reason = self._own or (0, "")
        self._told.clear()
        for link in self._links:
            link.send("end", status=status, reason=reason)

    def _judge(self, now: float) -> None:
        if self._all_ended.is_set():
            return
        for link in self._links:
            if link.index in self._ended and (self._index == 0 or self._ended[link.index] != 0):
                continue  # but the first one is needed to the end
            if link.closed:
                self._decide(RESTART, f"{link.name} is gone; {_AGAIN}", 0, link.index)
            elif now - link.heard > self._timeout:
                self._decide(RESTART, f"{link.name} hasn't answered for {self._timeout:g} s; {_AGAIN}", 0, link.index)
        if self._own is not None and self._told.issuperset(link.index for link in self._open):
            self._noticed.set()
        if self._own is not None and not self._waits:
            return  # the main thread ends the process
        if self._waits and self._index == 0 and self._ended_well() == len(self._links):
            for link in self._open:
                link.send("all ended")
            self._all_ended.set()
        elif self._verdict is not None and (self._hurry or now >= self._verdict.due):
            self._end_by_verdict(self._verdict)

    def _ended_well(self) -> int:
        return sum(status in (0, RESTART) for status in self._ended.values())

    def _end_by_verdict(self, verdict: Verdict) -> None:
        if self._own is not None and self._own[0] == RESTART:  # it has said already that the same command continues
            verdict = dataclasses.replace(verdict, status=RESTART, text="")
        for link in self._links:
            link.send("end", status=RESTART, reason=verdict.text)
        self._end(verdict, self._timeout)
