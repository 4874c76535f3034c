"""Folders that one program uses at a time; a lock ends with its process, however that ends."""

import contextlib
import errno
import fcntl
import functools
import inspect
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from absl import logging

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder

LOCK = ".lock"
"""The file in a folder that is locked; it says by whom."""

ATTEMPTS = 100
"""To lock a name that other programs take and give up at the same time."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_HOLDER = r"process \d{1,10} on [\w.-]{1,255}"
_SIGNING = 0.1  # seconds from taking a lock to having said so
_OPEN: set[int] = set()  # descriptors of locked files
_HELD: dict[Path, tuple[int, int]] = {}  # by folder: descriptor, thread
_RUNS: set[tuple[Path, int]] = set()  # folder, thread


def _close_in_child() -> None:
    """A forked child shares its parent's locks, and would keep them longer than the parent lives."""
    for descriptor in _OPEN:
        os.close(descriptor)
    _OPEN.clear()
    _HELD.clear()
    _RUNS.clear()


os.register_at_fork(after_in_child=_close_in_child)


def lock(descriptor: int, folder: Path) -> bool:
    """Locks an open file or folder until `unlock`, which must come in any case; False: another program has locked it.

    On a disk that can't lock files, a warning with the name of `folder` is logged.
    """
    _OPEN.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on some network disks
        return False
    except OSError as error:
        logging.warning("%s: its disk can't lock files (%s); use it in one program at a time", folder, error)
    return True


def unlock(descriptor: int) -> None:
    """Ends the lock, if there is one, and closes the file."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing wouldn't, while a child that is being started has it too
    _OPEN.discard(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a folder, the file `.lock` in it; the folder is created if missing.

    Args:
        folder: on a disk that can lock files; on another one, a warning is logged.
        wait: for a program that holds the lock; else that is an error.

    Raises:
        InputError: another program uses the folder, or it can't be written.
    """
    descriptor = _taken(make_folder(folder), wait)
    try:
        yield
    finally:
        _sign(descriptor, "")
        unlock(descriptor)


def hold(folder: Path, needed: bool = True) -> bool:
    """Takes the lock of an existing folder, until the `one_run` around this call or the process ends.

    Without `needed` a folder that can't be locked for want of permissions stays unlocked.

    Returns:
        whether this call has taken it; False: the run has it already, or it stays unlocked.

    Raises:
        InputError: another program uses the folder, or it can't be written.
    """
    key, thread = folder.resolve(), threading.get_ident()
    if key in _HELD:
        if _HELD[key][1] != thread:
            raise _in_use(folder, "another run of this process")
        return False
    try:
        _HELD[key] = _taken(folder), thread
    except _UnwritableError:
        if needed:
            raise
        return False
    return True


def one_run(is_first: Callable[[], bool] = lambda: True) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorates a function that is a run in its argument `workdir`: when it returns, the lock is gone.

    If there is a lock file, it is locked before anything else is done, so that a second program is refused at once;
    else `hold` comes later, since a mistake in the settings mustn't change a folder that isn't a run's.

    Args:
        is_first: whether this is the one of the run's processes that locks.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*arguments: _P.args, **options: _P.kwargs) -> _R:
            workdir = Path(signature.bind(*arguments, **options).arguments["workdir"])
            with _run_in(workdir) if is_first() else contextlib.nullcontext():
                return function(*arguments, **options)

        return call

    return decorate


@contextlib.contextmanager
def _run_in(workdir: Path) -> Iterator[None]:
    key, thread = workdir.resolve(), threading.get_ident()
    if (key, thread) in _RUNS:  # a part of a run that ends later
        yield
        return
    _RUNS.add((key, thread))
    try:
        if (workdir / LOCK).is_file() and (workdir / "config.json").is_file():
            hold(workdir, needed=False)
        yield
    finally:
        _RUNS.remove((key, thread))
        if key in _HELD and _HELD[key][1] == thread:
            with contextlib.suppress(OSError):
                (key / LOCK).unlink()
            unlock(_HELD.pop(key)[0])


class _UnwritableError(InputError):
    """The lock file can't be opened."""


def _taken(folder: Path, wait: bool = False) -> int:
    """The descriptor of a folder's lock file, locked and signed."""
    path = folder / LOCK
    for _ in range(ATTEMPTS):
        descriptor = _opened(path)
        try:
            if not lock(descriptor, folder):
                if not wait:
                    time.sleep(_SIGNING)
                    raise _in_use(folder, _holder(descriptor))
                logging.info("%s: in use by %s; waiting for it", folder, _holder(descriptor))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_at(descriptor, path):
                _sign(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n")
                return descriptor
        except BaseException:
            unlock(descriptor)
            raise
        unlock(descriptor)  # the holder deleted it in between
    raise _in_use(folder, "other programs")


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still what has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _opened(path: Path) -> int:
    """For writing, or if that isn't allowed for reading, which is enough to lock on most disks."""
    problems = []
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            problems.append(error)
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                break
    problem = problems[0]  # the second may be that there is no file to read
    raise _UnwritableError(f"{path}: can't be written ({problem.strerror}); choose another folder") from problem


def _sign(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk, or one that is only read
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _holder(descriptor: int) -> str:
    found = re.match(_HOLDER, os.pread(descriptor, 300, 0).decode("ascii", "replace"))
    return f"another program ({found[0]})" if found else "another program"


def _in_use(folder: Path, holder: str) -> InputError:
    return InputError(f"{folder}: in use by {holder}; wait for it or stop it, or choose another folder")
