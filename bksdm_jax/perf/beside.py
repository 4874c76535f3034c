"""Runs another program's benchmark and reads its figure, to set ours beside it.

It has to end before this process touches its device, whose memory JAX would take: nothing here imports JAX.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bksdm_jax.base.errors import InputError, finite_number, in_one_line, in_short, listed, shown
from bksdm_jax.base.progress import waiting
from bksdm_jax.perf.config import split_command

_KEYS = ("images_per_s", "median_s")
_MOST_KEPT = 2**20  # bytes of what the program prints: the last ones
_PATIENCE = 5.0  # seconds from asking it to end to killing it
_CHUNK = 2**16


@dataclasses.dataclass(frozen=True)
class Beside:
    """What another program measured.

    Attributes:
        images_per_s: its figure.
        source: in words, where it comes from.
        batch: the batch that it names; None: it names none.
    """

    images_per_s: float
    source: str
    batch: int | None


def run_beside(command: str, batch: int, timeout: float) -> Beside:
    """Runs a command line, without a shell, to its end and reads the last line of JSON with a figure.

    Args:
        command: the command line; its processes are ended if it takes too long or this one is interrupted.
        batch: images of a call, for a figure in seconds whose line has no `batch` of its own.
        timeout: seconds.

    Raises:
        InputError: the program can't be started, fails, takes too long, or prints no usable figure.
    """
    arguments = split_command(command)
    # A session of its own: the terminal's Ctrl-C then reaches it through `_end` only, after which nothing is left.
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        child = subprocess.Popen(arguments, start_new_session=True, **pipes)
    except OSError as error:
        raise InputError(f"beside: {shown(arguments[0])} can't be started ({in_short(error)})") from error
    try:
        printed, said = _Tail(child.stdout), _Tail(child.stderr)
        with waiting(f"beside: {in_one_line(shlex.join(arguments), 80)}"):
            status = child.wait(timeout)
    except subprocess.TimeoutExpired as error:
        wanted = "expected less, or a longer beside_timeout"
        raise InputError(f"beside: {shown(command)} took more than {timeout:g} s; {wanted}") from error
    finally:
        _end(child)
    if status:
        how = f"status {status}" if status > 0 else f"signal {-status}"
        last = next((line for line in reversed(said.lines()) if line.strip()), "it said nothing")
        raise InputError(f"beside: {shown(command)} ended with {how}: {in_one_line(last.strip())}")
    return read_figure(printed.lines(), command, batch)


def read_figure(lines: list[str], command: str, batch: int) -> Beside:
    """The figure of the last line of JSON that has one; other lines are passed over. Raises `InputError`."""
    objects = [found for line in reversed(lines) if (found := _json_object(line)) is not None]
    figures = [found for found in objects if any(key in found for key in _KEYS)]
    source, wanted = f"beside: {shown(command)}", f"expected a line of JSON with {' or '.join(_KEYS)}"
    if not figures:
        what = f"a line of JSON with {listed(objects[0]) or 'no keys'}" if objects else "no line of JSON"
        raise InputError(f"{source} printed {what}; {wanted}")
    found = figures[0]
    key = next(key for key in _KEYS if key in found)
    if isinstance(found[key], _Several):
        raise InputError(f"{source} printed {key} {len(found[key])} times in one line; expected it once")
    value = finite_number(source, key, found[key], least=0.0)
    if not value:
        raise InputError(f"{source} printed {key} {value:g}; expected a number above 0")
    named = found.get("batch")
    named = named if isinstance(named, int) and not isinstance(named, bool) and named > 0 else None
    rate = value if key == "images_per_s" else (named or batch) / value
    how = key if key == "images_per_s" else f"{named or batch} / {key}"
    return Beside(rate, f"{how} of {in_one_line(command)}", named)


def comparison(images_per_s: float, one_by_one: float, batch: int, other: Beside) -> list[str]:
    """Lines on our rates, pipelined and one call at a time, beside another's."""
    theirs = other.images_per_s
    lines = ["", f"beside: {theirs:.4g} images/s, {other.source}"]
    if other.batch not in (None, batch):
        lines.append(f"note: its batch is {other.batch}, ours {batch}")
    return [
        *lines,
        f"one call at a time: ours {one_by_one:.4g} images/s, beside {theirs:.4g}: ratio {one_by_one / theirs:.2f}",
        f"pipelined: ours {images_per_s:.4g} images/s, beside {theirs:.4g}: ratio {images_per_s / theirs:.2f}",
    ]


class _Several(list):
    """The values of a key that a JSON object has several times."""


def _json_object(line: str) -> dict[str, Any] | None:
    """The object of a line; None: it is something else."""

    def gather(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            found[key] = _Several([*_values(found[key]), value]) if key in found else value
        return found

    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line, object_pairs_hook=gather) if line.lstrip().startswith("{") else None
        return value if isinstance(value, dict) else None
    return None


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, _Several) else [value]


class _Tail:
    """Reads a pipe to its end in a thread, and keeps the last mebibyte."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """The last lines, once nothing holds the pipe open any more."""
        self._thread.join(_PATIENCE)
        return self._kept.decode("utf-8", "replace").splitlines()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), _CHUNK):
                self._kept = (self._kept + chunk)[-_MOST_KEPT:]


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Ends the child and all that it has started, also in other process groups, as `timeout` makes one."""
    try:
        if _send(child.pid, signal.SIGTERM):
            until = time.monotonic() + _PATIENCE
            while time.monotonic() < until and (child.poll() is None or any(_session(child.pid))):
                time.sleep(0.05)
    finally:  # also after a second Ctrl-C
        _send(child.pid, signal.SIGKILL)
        child.wait()


def _send(session: int, number: int) -> bool:
    """Whether there was a process to send the signal to."""
    found = False
    for process in _session(session):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)
            found = True
    return found


def _session(leader: int) -> Iterator[int]:
    """The living processes of a session."""
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if os.getsid(int(path.name)) == leader and state != "Z":
                yield int(path.name)
