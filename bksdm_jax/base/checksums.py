"""SHA-256 of every file in a folder, in `checksums.json`, which is written last: a folder without it isn't whole."""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import flush
from bksdm_jax.base.paths import is_remote

NAME = "checksums.json"
_BLOCK, _THREADS = 2**20, 8


def write_checksums(folder: epath.Path) -> None:
    """Writes the checksums of all files below a folder, on disk or in a bucket; raises `OSError` if it can't."""
    names = sorted(_files(folder))
    temporary = folder / f".{NAME}.partial"
    temporary.write_text(_table(folder, names))
    if not is_remote(folder):  # after a power cut, what has checksums is whole, and what came before may be deleted
        for name in (*names, temporary.name):
            flush(Path(folder / name))
    temporary.rename(folder / NAME)
    if not is_remote(folder):
        flush(Path(folder))


def damage(folder: epath.Path) -> str:
    """What is wrong with a folder that `write_checksums` was called for, in a few words; empty: nothing.

    Files that were added later don't matter. Raises `InputError` if files can't be read, which is no damage.
    """
    try:
        return _damage(folder)
    except FileNotFoundError as error:  # while it was read
        return f"{error.filename} is missing"
    except OSError as error:
        raise InputError(f"{folder}: can't be read ({in_short(error)}); run the command again") from error


def _damage(folder: epath.Path) -> str:
    try:
        text = (folder / NAME).read_text()
    except FileNotFoundError:
        return "it was not written to the end"
    except ValueError as error:
        return f"{NAME} is damaged ({in_short(error)})"
    try:
        known = json.loads(text)
        names = sorted(known)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            return f"{missing[0]} is missing"
        found = _table(folder, names)
        if found != text:
            changed = [name for name, digest in json.loads(found).items() if known[name] != digest]
            return f"{changed[0] if changed else NAME} is damaged"
    except (ValueError, TypeError, AttributeError) as error:
        return f"{NAME} is damaged ({in_short(error)})"
    return ""


def _table(folder: epath.Path, names: list[str]) -> str:
    """The text of the file, always the same for the same files, so that any change of it shows."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(lambda name: _sha256(folder / name), names)
        return json.dumps(dict(zip(names, digests, strict=True)), indent=1) + "\n"


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        if path.is_dir():
            yield from _files(path, f"{name}/")
        elif name not in (NAME, f".{NAME}.partial"):
            yield name
