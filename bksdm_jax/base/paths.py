"""Names of files and folders to read: this machine's, or those of a Google Cloud Storage bucket (`gs://`)."""

import os
from pathlib import Path

from etils import epath

from bksdm_jax.base.errors import InputError, in_short

AnyPath = Path | epath.Path
_REMOTE = "gs"


def to_path(name: str | os.PathLike[str]) -> epath.Path:
    """The path that a user's name of a file or folder stands for: absolute, `~` its owner's home.

    Raises:
        InputError: another scheme than `gs://`, or a bucket that can't be reached.
    """
    scheme, mark, _ = os.fspath(name).partition("://")
    if not mark:
        return epath.Path(name).expanduser().resolve()
    if scheme != _REMOTE:
        raise InputError(f"{name}: expected a path of this machine or one that begins with {_REMOTE}://")
    path = epath.Path(name)
    try:
        path.exists()
    except Exception as error:  # types of the store's client
        raise InputError(
            f"{path}: can't be reached ({in_short(error)}); log in by `gcloud auth application-default login`"
        ) from error
    return path


def is_remote(path: AnyPath) -> bool:
    """Whether each question about this path is one to a store."""
    return os.fspath(path).startswith(f"{_REMOTE}://")


def size_and_time(path: AnyPath) -> tuple[int, int]:
    """A file's bytes, and when it was written last; raises `InputError` if it can't be asked."""
    try:
        if is_remote(path):
            found = path.stat()
            return found.length, found.mtime
        found = Path(path).stat()  # since etils' asks for the owner's name too, which may not be known here
        return found.st_size, found.st_mtime_ns
    except Exception as error:
        raise InputError(f"{path}: can't be read ({in_short(error)})") from error


def read_bytes(path: AnyPath) -> bytes:
    """A file's bytes; raises `InputError` if it can't be read."""
    try:
        return path.read_bytes()
    except Exception as error:  # the system's, or types of a store's client
        raise InputError(f"{path}: can't be read ({in_short(error)})") from error
