"""Resizing and cropping of single images on the host, as the programs of published scores do it."""

import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.decode import MOST_PIXELS

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def short_side_crop(image: np.ndarray, short: int, crop: int, resample: Image.Resampling = BICUBIC) -> np.ndarray:
    """Pillow's resize of the shorter side, then a centre crop, both with torchvision's rounding.

    Args:
        image: uint8 [H, W, 3].
        short: new length of the shorter side, at least `crop`.
        crop: side of the square.
        resample: Pillow's filter; it antialiases.

    Returns:
        uint8 [crop, crop, 3].

    Raises:
        InputError: the resized image would have more than `MOST_PIXELS`.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    sizes = [int(short * side / shorter) for side in (width, height)]
    if sizes[0] * sizes[1] > MOST_PIXELS:
        raise InputError(
            f"images: {width} x {height} pixels, enlarged to {sizes[0]} x {sizes[1]}; "
            f"expected at most {MOST_PIXELS} in all"
        )
    left, top = (round((side - crop) / 2) for side in sizes)
    picture = Image.fromarray(image).resize(sizes, resample)
    return np.asarray(picture.crop((left, top, left + crop, top + crop)))


def squash(image: np.ndarray, size: int, resample: Image.Resampling = BICUBIC) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3] by Pillow, whatever the aspect ratio."""
    return np.asarray(Image.fromarray(image).resize((size, size), resample))


def square_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3]: the largest square of the centre, then Pillow's bicubic resize."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return squash(image[top : top + side, left : left + side], size)
