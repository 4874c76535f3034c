"""Recognises the form of a folder or file of images with captions, and opens it."""

from collections.abc import Sequence

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.base.paths import AnyPath, is_remote, to_path
from bksdm_jax.data.forms import rows
from bksdm_jax.data.forms.coco_files import CocoSource
from bksdm_jax.data.forms.files import IMAGES, FilesSource
from bksdm_jax.data.forms.listing import is_hidden, walk
from bksdm_jax.data.forms.pairs import Source
from bksdm_jax.data.forms.parquet import ENDING as PARQUET
from bksdm_jax.data.forms.parquet import ParquetSource
from bksdm_jax.data.forms.splits import SplitSource, split_folders
from bksdm_jax.data.forms.tables import NAMES, TableSource
from bksdm_jax.data.forms.tars import ENDINGS as TARS
from bksdm_jax.data.forms.tars import TarSource
from bksdm_jax.data.options import KINDS, SourceOptions
from bksdm_jax.data.tfds_set import INFO

CHUNK = 1000  # images of a chunk
_EXPECTED = (
    "metadata.csv, .tsv or .jsonl, images with a .txt each, .tar or .parquet files, COCO's captions_*.json, "
    f"or {INFO} (TFDS)"
)


def open_source(name: str, options: SourceOptions, kind: str = "auto", split: str = "", chunk: int = CHUNK) -> Source:
    """Opens images with captions.

    Args:
        name: a folder, or a file: a table, archive, Parquet file or COCO's captions.
        options: how to read them.
        kind: one of `KINDS`; `auto` decides by what there is.
        split: of a TFDS dataset; empty: all of them.
        chunk: images that a chunk has at most, except of archives, Parquet and TFDS files.

    Raises:
        InputError: there is nothing of this kind, or it can't be read.
    """
    path = to_path(name)
    if kind not in KINDS:
        raise one_of("kind", kind, KINDS)
    if not path.exists():
        raise InputError(f"{name}: no such file or folder")
    if kind == "auto":
        folders = _of_splits(path)
        if folders:
            parts = {inner: open_source(str(path / inner), options, chunk=chunk) for inner in folders}
            return SplitSource(parts, _beside(path, folders))
        kind = _kind(path)
    if kind == "tfds":
        return _tfds(path, options, split)
    if split:
        raise InputError(f"split: {split!r}, but {path} isn't a TFDS dataset; give the folder of the split as source")
    openers = {
        "tars": lambda: TarSource(path, options.text_column, options.caption),
        "parquet": lambda: ParquetSource(path, _columns(options, "image"), options.caption),
        "coco": lambda: CocoSource(_captions_file(path), options.coco_images, options.caption, chunk),
        "files": lambda: FilesSource(path, options, chunk),
        "table": lambda: _with_table(_table(path), options, chunk),
    }
    return openers[kind]()


def _tfds(path: AnyPath, options: SourceOptions, split: str) -> Source:
    from bksdm_jax.data.forms.tfds_sets import TfdsSource  # noqa: PLC0415  # imports TensorFlow

    return TfdsSource(path, split, _columns(options, "image"), options.caption)


def _with_table(table: AnyPath, options: SourceOptions, chunk: int) -> TableSource:
    return TableSource(table, _columns(options, "file_name"), options.caption, chunk, split_folders(table.parent))


def _columns(options: SourceOptions, image: str) -> tuple[str, str]:
    return options.image_column or image, options.text_column or "text"


def _of_splits(path: AnyPath) -> list[str]:
    """The folders of splits, if each is a source of its own."""
    if not path.is_dir() or (path / INFO).exists() or any((path / name).exists() for name in NAMES):
        return []
    return list(split_folders(path))


def _beside(path: AnyPath, folders: Sequence[str]) -> list[str]:
    """What is beside the folders of splits and may be meant: folders, and files of images or of a known form."""
    known = (*IMAGES, *TARS, PARQUET, *rows.ENDINGS)
    others = (one for one in path.iterdir() if one.name not in folders and not is_hidden(one.name))
    return sorted(one.name for one in others if one.name.lower().endswith(known) or one.is_dir())


def _kind(path: AnyPath) -> str:
    if not path.is_dir():
        return _kind_of_file(path)
    if (path / INFO).exists():
        return "tfds"
    if any((path / name).exists() for name in NAMES):
        return "table"
    found = {"tars": False, "files": False, "parquet": False, "coco": False}
    inner = ""
    for name, entries in walk(path):
        names = [entry.name.lower() for entry in entries]
        found["tars"] |= any(one.endswith(TARS) for one in names)
        found["files"] |= any(one.endswith(IMAGES) for one in names)
        found["parquet"] |= any(one.endswith(PARQUET) for one in names)
        found["coco"] |= any(_is_captions(one) for one in names)
        marks = [entry.name for entry in entries if entry.name.split("/")[-1] in (INFO, *NAMES)]
        inner = inner or (name if marks else "")
    if inner:
        raise InputError(f"{path}: give the folder of the dataset in it, {path / inner}")
    if found["coco"]:
        return "coco"
    if found["tars"] and found["files"]:
        raise InputError(f"{path}: has images and .tar files; say which to read, with --config.kind=files or tars")
    kind = next((kind for kind, has in found.items() if has), "")
    if not kind:
        raise InputError(f"{path}: found no {_EXPECTED}")
    return kind


def _kind_of_file(path: AnyPath) -> str:
    name = path.name.lower()
    endings = {".json": "coco", PARQUET: "parquet"} | dict.fromkeys(TARS, "tars") | dict.fromkeys(rows.ENDINGS, "table")
    kind = next((kind for ending, kind in endings.items() if name.endswith(ending)), "")
    if not kind:
        raise InputError(f"{path}: a file of no known form; expected {', '.join(endings)}, or a folder")
    return kind


def _table(path: AnyPath) -> AnyPath:
    if not path.is_dir():
        return path
    found = [path / name for name in NAMES if (path / name).exists()]
    if not found:
        raise InputError(f"{path}: no {' or '.join(NAMES)}; expected images and one of these tables")
    if len(found) > 1:
        raise InputError(f"{path}: has both {' and '.join(table.name for table in found)}; name one as the source")
    return found[0]


def _captions_file(path: AnyPath) -> AnyPath:
    if is_remote(path):
        raise InputError(f"{path}: COCO's captions must be on this machine; copy them first")
    if not path.is_dir():
        return path
    found = [entry.name for _, entries in walk(path) for entry in entries if _is_captions(entry.name.lower())]
    if len(found) != 1:
        named = ", ".join(found[:3]) or "none"
        raise InputError(f"{path}: expected one captions_*.json, found {named}; name the file as the source")
    return path / found[0]


def _is_captions(name: str) -> bool:
    last = name.rsplit("/", maxsplit=1)[-1]
    return last.startswith("captions") and last.endswith(".json")
