"""Folders that one program uses at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a folder, the file `.lock` in it; the folder is created if missing.

    Args:
        folder: on a disk that can lock files; on another one, a warning is logged.
        wait: for a program that holds the lock; else that is an error.

    Raises:
        InputError: another program uses the folder, or it can't be written.
    """
    path = make_folder(folder) / ".lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror}); choose another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise InputError(f"{folder}: in use by another program; wait for it, or choose another one") from error
            logging.info("%s: in use by another program; waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logging.warning("%s: its disk can't lock files (%s); use it in one program at a time", folder, error)
        yield
