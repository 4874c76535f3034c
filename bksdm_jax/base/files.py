"""Atomic writes, and reading text in the usual encodings."""

import codecs
import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.paths import MOST_READ, AnyPath, read_bytes

_MOST_JSON = 2**24  # bytes; `[]` takes a hundred times its size in memory
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path beside `target`; the file written there is renamed to `target` if the block succeeds.

    Turns an `OSError` in the block, such as a full disk, into an `InputError`.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"{target}: can't be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that a disk has no room left, or has become read-only."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex; raises `InputError` if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents if missing; raises `InputError` if it can't be created."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: can't be created ({error.strerror}); choose another folder") from error
    return path


def require_space(folder: Path, needed: int) -> None:
    """Raises `InputError` if the disk of `folder`, which need not exist yet, has fewer than `needed` bytes free."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"{folder}: {free / 2**20:.0f} MiB free on its disk, {needed / 2**20:.0f} MiB needed; "
            "free some space or choose another workdir"
        )


def write_json(path: Path, value: Any, allow_nan: bool = False) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically.

    `allow_nan` is for copies of files that have NaN or infinities; otherwise all numbers must be finite.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=allow_nan) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)


def flush(path: Path) -> None:
    """Has the system write a file or a folder's entries to the disk now; raises `OSError` if it can't."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: AnyPath, most: int = _MOST_JSON) -> dict[str, Any]:
    """The JSON object in `path`; NaN and infinities are numbers, as in files of Diffusers.

    Raises:
        InputError: the file can't be read, has more than `most` bytes, or holds something else, such as a number beyond
            the range of floats.
    """
    text = read_text(path, most)
    try:
        value = json.loads(text, parse_float=_finite)
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply; expected a JSON object of settings") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({in_short(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _finite(digits: str) -> float:
    """The number; raises `ValueError` for one like `1e400`, which would be infinite."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is beyond the range of floats")
    return number


def encoding_of(data: bytes) -> str:
    """The encoding of a text by its byte-order mark, in the first four bytes; without one, UTF-8."""
    return next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")


def read_text(path: AnyPath, most: int = MOST_READ) -> str:
    """The text of `path`: UTF-8, or the encoding of its byte-order mark (UTF-8, UTF-16, UTF-32).

    Raises:
        InputError: the file can't be read, has more than `most` bytes, or a line (named in the error) isn't text in
            that encoding.
    """
    data = read_bytes(path, most)
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: line {line} isn't valid {encoding} (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}: line {line} has a NUL character; is it UTF-16? save the file as UTF-8")
    return text
