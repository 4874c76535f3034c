"""In a run of several processes: each learns how another ends, and none waits for one that is lost.

Every process says that it lives, every few seconds, to the first, which tells the others who is lost. What ends the
others, each with one line on standard error, and with which status:

  `process 1 (host) failed: REASON`               1   it told its error before it ended
  `process 1 (host) was interrupted`              75  by a signal, before the run could stop together
  `process 1 (host) stopped early`                75  with its state saved, and this one didn't within the timeout
  `process 1 (host) is gone`                      75  its connection broke: killed, or its host went down
  `process 1 (host) hasn't answered for 300 s`    75  stopped, or its host or network hangs

A process whose main thread hangs, say on a file system that doesn't answer, still says that it lives. The runtime's
own supervision is of no use here, as it ends processes by SIGABRT. Nothing here imports JAX.
"""

import contextlib
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from bksdm_jax.base.errors import InputError, in_one_line, in_short
from bksdm_jax.base.exits import FAILED, RESTART
from bksdm_jax.base.links import MOST_TEXT, Link
from bksdm_jax.base.monitor import INTERRUPTED, Monitor, Verdict

_AT_MOST = 100.0  # seconds for leaving the runtime when all have finished
_STATUS = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")  # the runtime's errors
_DEEPEST = 20  # errors behind an error
_HOOKS = 10.0  # seconds for the functions of `before_leaving`, unless one asks for more

_monitor: Monitor | None = None
_explained: Exception | None = None  # one of which no other process is the cause
_hooks: list[Callable[[], object]] = []
_busy = threading.Event()  # one of them takes its time
_leaving = threading.Lock()  # whoever has it ends the process


def watch(index: int, links: list[Link], timeout: float) -> None:
    """Watches the other processes from now on, in a thread.

    Args:
        index: of this process.
        links: of the first process: one to each other; of the others: one to the first.
        timeout: seconds without a sign of life after which a process is lost.
    """
    global _monitor  # noqa: PLW0603 (there is one set of peers)
    if links:
        _monitor = Monitor(index, links, timeout, _end_by)
        _monitor.start()


@contextlib.contextmanager
def before_leaving(function: Callable[[], object]) -> Iterator[None]:
    """While entered, `function` is called before this process ends because of another.

    It runs in a thread of its own, for at most 10 seconds or half the timeout, or for the timeout once it has called
    `take_time`, and may not use collectives. An error in the block, which a broken collective raises at once, leaves it
    only when no other process is the cause.
    """
    _hooks.append(function)
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError) or _of_runtime(error):
            _explain(error)
        raise
    finally:
        _hooks.remove(function)


def take_time() -> None:
    """For a function of `before_leaving` that can do its work, but not at once."""
    _busy.set()


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around a program: tells the others how it ends, and explains its end if another process is the cause.

    Without other processes it does nothing. A program that ends well waits for the others, and then as usual; so does
    one that stops with status 75, for at most the timeout. Any other end is immediate, without the runtime's barrier,
    in which the message would drown.
    """
    try:
        yield
    except SystemExit as end:
        if _monitor is not None:
            _end_with(end)
        raise
    except KeyboardInterrupt:
        if _monitor is None:
            raise
        leave(INTERRUPTED, "interrupted")
    except Exception as error:
        if _monitor is None:
            raise
        _explain(error)
        tell(FAILED, f"{type(error).__name__}: {in_short(error)}")
        with _leaving:
            traceback.print_exc()
            _exit(FAILED)
    else:
        finish(0)


def tell(status: int, reason: str) -> None:
    """Tells the others that this process ends now, with this status; returns within seconds."""
    if _monitor is not None:
        _monitor.tell(status, in_one_line(reason, MOST_TEXT))


def leave(status: int, line: str) -> NoReturn:
    """Tells the others, prints the line on standard error, and ends the process, from any thread."""
    with contextlib.suppress(KeyboardInterrupt):  # a second one
        tell(status, line.removeprefix("error: "))
    _leaving.acquire()
    if line:
        _print(line)
    _exit(status)


def finish(status: int) -> None:
    """Waits until the others have ended too: well, or with status 75. Then this process must end."""
    if _monitor is None:
        return
    try:
        _monitor.finish(status)
    except KeyboardInterrupt:
        leave(status or INTERRUPTED, "interrupted")
    threading.Thread(target=_end_late, args=(status,), daemon=True).start()


def _explain(error: Exception) -> None:
    """Ends this process if another is the cause of an error; waits until that is known."""
    global _explained  # noqa: PLW0603
    if _monitor is not None and error is not _explained:
        _monitor.explain()
        _explained = error


def _of_runtime(error: BaseException) -> bool:
    """Whether an error of the runtime is behind this one: a checkpoint that can't be written, say."""
    behind: BaseException | None = error
    for _ in range(_DEEPEST):
        if behind is None:
            break
        if _STATUS.match(str(behind)):
            return True
        behind = behind.__cause__ or behind.__context__
    return False


def _end_with(end: SystemExit) -> None:
    if _monitor is not None and _of_runtime(end):
        _monitor.explain()
    if isinstance(end.__context__, KeyboardInterrupt):
        leave(end.code if isinstance(end.code, int) else INTERRUPTED, "" if isinstance(end.code, int) else str(end))
    if end.code in (None, 0, RESTART):
        finish(end.code or 0)
    elif isinstance(end.code, int):
        leave(end.code, "")
    else:
        leave(FAILED, str(end.code))


def _end_late(status: int) -> None:
    """Ends a process that hangs in the runtime's last barrier, since another was killed there."""
    time.sleep(_AT_MOST)
    _exit(status)


def _end_by(verdict: Verdict, timeout: float) -> NoReturn:
    """Ends this process because of another."""
    _leaving.acquire()
    if _hooks:
        helper = threading.Thread(target=_call_hooks, daemon=True)
        helper.start()
        helper.join(min(_HOOKS, timeout / 2))
        if _busy.is_set():
            helper.join(max(timeout - min(_HOOKS, timeout / 2), 0))
    if verdict.text:
        _print(f"error: {verdict.text}")
    _exit(verdict.status)


def _call_hooks() -> None:
    for function in reversed(_hooks):
        with contextlib.suppress(Exception):  # the run is lost anyway; its line matters more
            function()


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"\n{line}\n" if sys.stderr.isatty() else f"{line}\n")  # a bar may stand in the line


def _exit(status: int) -> NoReturn:
    for child in multiprocessing.active_children():  # nothing else would end them
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
