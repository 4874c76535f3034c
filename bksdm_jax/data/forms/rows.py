"""Reads tables of any length row by row: `.csv`, `.tsv` and `.jsonl`."""

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from bksdm_jax.base.errors import InputError, in_short, nearest
from bksdm_jax.base.files import encoding_of
from bksdm_jax.base.paths import AnyPath, require_file

ENDINGS = (".csv", ".tsv", ".jsonl")
"""Of the tables that are read, in lower case."""
_DELIMITERS = ",;\t"
_MOST_LINE = 2**22  # characters
Columns = tuple[str, str]  # of the file name and of the caption


def rows(table: AnyPath, columns: Columns) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Where each row stands, and its values by column, or what is wrong with it.

    A `.csv` file may have commas, semicolons or tabs between its fields.

    Raises:
        InputError: the table can't be read, lacks one of `columns`, isn't text, or has a quote that isn't closed.
    """
    read = _json_rows if PurePosixPath(table.name).suffix.lower() == ".jsonl" else _csv_rows
    require_file(table)
    try:
        with table.open("rb") as file, io.TextIOWrapper(file, _encoding(file), newline="") as text:
            yield from read(table, text, columns)
    except UnicodeError as error:
        raise InputError(f"{table}: {_undecodable(table)}; save it as UTF-8") from error
    except InputError:
        raise
    except Exception as error:  # OSError, or a bucket client's own types
        raise InputError(f"{table}: can't be read ({in_short(error)})") from error


def quoting_problem(error: csv.Error, first: int, last: int) -> str:
    """What is wrong with the quotes of the row from line `first` to line `last` of a CSV file."""
    if "unexpected end" in str(error):
        return f"line {first}: the row that begins here has a quote that isn't closed"
    return f'line {last}: text after a closing quote; double the quotes inside a quoted field ("")'


def _encoding(file: BinaryIO) -> str:
    head = file.read(4)
    file.seek(0)
    return encoding_of(head)


def _undecodable(table: AnyPath) -> str:
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


def _csv_rows(table: AnyPath, text: io.TextIOWrapper, columns: Columns) -> Iterator[tuple[str, Any]]:
    row_lines = _RowLines(table, _bounded_lines(table, text))
    lines = iter(row_lines)
    csv.field_size_limit(_MOST_LINE)
    first = next(lines, "")
    delimiter = max(_DELIMITERS, key=lambda one: (set(columns) <= set(header := _header(first, one)), len(header)))
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    before = 0
    try:
        header = [name.strip() for name in next(reader, [])]
        _require_columns(table, columns, header, "its first line has")
        twice = [column for column in columns if header.count(column) > 1]
        if twice:
            raise InputError(f"{table}: two columns {twice[0]!r}; rename one of them")
        before = reader.line_num
        row_lines.ends()
        for row in reader:
            where, before = f"line {before + 1} of {table.name}", reader.line_num
            row_lines.ends()
            if row and len(row) != len(header):
                yield where, f"{len(row)} fields; expected {len(header)} (put captions with commas in quotes)"
            elif row:
                yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{table}: {quoting_problem(error, before + 1, reader.line_num)}") from error


class _RowLines:
    """The lines of a table, of which a row may span many but have at most `_MOST_LINE` characters."""

    def __init__(self, table: AnyPath, lines: Iterator[str]) -> None:
        self._table, self._lines, self._number, self._first, self._length = table, lines, 0, 1, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            self._length += len(line)
            if self._length > _MOST_LINE:
                raise InputError(
                    f"{self._table}: line {self._first}: the row that begins here has more than {_MOST_LINE} "
                    "characters; is one of its quotes not closed?"
                )
            yield line

    def ends(self) -> None:
        """Says that a row has ended with the last line."""
        self._first, self._length = self._number + 1, 0


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _json_rows(table: AnyPath, text: io.TextIOWrapper, columns: Columns) -> Iterator[tuple[str, Any]]:
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
            yield where, "not a JSON object"
            continue
        if not known:  # the first valid line says which columns there are
            _require_columns(table, columns, list(row), f"line {number} has")
            known = True
        yield where, row


def _require_columns(table: AnyPath, columns: Columns, found: Sequence[str], said: str) -> None:
    for column, setting in zip(columns, ("image_column", "text_column"), strict=True):
        if column not in found:
            named = ", ".join(name[:40] for name in found) or "nothing"
            raise InputError(
                f"{table}: no column {column!r}{nearest(column, found)}; {said} {named:.300}; "
                f"name yours with --config.{setting}"
            )


def _bounded_lines(table: AnyPath, text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_MOST_LINE):
        if len(line) == _MOST_LINE:
            raise InputError(f"{table}: a line has more than {_MOST_LINE} characters; is this the table?")
        yield line
