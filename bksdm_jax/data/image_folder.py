"""A folder of images with captions in `metadata.csv`."""

import dataclasses
from pathlib import PurePath

import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import AnyPath, read_bytes, to_path
from bksdm_jax.data.decode import fit_square, open_image, to_rgb
from bksdm_jax.data.tables import read_table


@dataclasses.dataclass(frozen=True)
class FileExample:
    """An image file and its caption."""

    path: AnyPath
    name: str
    text: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions: one."""
        return (self.text,)

    def image(self) -> Image.Image:
        """Upright RGB; raises `InputError` if it can't be read."""
        return read_image(self.path)


def read_image_folder(folder: str | AnyPath) -> list[FileExample]:
    """The examples listed in a folder's `metadata.csv` (`file_name,text`), in that order.

    Raises:
        InputError: the folder or its table is missing, or a listed image isn't in the folder.
    """
    folder = to_path(folder)
    table = folder / "metadata.csv"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected images and a metadata.csv with file_name,text")
    examples = []
    for number, row in enumerate(read_table(table, ("file_name", "text")), start=1):
        name = PurePath(row["file_name"])
        path = folder / name
        try:
            inside = not name.is_absolute() and ".." not in name.parts and path.is_file()
        except (OSError, ValueError):  # a name too long
            inside = False
        if not inside:
            raise InputError(f"{table}: row {number} names {row['file_name']!r}, which isn't a file in {folder}")
        examples.append(FileExample(path, row["file_name"], row["text"]))
    return examples


def load_image(path: AnyPath, resolution: int | None = None) -> np.ndarray:
    """Loads an image file, as a square by `fit_square` or at its own size.

    Args:
        path: an image file; EXIF rotation is applied.
        resolution: side of the square in pixels; None: the file's own size.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: the file can't be read, isn't an image, or has more than `MOST_PIXELS`.
    """
    image = read_image(path)
    try:
        return fit_square(image, resolution) if resolution else np.asarray(image)
    except ValueError as error:
        raise _unreadable(path, error) from error


def image_size(path: AnyPath) -> tuple[int, int]:
    """Width and height as an image file's header states them; raises `InputError` as `load_image`."""
    try:
        return open_image(read_bytes(path)).size
    except ValueError as error:
        raise _unreadable(path, error) from error


def read_image(path: AnyPath) -> Image.Image:
    """Loads an image file as upright RGB; raises `InputError` like `load_image`."""
    data = read_bytes(path)
    try:
        return to_rgb(open_image(data))
    except ValueError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: AnyPath, error: Exception) -> InputError:
    return InputError(
        f"{path}: not a readable image ({error}); replace the file, or remove its row and start in a new workdir"
    )
