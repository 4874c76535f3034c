"""Settings for reading images with captions, common to preparation and training."""

import dataclasses

from bksdm_jax.base.errors import whole_number
from bksdm_jax.data.decode import background_colour

KINDS = ("auto", "table", "files", "coco", "tars", "parquet", "tfds")
"""The forms that sources have, and `auto`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images are used, and how transparent ones are seen.

    Attributes:
        background: colour that transparent images are laid on, as `PIL.ImageColor.getrgb` takes it (`white`,
            `#ffffff`); empty: their transparency is dropped.
        least_side: images whose short side has fewer pixels are rejected.
    """

    background: str = ""
    least_side: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions(ImageOptions):
    """How images and captions are found and read.

    Attributes:
        image_column, text_column: names of a table's or Parquet file's columns, or of a TFDS dataset's features
            (`captions/text` names a nested one); `text_column` also names the key of the caption in `.json` files.
            Empty: `file_name` and `text` in tables, `image` and `text` in Parquet and TFDS, `caption` in `.json` files.
        caption: caption of every image that has none, such as `a photo of sks dog`; empty: such images are rejected.
        repeats: whether folders named `10_dog`, as for kohya's scripts, repeat each of their images 10 times.
        coco_images: folder of the images that a COCO captions file names; empty: the file's own folder, or the one
            beside `annotations/` that is called like the captions file.
        background, least_side: as in `ImageOptions`.
    """

    image_column: str = ""
    text_column: str = ""
    caption: str = ""
    repeats: bool = True
    coco_images: str = ""


def require_options(options: ImageOptions) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range; reads no files."""
    whole_number("config", "least_side", options.least_side)
    background_colour("config", options.background)
