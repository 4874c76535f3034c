"""The files below a folder, and what identifies them: names, sizes and times."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.paths import AnyPath, is_remote, size_and_time

_THREADS = 16  # requests to a bucket at a time


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file: its name relative to the folder, with `/`; its size in bytes, and its modification time."""

    name: str
    size: int
    time: int

    @property
    def ending(self) -> str:
        """Such as `.jpg`, in lower case."""
        return PurePosixPath(self.name).suffix.lower()


def walk(folder: AnyPath) -> Iterator[tuple[str, list[Entry]]]:
    """Each folder at or below `folder` with its files, sorted by name; the relative name of `folder` itself is empty.

    Hidden files and folders are left out, links are followed, and a folder is visited once.

    Raises `InputError` if a folder can't be read.
    """
    return _walk(folder, "", set())


def _walk(folder: AnyPath, name: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, list[Entry]]]:
    prefix = f"{name}/" if name else ""
    try:
        if is_remote(folder):
            files, folders = _remote(folder, prefix)
        else:
            found = Path(folder).stat()
            if (found.st_dev, found.st_ino) in seen:  # a link to a folder around it
                return
            seen.add((found.st_dev, found.st_ino))
            files, folders = _local(folder, prefix)
    except InputError:
        raise
    except Exception as error:  # OSError, or a bucket client's own types
        raise InputError(f"{folder}: can't be listed ({in_short(error)})") from error
    yield name, files
    for inner in folders:
        yield from _walk(folder / inner, prefix + inner, seen)


def _local(folder: AnyPath, prefix: str) -> tuple[list[Entry], list[str]]:
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if is_hidden(entry.name):
                continue
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                found = entry.stat()
                files.append(Entry(prefix + entry.name, found.st_size, found.st_mtime_ns))
            except OSError:  # a link to nowhere: reading it will say so
                files.append(Entry(prefix + entry.name, 0, 0))
    return files, folders


def _remote(folder: AnyPath, prefix: str) -> tuple[list[Entry], list[str]]:
    paths = sorted((path for path in folder.iterdir() if not is_hidden(path.name)), key=lambda path: path.name)

    def look(path: AnyPath) -> Entry | None:
        return None if path.is_dir() else Entry(prefix + path.name, *size_and_time(path))

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(look, paths))
    files = [entry for entry in found if entry is not None]
    return files, [path.name for path, entry in zip(paths, found, strict=True) if entry is None]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".") or name == "__MACOSX"


class Identity:
    """Counts files and hashes their names, sizes and times."""

    def __init__(self) -> None:
        self._count, self._hash = 0, hashlib.sha256()

    def add(self, entries: Sequence[Entry]) -> None:
        """Adds files."""
        self._count += len(entries)
        for entry in entries:
            self._hash.update(f"{entry.name}\0{entry.size}\0{entry.time}\n".encode("utf-8", "surrogateescape"))

    def facts(self, more: bytes = b"") -> dict[str, int | str]:
        """As `Source.facts`; `more` is hashed too."""
        whole = self._hash.copy()
        whole.update(more)
        return {"files": self._count, "sha256": whole.hexdigest()}
