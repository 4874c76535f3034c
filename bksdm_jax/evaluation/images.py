"""The images of a folder with what is known of them, in the order of their names."""

import concurrent.futures
import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.decode import ENDINGS, MOST_BYTES, open_image, to_rgb
from bksdm_jax.data.tables import read_table
from bksdm_jax.metrics.config import FEWEST

TABLE = "metadata.csv"
_THREADS = os.cpu_count() or 1
_SHOWN = 3
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images to score, or of a reference.

    Attributes:
        folder: in which they lie.
        paths: the files, sorted by name.
        captions, subjects: of each; None: unknown.
        sha256: of all names and contents.
        unreadable: numbers of the files whose header can't be read.
        size: width and height in pixels; None: they differ.
    """

    folder: Path
    paths: tuple[Path, ...]
    captions: tuple[str, ...] | None
    subjects: tuple[str, ...] | None
    sha256: str
    unreadable: tuple[int, ...]
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.paths)

    def batches(self, first: int, count: int, what: str) -> Iterator[list[np.ndarray | None]]:
        """The images from number `first` on, uint8 [H, W, 3] each or None where one can't be read, `count` at a time.

        The next batch is decoded while one is in use. `what` is said beside the progress.
        """
        starts = range(first, len(self.paths), count)
        with (
            Progress(what, len(self.paths), first) as progress,
            concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        ):
            following = [pool.submit(_pixels, path) for path in self.paths[first : first + count]]
            for start in starts:
                batch = following
                following = [pool.submit(_pixels, path) for path in self.paths[start + count : start + 2 * count]]
                yield [call.result() for call in batch]
                progress.advance(len(batch))


def open_images(
    folder: Path, key: str, *, captions: str = "", named: bool = False, subjects: bool = False, one_size: bool = True
) -> ImageSet:
    """Lists a folder's images and looks at every file's header.

    Where the folder, or the one above it, has a `metadata.csv` that names the images by `file_name`, the images are
    those of the table; else all in the folder or, if there are none, in its sub-folders. Hidden files and folders are
    ignored, others that aren't among the images are passed over with a warning.

    Args:
        folder: of the images.
        key: of the setting, for errors.
        captions: another table of `file_name,text`.
        named: captions are needed.
        subjects: subjects are needed: the table's column `subject`, or else the names of sub-folders.
        one_size: images of several sizes are an error.

    Raises:
        InputError: no such folder, fewer than two images, a table that doesn't fit, a missing caption or subject, or
            several sizes.
    """
    if not folder.is_dir():
        raise InputError(f"{key}: {folder}: no such folder; expected a folder of images")
    table = Path(captions) if captions else _table(folder)
    if table is None:
        paths, rows = _all_images(folder), None
    else:
        rows = read_table(table, ("file_name",), ("text", "subject"))
        names = [row["file_name"] for row in rows]
        paths = [_listed(folder, table, i, name, bool(captions)) for i, name in enumerate(names, start=1)]
    if len(paths) < FEWEST:
        raise InputError(f"{key}: {folder} has {len(paths)} image(s); expected at least {FEWEST}")
    order = sorted(range(len(paths)), key=lambda i: paths[i].relative_to(folder).as_posix())
    ordered = [paths[i] for i in order]
    twice = [path for path, count in Counter(ordered).items() if count > 1]
    if twice:
        raise InputError(f"{table}: {twice[0].name} is in it twice; expected each image once")
    _tell_others(folder, ordered)
    found = {}
    for what, wanted in (("text", named), ("subject", subjects)):
        values = None if rows is None else tuple(rows[i].get(what) or "" for i in order)
        if what == "subject" and (values is None or not any(values)):
            values = tuple(path.parent.name for path in ordered)
        if wanted:
            _require_all(folder, table, ordered, values, {"text": "caption"}.get(what, what))
        found[what] = values if values and any(values) else None
    sha256, headers = _look(folder, ordered)
    unreadable = tuple(i for i, size in enumerate(headers) if size is None)
    sizes = Counter(size for size in headers if size is not None)
    if one_size and len(sizes) > 1:
        (size, count), (other, few) = sizes.most_common(2)
        example = ordered[headers.index(other)]
        raise InputError(
            f"{key}: {folder} has images of {len(sizes)} sizes: {count} of {size[0]} x {size[1]} pixels, {few} of "
            f"{other[0]} x {other[1]} ({example.name}); expected one size"
        )
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return ImageSet(folder, tuple(ordered), found["text"], found["subject"], sha256, unreadable, size)


def require_readable(images: ImageSet, unreadable: Sequence[int], most: int) -> None:
    """Raises `InputError` if more than `most` images can't be read; `unreadable` are their numbers."""
    if len(unreadable) > most:
        names = ", ".join(images.paths[i].name for i in unreadable[:_SHOWN])
        more = f" and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
        raise InputError(
            f"{images.folder}: {len(unreadable)} unreadable image(s), {names}{more}; replace them, or allow as many "
            "with --config.most_unreadable"
        )


