"""Folders that are written as a whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.locks import ATTEMPTS, is_at, lock, unlock
from bksdm_jax.base.workdir import is_used


@contextlib.contextmanager
def atomic_folder(target: Path, replace: bool = True) -> Iterator[Path]:
    """Yields an empty folder beside `target`, which is renamed to `target` if the block succeeds.

    An existing `target` is replaced as a whole, and left as it is on an error. A killed process leaves at most a hidden
    `.NAME.partial` beside it, which the next call empties, or, between two renames, the former folder as `.NAME.old`.

    Args:
        target: the folder.
        replace: False: it is an error if `target` is used, even if it wasn't when the call began.

    Raises:
        InputError: another program is writing the folder, it can't be written or replaced, or the block raises an
            `OSError`.
    """
    target = Path(target).resolve()
    temporary, old = (target.with_name(f".{target.name}.{ending}") for ending in ("partial", "old"))
    written = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(temporary, target)
        try:
            _empty(temporary)
            yield temporary
            if not replace and is_used(target):
                raise InputError(f"{target}: exists already; choose a new folder")
            _put(temporary, target, old)
            written = True
        finally:
            if not written:  # else the name may be another program's by now
                shutil.rmtree(temporary, ignore_errors=True)
            unlock(descriptor)
    except OSError as error:
        raise InputError(f"{target}: can't be written ({error.strerror or error}); choose another folder") from error


def _locked(temporary: Path, target: Path) -> int:
    """Makes the folder, if missing, and locks it; returns its descriptor."""
    for _ in range(ATTEMPTS):
        temporary.mkdir(exist_ok=True)
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # another program has just finished
            continue
        free = lock(descriptor, target)
        if free and is_at(descriptor, temporary):
            return descriptor
        unlock(descriptor)
        if not free:
            break
    raise InputError(f"{target}: being written by another program; wait for it, or choose another folder")


def _empty(folder: Path) -> None:
    """Deletes what a killed process has left."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _put(temporary: Path, target: Path, old: Path) -> None:
    """Renames `temporary` to `target`, in place of a folder there."""
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
