"""Images with captions on their way into a set: pairs, rejects, and the chunks that a worker takes."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

MOST_BYTES = 2**28  # of an image file
MOST_LETTERS = 2**16  # of a caption


@dataclasses.dataclass(frozen=True)
class Pair:
    """The bytes of an image file, and its captions; `name` is the example's own within the set."""

    name: str
    data: bytes
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reject:
    """What can't be used, and why."""

    name: str
    reason: str


class Chunk(Protocol):
    """A part of a source; can be pickled."""

    def read(self) -> Iterator[Pair | Reject]:
        """What is in it, in its order; raises `InputError` if it can't be read at all."""


class Source(Protocol):
    """What a set is made of.

    Attributes:
        unit: of what `total` counts: `pairs`, or what chunks are.
        total: how many there are.
        fingerprint: tells one content from another.
    """

    unit: str
    total: int
    fingerprint: str

    def chunks(self) -> Iterator[Chunk]:
        """Its chunks, in its order."""


def checked_texts(texts: Sequence[object]) -> tuple[str, ...]:
    """The captions without blank ones.

    Raises:
        ValueError: none is left, one is no text, or has a NUL character or more than `MOST_LETTERS`.
    """
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"the caption is {type(text).__name__}, not text")
        if "\0" in text:
            raise ValueError("a NUL character in the caption")
        if len(text) > MOST_LETTERS:
            raise ValueError(f"a caption of {len(text)} letters; the limit is {MOST_LETTERS}")
        if not is_unicode(text):
            raise ValueError("half of a surrogate pair in the caption")
    kept = tuple(text for text in texts if isinstance(text, str) and text.strip())
    if not kept:
        raise ValueError("no caption")
    return kept


def is_inside(name: str) -> bool:
    """Whether a file name stays in the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(name) and is_unicode(name) and "\0" not in name and not path.is_absolute() and ".." not in path.parts


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair can't, as of a JSON text that was cut."""
    return text == printable(text)


def printable(text: str) -> str:
    """The text with all that UTF-8 can't hold as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def share(name: str) -> float:
    """A number in [0, 1) that follows from a name alone, and is uniform over names: its SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
