"""CSV tables and lists of prompts."""

import csv
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bksdm_jax.base.errors import InputError, nearest
from bksdm_jax.base.files import atomic_file, read_text
from bksdm_jax.base.paths import AnyPath, local_path


def read_table(
    path: AnyPath, columns: tuple[str, ...], optional: tuple[str, ...] = (), delimiter: str = ","
) -> list[dict[str, str]]:
    """The rows of a `.csv` file whose header has at least `columns`, in any encoding that `read_text` knows.

    Columns of `optional` are in the rows if they are in the header; `delimiter` is a tab for `.tsv`.

    Raises `InputError` if it can't be read, a column is missing, a row is too long or short, or there are no rows.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        for column in columns:
            if column not in header:
                found = ", ".join(header) or "nothing"
                raise InputError(f"{path}: no column {column!r}{nearest(column, header)}; its first line has {found}")
        rows = []
        columns = (*columns, *(column for column in optional if column in header))
        for row in reader:
            short = [column for column in columns if row[column] is None]
            if short:
                raise InputError(f"{path}: line {reader.line_num} has no {short[0]}; expected {len(header)} fields")
            if None in row:
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(header) + len(row[None])} fields; "
                    f"expected {len(header)} (put captions with commas in quotes)"
                )
            rows.append({column: row[column] for column in columns})
    except csv.Error as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from error
    if not rows:
        raise InputError(f"{path}: no rows below the header")
    return rows


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a UTF-8 `.csv` file with a header, atomically; raises `InputError` if it can't be written."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_file(path) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8", newline="")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, and its `file_name` in the CSV (empty for a `.txt` file)."""

    text: str
    source: str = ""


def texts_sha256(texts: Iterable[str]) -> str:
    """Identifies a list of prompts, in any order: the SHA-256 of the sorted texts as a JSON array in ASCII."""
    return hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest()


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads prompts from a `.txt` file, one per line (blank lines are skipped), or a `.csv` with `file_name,text`.

    Raises `InputError` if the file is missing, has another ending, or has no prompts.
    """
    path = local_path("prompts", path)
    if path.suffix.lower() == ".csv":
        return [Prompt(row["text"], row["file_name"]) for row in read_table(path, ("file_name", "text"))]
    if path.suffix.lower() != ".txt":
        raise InputError(f"{path}: expected a .txt file with one prompt per line, or a .csv file with file_name,text")
    lines = re.split(r"\r\n|\n|\r", read_text(path))
    prompts = [Prompt(line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{path}: no prompts; expected one per line")
    return prompts