def _table(folder: Path) -> Path | None:
    """The table that lists the folder's images: its own, or that of the folder above."""
    if (folder / TABLE).is_file():
        return folder / TABLE
    above = folder.parent / TABLE
    if above.is_file():
        names = [Path(row["file_name"]) for row in read_table(above, ("file_name",))]
        names = {name.name for name in names if _is_for(name, folder)}
        if any(path.name in names for path in folder.iterdir()):
            return above
    return None


def _is_for(name: Path, folder: Path) -> bool:
    """Whether a name in a table above the folder is of an image in it, or in the folder of which it is a resized copy.

    As in `images_256`, whose table names `images/000000.png`.
    """
    parent = re.escape(name.parent.name)
    return not parent or re.fullmatch(rf"{parent}(_\d+)?", folder.absolute().name) is not None


def _listed(folder: Path, table: Path, number: int, name: str, given: bool) -> Path:
    """An image of a table: relative to the folder, or in it by its name alone; `given`: whatever folder is named."""
    own = Path(name)
    if not own.is_absolute() and ".." not in own.parts and own.name:
        for path in (folder / own, *([folder / own.name] if given or _is_for(own, folder) else [])):
            try:
                if path.is_file():
                    return path
            except (OSError, ValueError):
                break
    raise InputError(f"{table}: row {number} names {name!r}, which isn't a file in {folder}")


def _all_images(folder: Path) -> list[Path]:
    """The images of a folder, or if it has none, of its sub-folders."""
    for pattern in ("*", "*/*"):
        found = [path for path in folder.glob(pattern) if _is_image(path) and not _is_hidden(path.relative_to(folder))]
        if found:
            return found
    return []


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def _is_hidden(path: Path) -> bool:
    """Whether the file or a folder that it is in has a hidden name."""
    return any(part.startswith(".") for part in path.parts)


def _tell_others(folder: Path, paths: Sequence[Path]) -> None:
    known = {*paths, folder / TABLE}
    others = {
        path
        for parent in {path.parent for path in paths}
        for path in parent.iterdir()
        if path.is_file() and not path.name.startswith(".") and path not in known
    }
    if others:
        names = sorted(path.name for path in others)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        logging.warning("%s: %d other file(s) not scored: %s%s", folder, len(names), ", ".join(names[:_SHOWN]), more)


def _require_all(
    folder: Path, table: Path | None, paths: Sequence[Path], values: Sequence[str] | None, what: str
) -> None:
    if values is None:
        raise InputError(f"{folder}: no {what}s; expected a {TABLE} with file_name,text, or --config.captions=FILE")
    for path, value in zip(paths, values, strict=True):
        if not value.strip():
            raise InputError(f"{table or folder}: no {what} for {path.name}; a metric needs one for each image")


def _look(folder: Path, paths: Sequence[Path]) -> tuple[str, list[tuple[int, int] | None]]:
    """A checksum of names and contents, and each image's size, None where the header can't be read."""
    digest, sizes = hashlib.sha256(), []
    with Progress(f"checking {folder.name}", len(paths)) as progress:
        for path, (own, size) in zip(paths, in_threads(_header, paths), strict=True):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{own}\n".encode(errors="surrogateescape"))
            sizes.append(size)
            progress.advance()
    return digest.hexdigest(), sizes


def _header(path: Path) -> tuple[str, tuple[int, int] | None]:
    data = read_bytes(path, MOST_BYTES)
    try:
        size = open_image(data).size
    except ValueError:
        size = None
    return hashlib.sha256(data).hexdigest(), size


def _pixels(path: Path) -> np.ndarray | None:
    try:
        # As stored, since the tools of published scores don't turn images either.
        return np.asarray(to_rgb(open_image(read_bytes(path, MOST_BYTES)), upright=False))
    except ValueError:
        return None


def in_threads(call: Callable[[Path], _Result], paths: Sequence[Path]) -> Iterator[_Result]:
    """The results for all files in order, of which only a few are read ahead."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), 256):
            yield from pool.map(call, paths[start : start + 256])
