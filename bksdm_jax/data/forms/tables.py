"""Images with a table of captions: `metadata.csv`, `.tsv` or `.jsonl`, as Hugging Face's imagefolder has it."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.decode import ENDINGS, FOREIGN_ENDINGS
from bksdm_jax.data.forms import rows
from bksdm_jax.data.forms.listing import Identity, walk
from bksdm_jax.data.forms.pairs import Chunk, Pair, Reject, StoredFile, captions, counted, in_order, is_inside

NAMES = tuple(f"metadata{ending}" for ending in rows.ENDINGS)
"""The tables of a folder."""
_Row = tuple[str, tuple[object, ...]] | Reject  # an image's file name and captions


@dataclasses.dataclass(frozen=True)
class TableChunk:
    """Rows of a table; `splits` are folders -> the split of the images in them."""

    folder: AnyPath
    rows: tuple[_Row, ...]
    splits: Mapping[str, str]
    caption: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
        del scratch
        for row in self.rows:
            if isinstance(row, Reject):
                yield row
                continue
            name, texts = row
            try:
                kept = captions(texts, self.caption)
            except ValueError as error:
                yield Reject(name, str(error))
                continue
            yield Pair(name, StoredFile(self.folder / name), kept, _split(name, self.splits))


class TableSource:
    """A folder with a table, which is streamed, so it may have any length."""

    unit = "pairs"

    def __init__(
        self, table: AnyPath, columns: rows.Columns, caption: str, chunk: int, splits: Mapping[str, str]
    ) -> None:
        """Reads the table once, to count its rows and to see which images have several.

        Args:
            table: in the folder of the images.
            columns: of file name and caption; several rows of an image are several captions.
            caption: of images without one; empty: they are rejected.
            chunk: rows of a chunk.
            splits: folders beside the table -> the split of the images in them; empty: the table has no splits.

        Raises:
            InputError: the table lacks `columns`, has no rows, or can't be read.
        """
        self._folder, self._table, self._columns = table.parent, table, columns
        self._caption, self._chunk, self._folders = caption, chunk, dict(splits)
        once: set[bytes] = set()
        several: set[bytes] = set()
        count, again, identity, given = 0, 0, hashlib.sha256(), set()
        for row in self._rows():
            count += 1
            if isinstance(row, Reject):
                continue
            mark = _mark(row[0])
            again += mark in once
            (several if mark in once else once).add(mark)
            given.add(_split(row[0], splits))
            identity.update(repr(row).encode("utf-8", "surrogatepass"))
        if not count:
            raise InputError(f"{table}: no rows")
        self.splits = in_order(given)
        self._texts: dict[bytes, list[object]] = {mark: [] for mark in several}
        for row in self._rows() if several else ():
            if not isinstance(row, Reject) and (mark := _mark(row[0])) in several:
                self._texts[mark] += row[1]
        self.total = count - again
        files, unlisted = Identity(), 0
        for _, entries in walk(self._folder):
            files.add(entries)
            images = [entry.name for entry in entries if entry.ending in (*ENDINGS, *FOREIGN_ENDINGS)]
            unlisted += sum(_mark(name) not in once for name in images)
        self.facts = {"rows": count} | files.facts(identity.digest())
        self.notes = [f"{counted(unlisted, 'image')} in {self._folder}: no row of {table.name} names them"]
        self.notes = self.notes if unlisted else []

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        merged, done = self._merged(), False
        while not done:
            chunk = tuple(itertools.islice(merged, self._chunk))
            done = not chunk
            if chunk:
                yield TableChunk(self._folder, chunk, self._folders, self._caption)

    def _merged(self) -> Iterator[_Row]:
        """The rows; of those of one image, the first one with all captions."""
        seen: set[bytes] = set()
        for row in self._rows():
            if isinstance(row, Reject) or (mark := _mark(row[0])) not in self._texts:
                yield row
            elif mark not in seen:
                seen.add(mark)
                yield row[0], tuple(self._texts[mark])

    def _rows(self) -> Iterator[_Row]:
        for where, row in rows.rows(self._table, self._columns):
            yield Reject(where, row) if isinstance(row, str) else self._checked(where, row)

    def _checked(self, where: str, row: Mapping[str, Any]) -> _Row:
        """A row's file name and captions, or why it is rejected."""
        name, texts = (row.get(column) for column in self._columns)
        problem = _name_problem(name, self._folder)
        if problem:
            return Reject(where, f"{self._columns[0]} {shown(name)} {problem}")
        return name, tuple(texts) if isinstance(texts, list) else (texts,)


def _name_problem(name: object, folder: AnyPath) -> str:
    """What keeps a value from being the name of a file in the folder."""
    if not isinstance(name, str) or not name.strip():
        return "isn't the name of a file"
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return f"is an absolute path; expected one relative to {folder}"
    if "\\" in name and not (folder / name).exists():
        return "has backslashes; write folders with /"
    return "" if is_inside(name) else "isn't the name of a file in the folder"


def _split(name: str, splits: Mapping[str, str]) -> str:
    """The split of the image `name`: that of its first folder, else `train`; empty if there are no `splits`."""
    first = next(iter(PurePosixPath(name).parts), "")  # `.` has none
    return splits.get(first, "train") if splits else ""


def _mark(name: str) -> bytes:
    """A short hash of a file name, since names may be many and long."""
    plain = str(PurePosixPath(name)).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(plain, digest_size=8).digest()
