"""WebDataset archives, as img2dataset writes them: in each `.tar`, files that share a name up to its first dot."""

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from etils import epath

from bksdm_jax.errors import InputError
from bksdm_jax.preparation.pairs import MOST_BYTES, Chunk, Pair, Reject, checked_texts

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
"""Endings of a member that is an image."""
_MOST_TEXT = 2**20  # bytes of a caption's member


class _Bounded(io.RawIOBase):
    """A file of which nobody reads more than an image at a time, whatever a header claims."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MOST_BYTES:
            raise tarfile.ReadError("a header that claims too much")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@dataclasses.dataclass(frozen=True)
class TarChunk:
    """One archive. Its members are read, never extracted."""

    path: epath.Path
    column: str

    def read(self) -> Iterator[Pair | Reject]:
        """As `Chunk.read`; what comes after damage is lost, which is one more reject."""
        members: dict[str, bytes] = {}
        key, seen, again = None, set(), False
        try:
            with self.path.open("rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
                for member in archive:
                    archive.members = []  # it keeps all otherwise
                    if not member.isreg() or member.issparse():
                        if not member.isdir():
                            yield Reject(self._name(member.name), "a link, device or sparse file")
                        continue
                    path = PurePosixPath(member.name)
                    stem, _, ending = path.name.partition(".")
                    if (path.parent, stem) != key:
                        yield from self._pair(key, members)
                        key, members = (path.parent, stem), {}
                        again = key in seen
                        seen.add(key)
                        if again:
                            yield Reject(self._name(str(path.parent / stem)), "a name that was there before")
                    if again:
                        continue
                    ending = ending.lower()
                    if ending in ("txt", "json") or ending in IMAGES:
                        most = MOST_BYTES if ending in IMAGES else _MOST_TEXT
                        if member.size > most:
                            yield Reject(self._name(member.name), f"{member.size} bytes; the limit is {most}")
                            continue
                        members[ending] = archive.extractfile(member).read()
                        if len(members[ending]) != member.size:
                            raise tarfile.ReadError("it ends in the middle of a member")
                file.seek(archive.offset)
                end = file.read(tarfile.BLOCKSIZE)
                is_whole = len(end) == tarfile.BLOCKSIZE and not any(end)
            yield from self._pair(key, members)
            if not is_whole:
                yield Reject(self.path.name, "no end mark: the archive is cut off, or was never finished")
        except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
            yield from self._pair(key, members)
            yield Reject(self.path.name, f"no whole archive ({' '.join(str(error).split())[:160]}); the rest is lost")

    def _name(self, member: str) -> str:
        return f"{self.path.name}/{member}"

    def _pair(self, key: tuple[PurePosixPath, str] | None, members: dict[str, bytes]) -> Iterator[Pair | Reject]:
        if key is None or not members:
            return
        name = self._name(str(key[0] / key[1]))
        images = [ending for ending in members if ending in IMAGES]
        if len(images) != 1:
            yield Reject(name, f"{len(images) or 'no'} images of this name")
            return
        try:
            yield Pair(name, members[images[0]], checked_texts(self._texts(members)))
        except ValueError as error:  # also of an encoding
            yield Reject(name, "the caption isn't UTF-8" if isinstance(error, UnicodeError) else str(error))

    def _texts(self, members: dict[str, bytes]) -> list[object]:
        if "txt" in members:
            return [members["txt"].decode("utf-8-sig")]
        if "json" not in members:
            raise ValueError("neither .txt nor .json with a caption")
        try:
            table = json.loads(members["json"].decode("utf-8-sig"))
        except (UnicodeError, RecursionError, ValueError) as error:
            raise ValueError("its .json is no JSON") from error
        if not isinstance(table, dict) or self.column not in table:
            raise ValueError(f"its .json has no {self.column!r}")
        texts = table[self.column]
        return texts if isinstance(texts, list) else [texts]


class TarSource:
    """A folder of archives, one chunk each, in the order of their names."""

    unit = "archives"  # how many pairs they hold is known when they have been read

    def __init__(self, folder: epath.Path, column: str) -> None:
        """Lists the archives.

        Args:
            folder: where they are.
            column: of the captions in `.json` members, where there is no `.txt`.

        Raises:
            InputError: there are none.
        """
        self._paths = sorted(folder.glob("*.tar"), key=str)
        if not self._paths:
            raise InputError(f"{folder}: no .tar files")
        self._column, self.total = column, len(self._paths)
        sizes = [(path.name, path.stat().length) for path in self._paths]
        self.fingerprint = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        return (TarChunk(path, self._column) for path in self._paths)
