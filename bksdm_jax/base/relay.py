"""A process that passes the runtime's connection to the coordinator on, and holds it open when the coordinator dies.

JAX's client aborts its process, with C++ stacks, as soon as its connection to the coordinator breaks; nothing can be
said or saved before. So it connects to this relay, which runs as a process of its own since the client may wait while
it holds Python's lock. It needs the standard library only, and ends when its standard input does.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

_CHUNK = 1 << 16
_RETRY = 0.1  # seconds


def start(host: str, port: int) -> str:
    """Starts a relay to `host:port`, which lives as long as this process; its address, or "" if it can't start."""
    command = [sys.executable, "-I", "-S", __file__, host, str(port)]
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the terminal's Ctrl-C isn't for it
        )
        own = int(child.stdout.readline())
    except (OSError, ValueError):
        return ""
    _relays.append(child)
    return f"127.0.0.1:{own}"


_relays: list["subprocess.Popen[bytes]"] = []  # a collected one would close its standard input


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(_CHUNK):
            sink.sendall(data)
    except OSError:
        pass


def _connected(host: str, port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port))
        except OSError:  # the coordinator hasn't started yet
            time.sleep(_RETRY)


def _serve(client: socket.socket, host: str, port: int) -> None:
    coordinator = _connected(host, port)
    threading.Thread(target=_pass_on, args=(coordinator, client), daemon=True).start()
    _pass_on(client, coordinator)
    coordinator.close()


def _main(host: str, port: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # schedulers send them to all processes, and ours save their state
        signal.signal(number, signal.SIG_IGN)
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            client = server.accept()[0]
            threading.Thread(target=_serve, args=(client, host, port), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(server.getsockname()[1], flush=True)
    while os.read(0, _CHUNK):
        pass
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
