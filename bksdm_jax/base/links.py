"""Connections between the processes of a run: JSON objects, one a line, that neither side trusts."""

import json
import socket
import time
from typing import Any

from bksdm_jax.base.errors import in_one_line

_LONGEST = 8192  # bytes of a message
_CHUNK = 1 << 14
MOST_TEXT = 400
"""Characters of a text in a message, at most."""


class Link:
    """A connection to one process; neither sending nor receiving blocks or raises.

    Attributes:
        index: of the process at the other end; -1: not known yet.
        host: its name.
        heard: `time.monotonic()` when it last said something.
        closed: whether the connection has broken, and all that came before has been received.
    """

    def __init__(self, connection: socket.socket, index: int = -1, host: str = "") -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.index, self.host = connection, index, host
        self.heard, self.closed = time.monotonic(), False
        self._rest, self._mute = b"", False

    @property
    def name(self) -> str:
        """For messages: `process 1 (host)`."""
        return f"process {self.index} ({self.host})" if self.host else f"process {self.index}"

    def send(self, kind: str, **content: Any) -> None:
        """Sends a message, if the connection takes all of it at once."""
        line = json.dumps({"kind": kind} | content).encode() + b"\n"
        try:
            sent = 0 if self.closed or self._mute else self.connection.send(line)
        except BlockingIOError:  # nobody has read for long; the clock judges it
            return
        except OSError:
            sent = 0
        if sent < len(line):
            self._mute = True  # its last words may still be there to be received

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come; what isn't one breaks the connection."""
        try:
            data = self.connection.recv(_CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = [_message(line) for line in lines]
        if not data or len(self._rest) > _LONGEST or None in messages:
            self.closed = True
        else:
            self.heard = time.monotonic()
        return [message for message in messages if message is not None]

    def close(self) -> None:
        """Closes the connection."""
        self.closed = True
        self.connection.close()


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line) if len(line) <= _LONGEST else None
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None


def text_of(message: dict[str, Any], key: str, most: int = MOST_TEXT) -> str:
    """A text in a message, in one printable line."""
    value = message.get(key)
    return in_one_line(value, most) if isinstance(value, str) else ""


def number_of(message: dict[str, Any], key: str, other: int = -1) -> int:
    """A whole number in a message; `other` if it has none, or a huge one."""
    value = message.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 else other
