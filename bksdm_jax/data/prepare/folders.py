"""A folder of images with a table of captions: `metadata.csv` or `metadata.jsonl`."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from etils import epath

from bksdm_jax.base.errors import InputError, in_short, nearest
from bksdm_jax.base.files import encoding_of
from bksdm_jax.base.paths import is_remote
from bksdm_jax.data.decode import MOST_BYTES
from bksdm_jax.data.prepare.pairs import Chunk, Pair, Reject, checked_texts, is_inside

TABLES = ("metadata.csv", "metadata.jsonl")
_MOST_LINE = 2**22  # characters
_Row = tuple[str, tuple[str, ...]] | Reject  # an image's file name and captions


@dataclasses.dataclass(frozen=True)
class FolderChunk:
    """Rows of a table."""

    folder: epath.Path
    rows: tuple[_Row, ...]

    def read(self) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
        for row in self.rows:
            if isinstance(row, Reject):
                yield row
                continue
            name, texts = row
            try:
                yield Pair(name, _file_bytes(self.folder / name), texts)
            except (OSError, ValueError) as error:
                yield Reject(name, in_short(error))
            except Exception as error:  # of a bucket's client: the connection, not the file
                raise InputError(f"{self.folder / name}: can't be read ({in_short(error)})") from error


class FolderSource:
    """A folder; its table is streamed, so it may have any length."""

    unit = "pairs"

    def __init__(self, folder: epath.Path, columns: tuple[str, str], chunk: int) -> None:
        """Reads the table once, to count its rows; chunks will have `chunk` rows.

        Raises `InputError` if the table is missing, lacks `columns` (of file name and caption), or can't be read.
        """
        found = [folder / name for name in TABLES if (folder / name).exists()]
        if not found:
            raise InputError(f"{folder}: no {' or '.join(TABLES)}; expected images and one of these tables")
        if len(found) > 1:
            raise InputError(f"{folder}: has both {' and '.join(TABLES)}; keep one of them")
        self._folder, self._table, self._columns, self._chunk = folder, found[0], columns, chunk
        self.total = sum(1 for _ in self._rows())
        if not self.total:
            raise InputError(f"{self._table}: no rows")
        with self._table.open("rb") as file:
            self.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`; further rows for the same file are rejected."""
        rows = self._rows()
        seen: set[bytes] = set()
        while chunk := tuple(_once(row, seen) for row in itertools.islice(rows, self._chunk)):
            yield FolderChunk(self._folder, chunk)

    def _rows(self) -> Iterator[_Row]:
        read = _csv_rows if self._table.suffix == ".csv" else _json_rows
        try:
            with self._table.open("rb") as file, io.TextIOWrapper(file, _encoding(file), newline="") as text:
                for where, row in read(self._table, text, self._columns):
                    yield _checked(where, row, self._columns)
        except UnicodeError as error:
            raise InputError(f"{self._table}: {_undecodable(self._table)}; save it as UTF-8") from error
        except csv.Error as error:
            raise InputError(f"{self._table}: not a readable CSV file ({error})") from error
        except InputError:
            raise
        except Exception as error:  # OSError, or a bucket client's own types
            raise InputError(f"{self._table}: can't be read ({in_short(error)})") from error


def _once(row: _Row, seen: set[bytes]) -> _Row:
    """The row, or a reject if an earlier row was for the same file; `seen` are hashes, since names may be long."""
    if isinstance(row, Reject):
        return row
    mark = hashlib.blake2b(str(PurePosixPath(row[0])).encode(), digest_size=8).digest()
    if mark in seen:
        return Reject(row[0], "duplicate row for this image; the first row is used")
    seen.add(mark)
    return row


def _encoding(file: BinaryIO) -> str:
    head = file.read(4)
    file.seek(0)
    return encoding_of(head)


def _undecodable(table: epath.Path) -> str:
    """What isn't text in a table; in UTF-8, which line."""
    with table.open("rb") as file:
        encoding, number = _encoding(file), 0
        if not encoding.startswith("utf-8"):
            return f"not valid {encoding.upper()}"
        while line := file.readline(4 * _MOST_LINE):
            number += 1
            try:
                line.decode()
            except UnicodeError:
                break
    return f"line {number} isn't valid UTF-8 (UTF-16 and UTF-32 need a byte-order mark)"


def _csv_rows(table: epath.Path, text: io.TextIOWrapper, columns: tuple[str, str]) -> Iterator[tuple[str, Any]]:
    lines = _bounded_lines(table, text)
    csv.field_size_limit(_MOST_LINE)
    reader = csv.reader(lines, strict=True)
    header = [name.strip() for name in next(reader, [])]
    for column in columns:
        if column not in header:
            found = ", ".join(name[:40] for name in header) or "nothing"
            raise InputError(f"{table}: no column {column!r}{nearest(column, header)}; its first line has {found:.300}")
    for row in reader:
        if not row:
            continue
        where = f"line {reader.line_num} of {table.name}"
        if len(row) != len(header):
            yield where, f"{len(row)} fields; expected {len(header)} (put captions with commas in quotes)"
        else:
            yield where, dict(zip(header, row, strict=True))


def _json_rows(table: epath.Path, text: io.TextIOWrapper, columns: tuple[str, str]) -> Iterator[tuple[str, Any]]:
    known = False
    for number, line in enumerate(_bounded_lines(table, text), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {table.name}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield where, "not valid JSON"
            continue
        if not isinstance(row, dict):
            yield where, f"{type(row).__name__}; expected an object"
            continue
        if not known:  # the first valid line says which columns there are
            for column in columns:
                if column not in row:
                    found = ", ".join(map(str, row))
                    raise InputError(f"{table}: no {column!r}{nearest(column, row)} in line {number}, but {found:.300}")
            known = True
        yield where, row


def _bounded_lines(table: epath.Path, text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_MOST_LINE):
        if len(line) == _MOST_LINE:
            raise InputError(f"{table}: a line has more than {_MOST_LINE} characters; is this the table?")
        yield line


def _checked(where: str, row: Any, columns: tuple[str, str]) -> _Row:
    """A row's file name and captions, or why it is rejected."""
    if isinstance(row, str):
        return Reject(where, row)
    name, texts = (row.get(column) for column in columns)
    if not isinstance(name, str) or not is_inside(name):
        return Reject(where, f"{columns[0]} {name!r:.200} isn't the name of a file in the folder")
    try:
        return name, checked_texts(texts if isinstance(texts, list) else [texts])
    except ValueError as error:
        return Reject(name, str(error))


def _file_bytes(path: epath.Path) -> bytes:
    """Reads a file; raises `ValueError` or `OSError` if it is missing, unreadable or too large."""
    if not is_remote(path):
        if not path.exists():
            raise ValueError("no such file")
        if not path.is_file():
            raise ValueError("a folder or device instead of a file")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"file of more than {MOST_BYTES} bytes")
    return data
