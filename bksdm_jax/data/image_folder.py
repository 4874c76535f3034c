"""A folder of images with captions in `metadata.csv`, and the reference's image transform."""

import dataclasses
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps

from bksdm_jax.data.tables import read_table
from bksdm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class FileExample:
    """An image file and its caption."""

    path: Path
    text: str

    def load(self, resolution: int) -> np.ndarray:
        """The image, its short side scaled and its middle cropped: uint8 [resolution, resolution, 3]."""
        return load_image(self.path, resolution)


def read_image_folder(folder: str | Path) -> list[FileExample]:
    """The examples that `metadata.csv` (`file_name,text`) of a folder lists, in its order.

    Raises:
        InputError: no folder, no table, or a listed image that isn't in the folder.
    """
    folder = Path(folder).expanduser()
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
            raise InputError(f"{table}: row {number} names {row['file_name']!r}, which is no file in {folder}")
        examples.append(FileExample(path, row["text"]))
    return examples


def load_image(path: Path, resolution: int | None = None) -> np.ndarray:
    """An image file, fitted to a square by `fit_square`, or as it is.

    Args:
        path: an image file; EXIF rotation is applied.
        resolution: pixels; None: the file's own height and width.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: the file is no image that Pillow reads whole, or has more pixels than Pillow's safety limit.
    """
    try:
        with Image.open(path) as file:
            _require_bounded(*file.size)
            image = ImageOps.exif_transpose(file).convert("RGB")
        return fit_square(image, resolution) if resolution else np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many types
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable image ({reason}); mend it or remove its row") from error


def fit_square(image: Image.Image, resolution: int) -> np.ndarray:
    """Short side to `resolution` (bilinear, antialiased), then a centre crop: uint8 [resolution, resolution, 3].

    Raises:
        ValueError: enlarged, the image would have more pixels than Pillow's safety limit.
    """
    width, height = image.size
    short = min(width, height)
    size = (max(resolution, resolution * width // short), max(resolution, resolution * height // short))
    _require_bounded(*size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - resolution) / 2), round((size[1] - resolution) / 2)
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))


def _require_bounded(width: int, height: int) -> None:
    """Pillow's own limit, as an error rather than a warning, before anything is decoded or enlarged."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{width} x {height} pixels, the limit is {Image.MAX_IMAGE_PIXELS} in all: a decompression bomb?"
        )
