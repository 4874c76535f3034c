"""Before JAX's runtime connects the processes, which aborts if one is missing, they meet over plain sockets.

The first process listens at its HOST:PORT, the others say who they are, and all know who is missing. The connections
remain, for `peers`; the runtime's coordinator then listens at the same port. As with that, whoever can connect to the
port can end the run, but no more: it must be open to the run's machines alone.
"""

import contextlib
import os
import re
import selectors
import socket
import time

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.links import MOST_TEXT, Link, number_of, text_of
from bksdm_jax.base.progress import QUIET, waiting

_HELLO = "bksdm_jax 1"  # the first word of this protocol
_PATIENCE = 10.0  # seconds until a connection must have said who it is, and for which a taken port is tried again
_STRANGERS = 64  # connections that haven't said who they are
_LOOPBACK = r"127(\.\d{1,3}){3}|::1"
_RETRY = 0.2  # seconds
_MOST_NAMED = 10


def beat_every(timeout: float) -> float:
    """Seconds between two signs of life."""
    return min(2.0, timeout / 10)


def meet(address: str, processes: int, index: int, timeout: float) -> list[Link]:
    """Waits until all processes have come; the first gets a link to each other, the others get one to the first.

    Args:
        address: HOST:PORT of the first process.
        processes: their number.
        index: of this process, from 0.
        timeout: seconds; the others wait so long for the first, and then as long as it waits.

    Raises:
        InputError: a process that doesn't come in time, or that disagrees about the processes.
    """
    if processes == 1:
        return []
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    with waiting("waiting for the other processes", QUIET):
        if index == 0:
            return _gather(host, int(port), processes, timeout)
        return _join(host, int(port), processes, index, timeout)


def _listen(host: str, port: int) -> socket.socket:
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "").rpartition(":")[0].strip("[]")
    if not bound and re.fullmatch(_LOOPBACK, host):
        bound = host  # no other machine takes part
    deadline = time.monotonic() + _PATIENCE  # a former run may still be ending
    while True:
        try:
            if bound:
                family = socket.AF_INET6 if ":" in bound else socket.AF_INET
                return socket.create_server((bound, port), family=family)
            if socket.has_dualstack_ipv6():
                with contextlib.suppress(OSError):  # IPv6 may be switched off
                    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", port))
        except OSError as error:
            if time.monotonic() > deadline or isinstance(error, PermissionError):
                raise InputError(
                    f"--distributed: process 0 can't listen at port {port} ({in_short(error)}); give a free one"
                ) from error
        time.sleep(_RETRY)


def _gather(host: str, port: int, processes: int, timeout: float) -> list[Link]:
    deadline = time.monotonic() + timeout
    with _listen(host, port) as server, selectors.DefaultSelector() as selector:
        meeting = _Meeting(server, selector, processes, f"{host}:{port}")
        try:
            while len(meeting.present) < processes - 1:
                if time.monotonic() > deadline:
                    raise InputError(f"--distributed: {_missing(meeting.present, processes)} within {timeout:g} s")
                meeting.step(beat_every(timeout))
        except BaseException as error:
            reason = str(error) if isinstance(error, InputError) else "--distributed: process 0 was interrupted"
            meeting.refuse(reason)
            raise
    for link in meeting.present.values():
        link.heard = time.monotonic()
        link.send("go", host=socket.gethostname())
    return [meeting.present[index] for index in sorted(meeting.present)]


def _missing(present: dict[int, Link], processes: int) -> str:
    absent = [index for index in range(1, processes) if index not in present]
    names = ", ".join(map(str, absent[:_MOST_NAMED]))
    more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
    noun = "process" if len(absent) == 1 else "processes"
    return f"{noun} {names}{more} of {processes} didn't come"


class _Meeting:
    """Who has come to the first process."""

    def __init__(self, server: socket.socket, selector: selectors.BaseSelector, processes: int, address: str) -> None:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        self.present: dict[int, Link] = {}
        self._server, self._selector, self._processes, self._address = server, selector, processes, address
        self._strangers: list[Link] = []
        self._next_beat = 0.0

    def step(self, every: float) -> None:
        """Waits for something to happen, for at most `every` seconds, and notes it."""
        for key, _ in self._selector.select(every):
            if key.data is None:
                self._accept()
            else:
                self._hear(key.data)
        now = time.monotonic()
        for link in [link for link in self._strangers if now - link.heard > _PATIENCE]:
            self._forget(link)
        if now >= self._next_beat:
            self._next_beat = now + every
            for link in self.present.values():
                link.send("beat")

    def refuse(self, reason: str) -> None:
        """Tells all why there is no run."""
        for link in [*self.present.values(), *self._strangers]:
            link.send("refused", reason=reason[:MOST_TEXT])
            link.close()

    def _accept(self) -> None:
        try:
            link = Link(self._server.accept()[0])
        except OSError:
            return
        if len(self._strangers) >= _STRANGERS:
            self._forget(self._strangers[0])
        self._strangers.append(link)
        self._selector.register(link.connection, selectors.EVENT_READ, link)

    def _forget(self, link: Link) -> None:
        self._selector.unregister(link.connection)
        link.close()
        if link.index in self.present:
            del self.present[link.index]  # it may come again
        else:
            self._strangers.remove(link)

    def _hear(self, link: Link) -> None:
        for message in link.receive():
            if link.index == -1:
                self._admit(link, message)
        if link.closed:
            self._forget(link)

    def _admit(self, link: Link, message: dict) -> None:
        index, processes = number_of(message, "index"), number_of(message, "processes")
        host = text_of(message, "host", 64)
        if message["kind"] != "hello" or message.get("protocol") != _HELLO:
            link.closed = True
            return
        if processes != self._processes:
            raise InputError(
                f"--distributed: process {index} ({host}) expects {processes} processes, "
                f"and process 0 ({socket.gethostname()}) {self._processes}; give all the same --processes"
            )
        if not 0 < index < processes or index in self.present:
            other = self.present[index].host if index in self.present else socket.gethostname()
            raise InputError(
                f"--distributed: two processes, on {other} and on {host}, are process {index}; "
                "give each its own --process_id"
            )
        link.index, link.host = index, host
        self._strangers.remove(link)
        self.present[index] = link
        link.send("beat")


def _join(host: str, port: int, processes: int, index: int, timeout: float) -> list[Link]:
    deadline, trouble = time.monotonic() + timeout, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=min(left, _PATIENCE))
        except OSError as error:
            trouble = in_short(error)
        else:
            link = Link(connection, 0)
            link.send("hello", protocol=_HELLO, index=index, processes=processes, host=socket.gethostname()[:64])
            if _admitted(link, min(left, _PATIENCE), timeout):
                return [link]
            link.close()
            trouble = "the connection was closed"
        time.sleep(_RETRY)
    raise InputError(
        f"--distributed: process 0 at {host}:{port} didn't answer within {timeout:g} s ({trouble}); "
        "it may not have been started"
    )


def _admitted(link: Link, patience: float, timeout: float) -> bool:
    """Waits as long as the first process lives; False: try again."""
    with selectors.DefaultSelector() as selector:
        selector.register(link.connection, selectors.EVENT_READ)
        while not link.closed and time.monotonic() - link.heard < patience:
            if not selector.select(_RETRY):
                continue
            for message in link.receive():
                if message["kind"] == "refused":
                    raise InputError(text_of(message, "reason") or "--distributed: process 0 refused this process")
                if message["kind"] == "go":
                    link.host = text_of(message, "host", 64)
                    return True
                patience = timeout  # it has answered, and says when another is missing
    return False
