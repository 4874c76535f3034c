"""Images as arrays: uint8 for storage, floats in [-1, 1] for networks; grids; PNG files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bksdm_jax.base.files import atomic_file


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 [..., H, W, 3] in [0, 255] -> float32 in [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """float [..., H, W, 3] in [-1, 1] -> uint8 in [0, 255], rounded to nearest and clipped."""
    return jnp.round(jnp.clip(images.astype(jnp.float32) * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)


def grid(rows: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Rows of images, each uint8 [N, H, W, 3] of one shape, as one image, uint8 [H', W', 3].

    `gap` is the number of white pixels between and around the images.
    """
    count, height, width, _ = rows[0].shape
    canvas = np.full((gap + len(rows) * (height + gap), gap + count * (width + gap), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    return canvas


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as a PNG file, atomically."""
    with atomic_file(path) as temporary:
        Image.fromarray(np.asarray(image)).save(temporary, format="PNG")
