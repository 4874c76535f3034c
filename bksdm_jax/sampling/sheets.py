"""Contact sheets of several models' images, one row each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.images import grid, save_png
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.data.decode import MOST_BYTES, open_image, to_rgb
from bksdm_jax.sampling.writer import Output

COLUMNS = 8
_CELL = 512  # pixels; larger images are shrunk, so that a sheet of many models fits into memory


def write_sheets(workdir: Path, outputs: Sequence[Output], count: int) -> None:
    """Writes `sheet_000.png`, ... in `workdir`, those that are missing: a row per output, in order.

    A column is one of `count` images, `COLUMNS` of them on a sheet; images are shrunk to 512 pixels, and smaller ones
    stand at the top left of their cell.
    Raises `InputError` if an image can't be read or a sheet can't be written.
    """
    for number, start in enumerate(range(0, count, COLUMNS)):
        path = workdir / f"sheet_{number:03d}.png"
        if path.exists():
            continue
        indices = range(start, min(start + COLUMNS, count))
        rows = [[_pixels(output.folder / output.name(index)) for index in indices] for output in outputs]
        height, width = np.max([image.shape[:2] for row in rows for image in row], axis=0)
        save_png(path, grid([np.stack([_on_white(image, height, width) for image in row]) for row in rows]))


def _pixels(path: Path) -> np.ndarray:
    try:
        image = to_rgb(open_image(read_bytes(path, MOST_BYTES)))
        image.thumbnail((_CELL, _CELL))
        return np.asarray(image)
    except ValueError as error:
        raise InputError(f"{path}: not a readable image ({error}); delete it, it is made again") from error


def _on_white(image: np.ndarray, height: int, width: int) -> np.ndarray:
    cell = np.full((height, width, 3), 255, np.uint8)
    cell[: image.shape[0], : image.shape[1]] = image
    return cell
