"""Resizers of other tools, exactly: a score's value depends on which one it was measured with."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

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
