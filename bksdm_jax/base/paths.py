"""Paths to read from: on this machine, or in a Google Cloud Storage bucket (`gs://`)."""

import math
import os
import stat
from pathlib import Path

from etils import epath

from bksdm_jax.base.errors import InputError, in_short, shown

AnyPath = Path | epath.Path
_REMOTE = "gs"
MOST_READ = 2**30
"""Bytes of a file that is read as a whole."""


def to_path(name: str | os.PathLike[str]) -> epath.Path:
    """A user's path, absolute and with `~` expanded; raises `InputError` for other schemes and unreachable buckets."""
    scheme, mark, _ = os.fspath(name).partition("://")
    if not mark:
        return epath.Path(name).expanduser().resolve()
    if scheme != _REMOTE:
        raise InputError(f"{name}: expected a local path or {_REMOTE}://BUCKET/PATH")
    path = epath.Path(name)
    try:
        path.exists()
    except Exception as error:  # the storage client raises many types
        advice = "log in with `gcloud auth application-default login`"
        raise InputError(f"{path}: can't be reached ({in_short(error)}); {advice}") from error
    return path


def local_path(key: str, name: object) -> Path:
    """A user's path on this machine, with `~` expanded; it need not exist.

    Raises `InputError`, with `key`, if it can't be a path.
    """
    try:
        path = Path(name).expanduser()  # type: ignore[arg-type]
        path.exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # RuntimeError: no such user
        raise InputError(f"{key}: {shown(name)} can't be a path ({in_short(error)})") from error
    return path


def cache_folder(name: str = "") -> Path:
    """The folder for what can be made again: `name`, a setting, or `bksdm_jax` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return local_path("cache", name or f"{base}/bksdm_jax")


def is_remote(path: AnyPath) -> bool:
    """Whether the path is in a bucket."""
    return os.fspath(path).startswith(f"{_REMOTE}://")


def size_and_time(path: AnyPath) -> tuple[int, int]:
    """A file's size in bytes and its modification time; raises `InputError` if they can't be read."""
    try:
        if is_remote(path):
            found = path.stat()
            return found.length, found.mtime
        found = Path(path).stat()  # etils would also look up the owner's name, which may be unknown here
        return found.st_size, found.st_mtime_ns
    except Exception as error:
        raise InputError(f"{path}: can't be read ({in_short(error)})") from error


def require_file(path: AnyPath, most: float = math.inf) -> None:
    """Raises `InputError` unless a local path is a regular file, or a link to one, of at most `most` bytes.

    Devices and pipes may never end, or never begin. Objects in buckets aren't checked.
    """
    if is_remote(path):
        return
    try:
        found = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({in_short(error)})") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a regular file; expected a file or a link to one")
    if found.st_size > most:
        raise InputError(f"{path}: {found.st_size} bytes; expected at most {most}")


def read_bytes(path: AnyPath, most: int = MOST_READ) -> bytes:
    """A file's bytes; raises `InputError` if it can't be read, or as `require_file`."""
    require_file(path, most)
    try:
        return path.read_bytes()
    except Exception as error:  # OSError, or one of the storage client's types
        raise InputError(f"{path}: can't be read ({in_short(error)})") from error
