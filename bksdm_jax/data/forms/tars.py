"""WebDataset archives, as img2dataset writes them: `.tar` files of images, each with a `.txt` or `.json`."""

import concurrent.futures
import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import require_space
from bksdm_jax.base.paths import AnyPath, is_remote, require_file, size_and_time
from bksdm_jax.data.decode import MOST_BYTES
from bksdm_jax.data.forms.files import IMAGES, TEXTS, texts_of
from bksdm_jax.data.forms.listing import walk
from bksdm_jax.data.forms.pairs import MOST_TEXT, Chunk, Pair, Reject, StoredPart, captions, printable

ENDINGS = (".tar", ".tar.gz", ".tgz")
"""Of the archives that are read."""
_MOST_HEADER = 2**16  # bytes of a header, long names included
_PIECE = 2**20  # bytes
_MOST_MEMBERS = 2**21  # of an archive
_GROWTH, _SPARE = 20, 2**28  # a .tar.gz may unpack to 20 times its size and 256 MiB
_GZIP = b"\x1f\x8b"
_FOREIGN = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"PK\3\4": "zip", b"7z\xbc\xaf": "7z"}
_Key = tuple[PurePosixPath, str]  # a pair's folder and name


class _Bounded(io.RawIOBase):
    """A file that reads at most `_MOST_HEADER` bytes at a time, whatever size a header claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _MOST_HEADER:
            raise tarfile.ReadError("a header claims too many bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@dataclasses.dataclass
class _Group:
    """The members of one name: where each is, by ending; or why they can't be used."""

    members: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # offset, size
    problem: str = ""

    @property
    def images(self) -> list[str]:
        return [ending for ending in self.members if ending in IMAGES]

    @property
    def is_pair(self) -> bool:
        return bool(self.images) and any(ending in TEXTS for ending in self.members)


