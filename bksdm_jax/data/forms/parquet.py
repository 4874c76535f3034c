"""Parquet files with images and captions, as datasets on the hub have them."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bksdm_jax.base.errors import InputError, in_short, nearest
from bksdm_jax.base.paths import AnyPath, require_file
from bksdm_jax.data.decode import MOST_BYTES
from bksdm_jax.data.forms.listing import Entry, Identity, walk
from bksdm_jax.data.forms.pairs import (
    SPLIT_NAMES,
    Chunk,
    Pair,
    Reject,
    StoredBytes,
    captions,
    counted,
    in_order,
    printable,
)

if TYPE_CHECKING:
    import pyarrow.parquet

ENDING = ".parquet"
_MOST_CAPTIONS = 1000  # per row, on average of a row group; a small file can claim billions


@dataclasses.dataclass(frozen=True)
class ParquetChunk:
    """A row group of a file, which is called `name`; `first` is the number of its first row."""

    path: AnyPath
    name: str
    group: int
    first: int
    columns: tuple[str, str]
    caption: str
    split: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`; the rest of a damaged group counts as one reject."""
        del scratch
        number = self.first
        try:
            with self.path.open("rb") as file:
                parquet = opened(self.path, file)
                _require_few_values(parquet.metadata.row_group(self.group), _tops(self.columns))
                # One by one: a small file can have the same large value in every row.
                batches = parquet.iter_batches(1, row_groups=[self.group], columns=_tops(self.columns))
                for batch in batches:
                    for row in batch.to_pylist():
                        yield self._pair(f"{printable(self.name)}/{number}", row)
                        number += 1
        except InputError:
            raise
        except Exception as error:  # pyarrow raises types of its own
            reason = f"damaged ({in_short(error)}); rows after this point of row group {self.group} were skipped"
            yield Reject(f"{printable(self.name)}/{number}", reason)

    def _pair(self, name: str, row: dict[str, Any]) -> Pair | Reject:
        image, texts = (_value(row, column) for column in self.columns)
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            path = image.get("path") if isinstance(image, dict) else None
            return Reject(name, "no image bytes" + (", only a path" if path else ""))
        if len(data) > MOST_BYTES:
            return Reject(name, f"image of more than {MOST_BYTES} bytes")
        try:
            found = captions(texts if isinstance(texts, list) else [texts], self.caption)
        except ValueError as error:
            return Reject(name, str(error))
        return Pair(name, StoredBytes(data, name), found, self.split)


class ParquetSource:
    """Parquet files in the order of their names; each row group is a chunk."""

    unit = "pairs"

    def __init__(self, source: AnyPath, columns: tuple[str, str], caption: str) -> None:
        """Opens the files.

        Files called `train-00000-of-00002.parquet`, `validation-...`, `test-...` are of these splits.

        Args:
            source: a file, or a folder with some in it or in its sub-folders.
            columns: of image (bytes, or an object with `bytes`) and caption (text, or a list of texts).
            caption: of images without one; empty: they are rejected.

        Raises:
            InputError: there are none, or one can't be opened or lacks a column.
        """
        entries = parquet_files(source)
        if not entries:
            raise InputError(f"{source}: no {ENDING} files")
        self._chunks: list[ParquetChunk] = []
        identity, self.total, splits, without = Identity(), 0, set(), []
        identity.add(entries)
        for entry in entries:
            path = source / entry.name if source.is_dir() else source
            split = _split(entry.name)
            splits.add(split)
            without += [] if split else [entry.name]
            require_file(path)
            with path.open("rb") as file:
                parquet = opened(path, file)
                _require_columns(path, parquet.schema_arrow, columns)
                first = 0
                for group in range(parquet.metadata.num_row_groups):
                    self._chunks.append(ParquetChunk(path, entry.name, group, first, columns, caption, split))
                    first += parquet.metadata.row_group(group).num_rows
            self.total += first
        if not self.total:
            raise InputError(f"{source}: no rows")
        self.splits = in_order(splits) if not without else ()
        self.notes: Sequence[str] = ()
        if without and len(splits) > 1:
            files = f"{counted(len(without), 'file')} such as {printable(without[0])}"
            self.notes = [f"splits {', '.join(in_order(splits))} aren't kept: of none are {files}"]
        if not self.splits:
            self._chunks = [dataclasses.replace(chunk, split="") for chunk in self._chunks]
        self.facts = {"rows": self.total} | identity.facts()

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        return iter(self._chunks)


def parquet_files(source: AnyPath) -> list[Entry]:
    """The Parquet files in a folder and its sub-folders; `source` itself if it is one."""
    if not source.is_dir():
        if not source.name.lower().endswith(ENDING):
            return []
        return [entry for entry in next(walk(source.parent))[1] if entry.name == source.name]
    return [entry for _, entries in walk(source) for entry in entries if entry.ending == ENDING]


def opened(path: AnyPath, file: Any) -> "pyarrow.parquet.ParquetFile":
    """A Parquet file; raises `InputError` if it isn't one."""
    import pyarrow.parquet  # noqa: PLC0415  # only for this form

    try:
        return pyarrow.parquet.ParquetFile(file)
    except Exception as error:  # pyarrow raises types of its own
        raise InputError(f"{path}: not a readable Parquet file ({in_short(error)})") from error


def _split(name: str) -> str:
    """The split that a file's name begins with, or the one of its folder; empty if there is none."""
    path = PurePosixPath(name)
    word = re.split(r"[-_.]", path.name)[0].lower()
    return SPLIT_NAMES.get(word) or SPLIT_NAMES.get(path.parent.name.lower(), "")


def _require_columns(path: AnyPath, schema: Any, columns: tuple[str, str]) -> None:
    import pyarrow as pa  # noqa: PLC0415  # only for this form

    for column, setting in zip(columns, ("image_column", "text_column"), strict=True):
        top, _, inner = column.partition("/")
        if top not in schema.names:
            raise InputError(
                f"{path}: no column {column!r}{nearest(column, schema.names)}; it has "
                f"{', '.join(schema.names):.300}; name yours with --config.{setting}"
            )
        kind = schema.field(top).type
        for name in inner.split("/") if inner else ():
            kind = _inner(kind, name)
            if kind is None:
                raise InputError(f"{path}: no {column!r}: {top!r} holds {schema.field(top).type!s:.200}")
        if setting == "image_column":
            is_image = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
            if not is_image and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
                raise InputError(f"{path}: column {column!r} holds {kind!s:.100}; expected the bytes of images")


def _require_few_values(group: Any, names: Sequence[str]) -> None:
    """Raises `ValueError` if one of the named columns of a row group has lists of too many values."""
    tops = tuple(f"{name}." for name in names)
    columns = (group.column(index) for index in range(group.num_columns))
    most = max(column.num_values for column in columns if f"{column.path_in_schema}.".startswith(tops))
    if most > _MOST_CAPTIONS * group.num_rows:
        raise ValueError(f"{most} values in {counted(group.num_rows, 'row')}")


def _inner(kind: Any, name: str) -> Any:
    """The type of a struct's field, also of a list of structs; None if there is none."""
    import pyarrow as pa  # noqa: PLC0415  # only for this form

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    known = pa.types.is_struct(kind) and kind.get_field_index(name) >= 0
    return kind.field(name).type if known else None


def _tops(columns: tuple[str, str]) -> list[str]:
    return [column.partition("/")[0] for column in columns]


def _value(row: dict[str, Any], column: str) -> Any:
    value: Any = row
    for name in column.split("/"):
        if isinstance(value, list):
            value = [one.get(name) for one in value if isinstance(one, dict)]
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value
