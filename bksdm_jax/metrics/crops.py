"""Resizing and cropping of single images on the host, as the programs of published scores do it."""

import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.resampling import bicubic_taps
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


def squash_aliased(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [size, size, 3] in about [0, 255]: PyTorch's bicubic without antialiasing.

    The cubic overshoots at edges, so values may leave [0, 255] a little.
    """
    rows = _resampled(image.astype(np.float32), size)
    return _resampled(rows.transpose(1, 0, 2), size).transpose(1, 0, 2)


def _resampled(x: np.ndarray, size: int) -> np.ndarray:
    """[N, M, 3] -> [size, M, 3]."""
    taps, weights = bicubic_taps(len(x), size)
    return sum(weights[:, k, None, None] * x[taps[:, k]] for k in range(taps.shape[1]))
