"""Images of several models beneath each other, small and large, as data URIs within a budget of bytes."""

import base64
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.data.decode import MOST_BYTES, open_image, to_rgb
from bksdm_jax.data.tables import read_table

SMALL, LARGE = 192, 768
"""Longest sides in pixels of the images in the grid (twice as dense as they are shown), and when enlarged."""
BUDGET = 14 * 2**20
"""Bytes of all data URIs of a grid."""
MOST_FILES = 200_000
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_FEW = "data:image/png"  # what isn't larger than the grid's copies is stored exactly
_LETTERS = 1000
_QUALITY = {SMALL: 82, LARGE: 85}


@dataclasses.dataclass(frozen=True)
class Folder:
    """A model's images: their paths and captions by number (the file name without its ending)."""

    paths: Mapping[str, Path]
    captions: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image; `large` is empty where it isn't larger than `small`, or there was no room. `few`: it has few pixels."""

    small: str
    large: str
    few: bool


@dataclasses.dataclass(frozen=True)
class Grid:
    """Columns of images with the same name.

    Attributes:
        names, captions: of each column.
        rows: label -> an image per column.
        notes: what was left out, and why.
    """

    names: list[str]
    captions: list[str]
    rows: dict[str, list[Picture]]
    notes: list[str]


def find_pictures(folder: Path) -> Folder:
    """The images in `folder`, or in its `images/`, with captions of a `metadata.csv` in `folder` or beside it.

    Raises:
        InputError: it can't be read, or holds more than `MOST_FILES` files.
    """
    inside = folder / "images" if (folder / "images").is_dir() else folder
    paths: dict[str, Path] = {}
    try:
        with os.scandir(inside) as entries:
            for count, entry in enumerate(entries):
                if count >= MOST_FILES:
                    raise InputError(
                        f"{inside}: more than {MOST_FILES} files; the page shows images of smaller folders"
                    )
                path = Path(entry.path)
                if path.suffix.lower() in _ENDINGS and not entry.name.startswith("."):
                    paths[path.stem] = path
    except OSError as error:
        raise InputError(f"{inside}: can't be read ({error.strerror}); are the scored images still there?") from error
    table = next(
        (place / "metadata.csv" for place in (folder, inside.parent) if (place / "metadata.csv").is_file()), None
    )
    rows = read_table(table, ("file_name", "text")) if table else []
    return Folder(paths, {PurePath(row["file_name"]).stem: row["text"][:_LETTERS] for row in rows})


def picture_grid(folders: Mapping[str, Folder], most: int) -> Grid:
    """The first `most` images that every folder has under one name, in the order of the names.

    A name whose captions differ is left out: its images don't show the same prompt. The page gets smaller copies, as
    many as `BUDGET` allows; the large ones of the later columns are omitted first.

    Raises:
        InputError: an image can't be read.
    """
    if not folders or not most:
        return Grid([], [], {label: [] for label in folders}, [])
    shared = sorted(set.intersection(*(set(folder.paths) for folder in folders.values())))
    texts = {name: {f.captions[name] for f in folders.values() if name in f.captions} for name in shared}
    names = [name for name in shared if len(texts[name]) <= 1]
    notes = []
    if len(names) < len(shared):
        notes.append(f"{len(shared) - len(names)} images are left out, whose captions differ from model to model.")
    if not names:
        notes.append("No images have the same name and caption in all rows.")
    files = {name: [folder.paths[name] for folder in folders.values()] for name in names[:most]}
    small, used = _copies(files, SMALL, BUDGET)
    large, _ = _copies({name: files[name] for name in small}, LARGE, BUDGET - used)
    if len(small) < len(files):
        notes.append(f"{len(small)} of {len(files)} images fit into the page.")
    if len(large) < len(small):
        notes.append(f"Only the first {len(large)} images are there in a larger size: the page is limited to 15 MB.")
    rows = {
        label: [_picture(small[name][i], large[name][i] if name in large else "") for name in small]
        for i, label in enumerate(folders)
    }
    return Grid(list(small), [next(iter(texts[name]), "") for name in small], rows, notes)


def _picture(small: str, large: str) -> Picture:
    return Picture(small, large, small.startswith(_FEW))


def _copies(files: Mapping[str, Sequence[Path]], side: int, budget: int) -> tuple[dict[str, list[str]], int]:
    """Copies of whole columns until the budget is spent, and the bytes that they take."""
    made: dict[str, list[str]] = {}
    used = 0
    for name, paths in files.items():
        column = [_copy(path, side) for path in paths]
        used += sum(map(len, column))
        if used > budget:
            return made, used - sum(map(len, column))
        made[name] = column
    return made, used


def _copy(path: Path, side: int) -> str:
    """A data URI of at most `side` pixels a side; empty if a larger copy than `SMALL` would show no more than it."""
    try:
        image = to_rgb(open_image(read_bytes(path, MOST_BYTES)))
    except ValueError as error:
        raise InputError(f"{path}: not a readable image ({error}); replace or delete it") from error
    if side > SMALL and max(image.size) <= SMALL:
        return ""
    exact = max(image.size) <= SMALL  # too small for JPEG's artefacts
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    kind = "png" if exact else "jpeg"
    image.save(file, format=kind.upper(), **({"optimize": True} if exact else {"quality": _QUALITY[side]}))
    return data_uri(file.getvalue(), f"image/{kind}")


def data_uri(data: bytes, kind: str) -> str:
    """A file of the media type `kind` as a URI that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
