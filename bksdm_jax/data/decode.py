"""Image files to pixels: sizes are checked before anything is decoded, and nothing in a file is executed."""

import io
import re

import numpy as np
from PIL import Image, ImageFile, ImageOps

from bksdm_jax.base.errors import in_short

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Formats that only hold pixels; some that Pillow opens, such as EPS, are programs."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
"""Of the names of their files, in lower case."""
MOST_BYTES = 2**28
"""Bytes of an image file."""
MOST_PIXELS = 89_478_485
"""Width times height above which an image is refused; Pillow's own limit."""
_ORIENTATION = 0x0112  # EXIF's tag


def open_image(data: bytes, most_pixels: int = MOST_PIXELS) -> ImageFile.ImageFile:
    """Opens an image without decoding its pixels.

    Raises:
        ValueError: not an image in one of `FORMATS`, more than `most_pixels`, or several pictures in one file.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(f"unknown or damaged image format: {_short(error)}") from error
    width, height = image.size
    if width * height > most_pixels:
        raise ValueError(f"{width} x {height} pixels, the limit is {most_pixels} in total: a decompression bomb?")
    try:
        # MPO: a JPEG photograph followed by a preview or by the other view of a stereo pair
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:  # counting scans the file
        raise ValueError(f"damaged: {_short(error)}") from error
    if count > 1:
        raise ValueError(f"{count} pictures in one file")
    return image


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Decodes an image to 8-bit RGB: drops transparency and, if `upright`, applies its EXIF rotation.

    Raises `ValueError` if it is damaged or has 32-bit pixels, whose range is unknown.
    """
    try:
        if upright and not is_upright(image):
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"32-bit pixels ({image.mode}), whose range is unknown")
        if image.mode == "RGB":
            image.load()
            return image
        return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types
        raise ValueError(f"damaged: {_short(error)}") from error


def is_upright(image: Image.Image) -> bool:
    """Whether the image is shown as it is stored."""
    return image.getexif().get(_ORIENTATION, 1) not in range(2, 9)


def fit_square(
    image: Image.Image, resolution: int, where: tuple[float, float] = (0.5, 0.5), mirror: bool = False
) -> np.ndarray:
    """Resizes the short side to `resolution` (bilinear, antialiased), then crops a square.

    Args:
        image: RGB.
        resolution: pixels.
        where: horizontal and vertical position of the crop, from 0 (left, top) to 1 (right, bottom).
        mirror: flip the crop left to right.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        ValueError: the resized image would have more than `MOST_PIXELS`.
    """
    width, height = image.size
    short = min(width, height)
    size = (max(resolution, resolution * width // short), max(resolution, resolution * height // short))
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"enlarged to {size[0]} x {size[1]} pixels, the limit is {MOST_PIXELS} in total")
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((length - resolution) * share) for length, share in zip(size, where, strict=True))
    if image.size != (resolution, resolution):
        image = image.crop((left, top, left + resolution, top + resolution))
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image)


def _short(error: Exception) -> str:
    return re.sub(r" <_io.BytesIO object at \w+>", "", in_short(error))
