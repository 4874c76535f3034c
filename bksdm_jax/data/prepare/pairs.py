"""What sources yield: pairs of image and captions, rejects, and the chunks that workers read."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from bksdm_jax.pipelines.tokenizer import MOST_LETTERS


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image file's bytes and its captions; `name` is unique within the dataset."""

    name: str
    data: bytes
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reject:
    """A pair that can't be used, and why."""

    name: str
    reason: str


class Chunk(Protocol):
    """A part of a source; picklable."""

    def read(self) -> Iterator[Pair | Reject]:
        """Yields its pairs and rejects in order; raises `InputError` if the chunk can't be read at all."""


class Source(Protocol):
    """Where the pairs come from.

    Attributes:
        unit: what `total` counts: `pairs`, or the plural of what a chunk is.
        total: their number.
        fingerprint: changes with the content.
    """

    unit: str
    total: int
    fingerprint: str

    def chunks(self) -> Iterator[Chunk]:
        """Its chunks in order."""


def checked_texts(texts: Sequence[object]) -> tuple[str, ...]:
    """The captions without blank ones.

    Raises `ValueError` if none is left, or one isn't text, isn't Unicode, has a NUL or more than `MOST_LETTERS`.
    """
    for text in texts:
        if text is None:
            raise ValueError("no caption (null)")
        if not isinstance(text, str):
            raise ValueError(f"the caption isn't text but {type(text).__name__}")
        if "\0" in text:
            raise ValueError("NUL character in the caption")
        if len(text) > MOST_LETTERS:
            raise ValueError(f"caption of {len(text)} characters; the limit is {MOST_LETTERS}")
        if text != printable(text):  # as in truncated JSON strings
            raise ValueError("unpaired surrogate in the caption")
    kept = tuple(text for text in texts if isinstance(text, str) and text.strip())
    if not kept:
        raise ValueError("no caption")
    return kept


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
