"""WebDataset archives, as img2dataset writes them: in each `.tar`, files that share a name up to its first dot."""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from etils import epath

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.paths import size_and_time
from bksdm_jax.data.decode import MOST_BYTES
from bksdm_jax.data.prepare.pairs import Chunk, Pair, Reject, checked_texts, printable

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_TEXTS = ("txt", "json")
_MOST_TEXT = 2**20  # bytes of a member with captions
_MOST_HEADER = 2**16  # bytes of a header, long names included
_PIECE = 2**20  # bytes


class _Bounded(io.RawIOBase):
    """A file that reads at most `most` bytes at a time, whatever size a header claims."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file, self.most = file, _MOST_HEADER

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self.most:
            raise tarfile.ReadError("a header claims too many bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@dataclasses.dataclass
class _Group:
    """Members that share a name: their bytes by ending, or why they can't be used."""

    key: tuple[PurePosixPath, str]
    members: dict[str, bytes] = dataclasses.field(default_factory=dict)
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class TarChunk:
    """One archive. Its members are read, never extracted."""

    path: epath.Path
    column: str

    def read(self) -> Iterator[Pair | Reject]:
        """As `Chunk.read`; the pairs after damage are skipped, which counts as one reject."""
        group = None
        try:
            with self.path.open("rb") as file:
                bounded = _Bounded(file)
                with tarfile.open(fileobj=bounded, mode="r:") as archive:
                    seen = set()
                    for member, key, ending in _members(archive):
                        if group is None or key != group.key:
                            yield from self._pair(group)
                            group = _Group(key, problem="duplicate name; the first pair is used" if key in seen else "")
                            seen.add(key)
                        most = MOST_BYTES if ending in _IMAGES else _MOST_TEXT
                        if not member.isreg() or member.issparse():
                            group.problem = group.problem or f"its .{ending} is a link, device or sparse file"
                        elif member.size > most:
                            problem = f"its .{ending} has {member.size} bytes, the limit is {most}"
                            group.problem = group.problem or problem
                        elif not group.problem:
                            bounded.most = most
                            group.members[ending] = archive.extractfile(member).read()
                            bounded.most = _MOST_HEADER
                            if len(group.members[ending]) != member.size:
                                raise tarfile.ReadError("it ends inside a member")
                    rest = archive.offset
                yield from self._pair(group)
                group = None
                yield from self._end(file, rest)
        except Exception as error:  # tarfile raises many types besides its own
            yield from self._pair(group)
            reason = f"damaged or not a tar file ({in_short(error)}); pairs after this point were skipped"
            yield Reject(self.path.name, reason)

    def _end(self, file: io.RawIOBase, offset: int) -> Iterator[Reject]:
        """Rejects for an archive without an end mark, or with data after it."""
        file.seek(offset)
        end = file.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE or any(end):
            yield Reject(self.path.name, "no end mark: truncated or never finished; pairs may be missing")
        while piece := file.read(_PIECE):
            if piece.strip(b"\0"):
                yield Reject(self.path.name, "data after the end mark, as in concatenated archives; it was skipped")
                return

    def _pair(self, group: _Group | None) -> Iterator[Pair | Reject]:
        if group is None:
            return
        name = printable(f"{self.path.name}/{group.key[0] / group.key[1]}")
        images = [ending for ending in group.members if ending in _IMAGES]
        problem = group.problem or ("" if len(images) == 1 else f"{len(images) or 'no'} images of this name")
        try:
            if problem:
                raise ValueError(problem)
            yield Pair(name, group.members[images[0]], checked_texts(self._texts(group.members)))
        except ValueError as error:
            yield Reject(name, "the caption isn't UTF-8" if isinstance(error, UnicodeError) else str(error))

    def _texts(self, members: dict[str, bytes]) -> list[object]:
        if "txt" in members:
            return [members["txt"].decode("utf-8-sig")]
        if "json" not in members:
            raise ValueError("neither .txt nor .json with a caption")
        try:
            table = json.loads(members["json"].decode("utf-8-sig"))
        except (RecursionError, ValueError) as error:  # also UnicodeError
            raise ValueError("its .json isn't valid JSON") from error
        if not isinstance(table, dict) or self.column not in table:
            raise ValueError(f"its .json has no {self.column!r}")
        texts = table[self.column]
        return texts if isinstance(texts, list) else [texts]


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, tuple[PurePosixPath, str], str]]:
    """The members that may belong to a pair, each with the pair's folder and name, and its own ending."""
    end = 0
    for member in archive:
        archive.members = []  # else it keeps all of them
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError("a header of negative size")
        end = archive.offset
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")
        if stem and not member.isdir() and ending.lower() in (*_TEXTS, *_IMAGES):
            yield member, (path.parent, stem), ending.lower()


class TarSource:
    """A folder of archives in the order of their names; each is a chunk."""

    unit = "archives"  # the number of pairs is only known after reading

    def __init__(self, folder: epath.Path, column: str) -> None:
        """Lists the archives; raises `InputError` if there are none.

        `column` is the key of the captions in `.json` members, for pairs without `.txt`.
        """
        paths = sorted((path for path in folder.iterdir() if path.name.endswith(".tar")), key=str)
        if not paths:
            raise InputError(f"{folder}: no .tar files")
        self._chunks, self.total = [TarChunk(path, column) for path in paths], len(paths)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # each may be a request to a bucket
            facts = list(pool.map(size_and_time, paths))
        table = [(path.name, *fact) for path, fact in zip(paths, facts, strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps(table).encode()).hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        return iter(self._chunks)