@dataclasses.dataclass(frozen=True)
class TarChunk:
    """One archive, called `name`. Its members are read, never extracted."""

    path: AnyPath
    name: str
    column: str
    caption: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`; the pairs after damage are skipped, which counts as one reject.

        A compressed archive, or one of a bucket, is stored in `scratch` meanwhile.
        """
        target = scratch / f"{_digest(self.path)[:24]}.tar"
        try:
            try:
                archive = _plain(self.path, target)
            except InputError:
                raise
            except ValueError as error:
                yield Reject(self.name, f"damaged or not a tar file ({in_short(error)})")
                return
            groups: dict[_Key, _Group] = {}
            ends = list(_index(archive, groups)) or ([] if groups else ["no images in it"])
            yield from self._pairs(archive, groups)
            yield from (Reject(self.name, reason) for reason in ends)
        finally:
            target.unlink(missing_ok=True)

    def _pairs(self, archive: AnyPath, groups: dict[_Key, _Group]) -> Iterator[Pair | Reject]:
        with archive.open("rb") as file:
            for key, group in groups.items():
                if _is_extra(key, group, groups):
                    continue
                name = printable(f"{self.name}/{key[0] / key[1]}")
                problem = group.problem
                if not problem and len(group.images) != 1:
                    problem = f"{len(group.images) or 'no'} images of this name"
                try:
                    if problem:
                        raise ValueError(problem)
                    texts = self._texts(file, group)
                    image = StoredPart(archive, *group.members[group.images[0]], name)
                    yield Pair(name, image, captions(texts, self.caption))
                except ValueError as error:
                    yield Reject(name, str(error))

    def _texts(self, file: BinaryIO, group: _Group) -> list[object]:
        order = (".json", *TEXTS) if self.column else TEXTS
        ending = next((ending for ending in order if ending in group.members), None)
        if ending is None:
            if self.caption:
                return []
            raise ValueError("neither .txt nor .json with a caption")
        offset, size = group.members[ending]
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise ValueError(f"the archive ends inside its {ending}")
        return texts_of(ending, data, self.column)


def _digest(path: AnyPath) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()


def _plain(path: AnyPath, target: Path) -> AnyPath:
    """The archive as an uncompressed file of this machine: itself, or a copy, written to `target`.

    Raises `ValueError` if it can't be unpacked, `InputError` if it can't be read or stored.
    """
    require_file(path)
    size = size_and_time(path)[0]
    try:
        with path.open("rb") as file:
            head = file.read(8)
        foreign = next((name for mark, name in _FOREIGN.items() if head.startswith(mark)), None)
        if foreign:
            raise ValueError(f"compressed by {foreign}; expected .tar or .tar.gz")
        compressed = head.startswith(_GZIP)
        if not compressed and not is_remote(path):
            return path
        require_space(target.parent, size)
        with path.open("rb") as raw:
            _copy(_unzipped(raw) if compressed else raw.read, target, _GROWTH * size + _SPARE if compressed else size)
    except ValueError:
        raise
    except Exception as error:  # OSError, or a bucket client's own types
        raise InputError(f"{path}: can't be read, or not stored in {target.parent} ({in_short(error)})") from error
    return target


def _unzipped(raw: BinaryIO) -> Callable[[int], bytes]:
    """Reads what `raw` unpacks to; of a truncated one, all there is."""
    file = gzip.GzipFile(fileobj=raw)

    def read(size: int) -> bytes:
        try:
            return file.read1(size)  # `read` would lose what it has before the end
        except EOFError:
            return b""
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(in_short(error)) from error

    return read


def _copy(read: Callable[[int], bytes], target: Path, most: int) -> None:
    count = 0
    with target.open("wb") as copy:
        while piece := read(_PIECE):
            count += len(piece)
            if count > most:
                raise ValueError(f"unpacks to more than {most / 2**20:.0f} MiB: a decompression bomb?")
            copy.write(piece)


def _index(path: AnyPath, groups: dict[_Key, _Group]) -> Iterator[str]:
    """Fills `groups` with the members of an archive, in its order; yields what is wrong with it."""
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=_Bounded(file), mode="r:") as archive:
                for member, key, ending in _members(archive):
                    _add(groups, key, ending, member)
                rest = archive.offset
            yield from _end(file, rest)
        except Exception as error:  # tarfile raises many types besides its own
            yield f"damaged or not a tar file ({in_short(error)}); pairs after this point were skipped"


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, _Key, str]]:
    """The members that may belong to a pair, each with the pair's folder and name, and its own ending.

    A name is split at its last dot: `img.020.jpg` and `img.020.txt` are a pair.
    """
    end = 0
    for number, member in enumerate(archive):
        archive.members = []  # else it keeps all of them
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError("a header of negative size")
        if number >= _MOST_MEMBERS:
            raise tarfile.ReadError(f"more than {_MOST_MEMBERS} members")
        end = archive.offset
        path = PurePosixPath(member.name)
        ending = path.suffix.lower()
        if not member.isdir() and not path.name.startswith(".") and ending in (*TEXTS, *IMAGES):
            yield member, (path.parent, path.stem), ending


def _add(groups: dict[_Key, _Group], key: _Key, ending: str, member: tarfile.TarInfo) -> None:
    group = groups.setdefault(key, _Group())
    most = MOST_BYTES if ending in IMAGES else MOST_TEXT
    if not member.isreg() or member.issparse():
        problem = f"its {ending} is a link, device or sparse file"
    elif member.size > most:
        problem = f"its {ending} has {member.size} bytes, the limit is {most}"
    elif ending in group.members:
        problem = f"two {ending} files of this name"
    else:
        problem = ""
        group.members[ending] = (member.offset_data, member.size)
    group.problem = group.problem or problem


def _is_extra(key: _Key, group: _Group, groups: dict[_Key, _Group]) -> bool:
    """Whether these are further files of a pair: WebDataset also has `000.depth.png` beside `000.jpg` and `000.txt`."""
    if group.is_pair or group.problem:
        return False
    parts = key[1].split(".")
    names = (".".join(parts[:count]) for count in range(1, len(parts)))
    return any(groups[key[0], name].is_pair for name in names if (key[0], name) in groups)


def _end(file: BinaryIO, offset: int) -> Iterator[str]:
    """What is wrong with an archive without an end mark, or with data after it."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        yield "no end mark: truncated or never finished; pairs may be missing"
    while piece := file.read(_PIECE):
        if piece.strip(b"\0"):
            yield "data after the end mark, as in concatenated archives; it was skipped"
            return


class TarSource:
    """Archives in the order of their names; each is a chunk."""

    unit = "archives"  # the number of pairs is only known after reading
    splits: tuple[str, ...] = ()
    notes: Sequence[str] = ()

    def __init__(self, source: AnyPath, column: str, caption: str) -> None:
        """Lists the archives; raises `InputError` if there are none.

        Args:
            source: an archive, or a folder with some in it or in its sub-folders.
            column: the key of the captions in `.json` members, for pairs without `.txt`; if it isn't empty, for all.
            caption: of images without one; empty: they are rejected.
        """
        names = tar_names(source)
        if not names:
            raise InputError(f"{source}: no {' or '.join(ENDINGS)} files")
        paths = [source / name if source.is_dir() else source for name in names]
        self.total = len(paths)
        self._chunks = [TarChunk(path, name, column, caption) for path, name in zip(paths, names, strict=True)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # each may be a request to a bucket
            found = list(pool.map(size_and_time, paths))
        table = [(name, *fact) for name, fact in zip(names, found, strict=True)]
        self.facts = {"archives": len(paths), "sha256": hashlib.sha256(json.dumps(table).encode()).hexdigest()}

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        return iter(self._chunks)


def tar_names(source: AnyPath) -> list[str]:
    """The archives in a folder and its sub-folders, relative to it; the name of `source` if it is one."""
    if not source.is_dir():
        return [source.name] if source.name.lower().endswith(ENDINGS) else []
    return [entry.name for _, entries in walk(source) for entry in entries if entry.name.lower().endswith(ENDINGS)]
