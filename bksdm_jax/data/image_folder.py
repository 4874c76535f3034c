"""A folder of images with captions in `metadata.csv`, and the reference's image transform."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from bksdm_jax.data.tables import read_table
from bksdm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Example:
    """An image file and its caption."""

    path: Path
    text: str


def read_image_folder(folder: str | Path) -> list[Example]:
    """The examples that `metadata.csv` (`file_name,text`) of a folder lists, in its order.

    Raises:
        InputError: no folder, no table, or a listed image that isn't in the folder.
    """
    folder = Path(folder)
    table = folder / "metadata.csv"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected images and a metadata.csv with file_name,text")
    examples = []
    root = folder.resolve()
    for number, row in enumerate(read_table(table, ("file_name", "text")), start=1):
        path = folder / row["file_name"]
        try:
            inside = path.resolve().is_relative_to(root) and path.is_file()
        except (OSError, ValueError):  # a name too long or with a NUL
            inside = False
        if not inside:
            raise InputError(f"{table}: row {number} names {row['file_name']!r}, which is no file in {folder}")
        examples.append(Example(path, row["text"]))
    return examples


def load_image(path: Path, resolution: int) -> np.ndarray:
    """Short side to `resolution` (bilinear, antialiased), then a centre crop.

    Args:
        path: an image file; EXIF rotation is applied.
        resolution: pixels.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        InputError: the file is no image that Pillow reads whole, or has more pixels than Pillow's safety limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable image ({reason}); mend it or remove its row") from error
    width, height = image.size
    short = min(width, height)
    size = (max(resolution, resolution * width // short), max(resolution, resolution * height // short))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - resolution) / 2), round((size[1] - resolution) / 2)
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))
