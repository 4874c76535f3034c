"""Resizers of other tools, exactly: a score's value depends on which one it was measured with."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.decode import MOST_PIXELS

_BICUBIC = Image.Resampling.BICUBIC


def half_pixel_bilinear(images: jax.Array, size: int) -> jax.Array:
    """PyTorch's `interpolate(mode="bilinear", align_corners=False)`, not antialiased.

    Args:
        images: float32 [B, H, W, 3].
        size: height and width of the result, pixels.

    Returns:
        float32 [B, size, size, 3].
    """
    for axis in (1, 2):
        centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * _step(images.shape[axis], size)
        images = _between(images, axis, np.maximum(centres - np.float32(0.5), 0))
    return images


def tf1_bilinear(images: jax.Array, size: int) -> jax.Array:
    """TensorFlow 1's bilinear resize: pixel i is taken at i in / out, without half pixels; not antialiased.

    Arguments and result as of `half_pixel_bilinear`.
    """
    for axis in (1, 2):
        images = _between(images, axis, np.arange(size, dtype=np.float32) * _step(images.shape[axis], size))
    return images


def clean(image: np.ndarray, size: int) -> np.ndarray:
    """clean-fid's resize: bicubic and antialiased, each channel in float, clipped to [0, 255], not rounded.

    Args:
        image: uint8 [H, W, 3].
        size: height and width of the result, pixels.

    Returns:
        float32 [size, size, 3].
    """
    channels = [Image.fromarray(image[..., i].astype(np.float32)).resize((size, size), _BICUBIC) for i in range(3)]
    return np.stack(channels, axis=-1).clip(0, 255)


def squash(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [size, size, 3] by Pillow's bicubic resize, antialiased, whatever the proportions."""
    return np.asarray(Image.fromarray(image).resize((size, size), _BICUBIC))


def centre_crop_bicubic(image: np.ndarray, short: int, crop: int | None = None) -> np.ndarray:
    """torchvision's `Resize(short, BICUBIC)` and `CenterCrop(crop)` of a Pillow image.

    Args:
        image: uint8 [H, W, 3].
        short: length of the short side after resizing, pixels.
        crop: side of the square, pixels; None: `short`. What is missing is black.

    Returns:
        uint8 [crop, crop, 3].

    Raises:
        InputError: the resized image would have more than `MOST_PIXELS`.
    """
    crop = short if crop is None else crop
    height, width = image.shape[:2]
    least = min(height, width)
    rows, columns = int(short * height / least), int(short * width / least)
    if rows * columns > MOST_PIXELS:
        raise InputError(
            f"images: {width} x {height} pixels, enlarged to {columns} x {rows}; expected at most {MOST_PIXELS} in all"
        )
    resized = np.asarray(Image.fromarray(image).resize((columns, rows), _BICUBIC))
    margins = [(missing // 2, missing - missing // 2) for missing in (max(crop - rows, 0), max(crop - columns, 0))]
    padded = np.pad(resized, (*margins, (0, 0)))
    top, left = (round((length - crop) / 2) for length in padded.shape[:2])
    return padded[top : top + crop, left : left + crop]


def _step(length: int, size: int) -> np.float32:
    return np.float32(length / size)


def _between(images: jax.Array, axis: int, positions: np.ndarray) -> jax.Array:
    """Linear interpolation along an axis at float positions; beyond the last pixel it is the last pixel."""
    low = np.minimum(positions.astype(np.int32), images.shape[axis] - 1)
    high = np.minimum(low + 1, images.shape[axis] - 1)
    shape = tuple(-1 if i == axis else 1 for i in range(images.ndim))
    share = jnp.asarray((positions - low).reshape(shape), images.dtype)
    first, second = jnp.take(images, low, axis=axis), jnp.take(images, high, axis=axis)
    return first + (second - first) * share
