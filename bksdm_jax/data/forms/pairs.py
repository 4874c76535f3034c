"""What sources yield: pairs of image and captions, rejects, and the chunks that workers read."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from bksdm_jax.base.errors import InputError, in_one_line, in_short
from bksdm_jax.base.paths import AnyPath, is_remote
from bksdm_jax.data.decode import MOST_BYTES
from bksdm_jax.pipelines.tokenizer import MOST_LETTERS

SPLITS = ("train", "validation", "test")
"""The splits that a source can give."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "heldout"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Names of folders, files and TFDS splits -> the split that they are."""
MOST_NAME = 2**12
"""Letters of a file's name in an error."""
MOST_TEXT = 2**20
"""Bytes of a file of captions."""


class Stored(Protocol):
    """An image file, wherever it is stored; `str()` of it names it."""

    def read(self) -> bytes:
        """Its bytes; raises `ValueError` if it is missing or too large, `InputError` if a bucket doesn't answer."""

    def open(self) -> BinaryIO:
        """The same as a file; raises `ValueError`, `OSError` or `InputError`."""


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file."""

    path: AnyPath

    def read(self) -> bytes:
        """As `Stored.read`."""
        return file_bytes(self.path, MOST_BYTES)

    def open(self) -> BinaryIO:
        """As `Stored.open`."""
        if is_remote(self.path):
            return io.BytesIO(self.read())
        _require_file(self.path, MOST_BYTES)
        return self.path.open("rb")

    def __str__(self) -> str:
        return in_one_line(str(self.path), MOST_NAME)


class _Window(io.RawIOBase):
    """`size` bytes of a file from `offset` on; closes the file with itself."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        self._file.seek(self._offset + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclasses.dataclass(frozen=True)
class StoredPart:
    """A part of a file: `size` bytes from `offset` on, called `name`."""

    path: AnyPath
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        """As `Stored.read`."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ValueError(in_short(error)) from error
        if len(data) != self.size:
            raise ValueError(f"{self.path.name} ends inside it")
        return data

    def open(self) -> BinaryIO:
        """As `Stored.open`."""
        return io.BufferedReader(_Window(self.path.open("rb"), self.offset, self.size))

    def __str__(self) -> str:
        return in_one_line(self.name, MOST_NAME)


@dataclasses.dataclass(frozen=True)
class StoredBytes:
    """Bytes in memory, called `name`."""

    data: bytes
    name: str

    def read(self) -> bytes:
        """The bytes."""
        return self.data

    def open(self) -> BinaryIO:
        """As `Stored.open`."""
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return in_one_line(self.name, MOST_NAME)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its captions.

    Attributes:
        name: unique within the dataset.
        image: the image file.
        texts: the captions, at least one.
        split: one of `SPLITS` if the source gives splits.
        times: how often it is in the dataset.
    """

    name: str
    image: Stored
    texts: tuple[str, ...]
    split: str = ""
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Reject:
    """A pair that can't be used, and why."""

    name: str
    reason: str


class Chunk(Protocol):
    """A part of a source; picklable."""

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """Yields its pairs and rejects in order; raises `InputError` if the chunk can't be read at all.

        Images may be stored in `scratch`, a folder for temporary files, until the iterator ends.
        """


class Source(Protocol):
    """Where the pairs come from.

    Attributes:
        unit: what `total` counts: `pairs`, or the plural of what a chunk is.
        total: their number.
        splits: the splits that it gives, in the order of `SPLITS`; empty: none.
        facts: its files, rows, ... by number, and `sha256`, which changes with their names, sizes and times.
        notes: what a user should know of it, such as images that no row of a table names.
    """

    unit: str
    total: int
    splits: tuple[str, ...]
    facts: Mapping[str, int | str]
    notes: Sequence[str]

    def chunks(self) -> Iterator[Chunk]:
        """Its chunks in order."""


def file_bytes(path: AnyPath, most: int) -> bytes:
    """A file's bytes.

    Raises:
        ValueError: it is missing, unreadable, no regular file, or has more than `most` bytes.
        InputError: a bucket doesn't answer.
    """
    try:
        if not is_remote(path):
            _require_file(path, most)
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise ValueError(in_short(error)) from error
    except Exception as error:  # of a bucket's client: the connection, not the file
        raise InputError(f"{path}: can't be read ({in_short(error)})") from error
    if len(data) > most:
        raise ValueError(f"file of more than {most} bytes")
    return data


def _require_file(path: AnyPath, most: int) -> None:
    path = Path(path)  # etils takes pipes for files
    if not path.exists():
        raise ValueError("no such file")
    if not path.is_file():
        raise ValueError("a folder or device instead of a file")
    if path.stat().st_size > most:
        raise ValueError(f"file of more than {most} bytes")


def captions(texts: Sequence[object], default: str = "") -> tuple[str, ...]:
    """The captions, each once, without blank ones; only `default` if none is left.

    Raises `ValueError` if there is none, or one isn't text, isn't Unicode, has a NUL or more than `MOST_LETTERS`.
    """
    for text in texts:
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"the caption isn't text but {_kind(text)}")
        if "\0" in text:
            raise ValueError("NUL character in the caption")
        if len(text) > MOST_LETTERS:
            raise ValueError(f"caption of {len(text)} characters; the limit is {MOST_LETTERS}")
        if text != printable(text):  # as in truncated JSON strings
            raise ValueError("unpaired surrogate in the caption")
    kept = tuple(dict.fromkeys(text for text in texts if isinstance(text, str) and text.strip()))
    if kept or default:
        return kept or (default,)
    raise ValueError("no caption (null)" if list(texts) == [None] else "no caption")


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return names.get(type(value), type(value).__name__)


def is_inside(name: str) -> bool:
    """Whether a relative file name stays inside its folder."""
    path = PurePosixPath(name)
    valid = bool(name) and name == printable(name) and "\0" not in name
    return valid and not path.is_absolute() and ".." not in path.parts


def printable(text: str) -> str:
    """The text with everything that UTF-8 can't represent (unpaired surrogates) escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def share(name: str) -> float:
    """A number in [0, 1), uniform over names: the name's SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def in_order(splits: set[str]) -> tuple[str, ...]:
    """The splits in the order of `SPLITS`; none if there is only the one for training."""
    return tuple(split for split in SPLITS if split in splits) if splits != {"train"} else ()


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
