"""Images as Python code gives and takes them: generated ones, and those to begin from."""

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError, shown, whole_number
from bksdm_jax.base.images import grid
from bksdm_jax.data.decode import to_rgb
from bksdm_jax.sampling.text_to_image import require_multiple

Init = np.ndarray | Image.Image | Sequence[Image.Image]
"""Images to begin from: uint8 [H, W, 3] or [N, H, W, 3], or one or several of Pillow, all of one size."""


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Generated images; notebooks show them as a grid.

    Attributes:
        arrays: uint8 [N, H, W, 3].
        prompts: one each.
    """

    arrays: np.ndarray
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.arrays)

    def pil(self) -> list[Image.Image]:
        """Each as an image of Pillow, RGB."""
        return [Image.fromarray(array) for array in self.arrays]

    def grid(self, columns: int = 0) -> Image.Image:
        """All in one image of Pillow, on white.

        `columns` are images of a row, 0: nearly a square; raises `InputError` if it is below 0.
        """
        count = len(self.arrays)
        columns = min(whole_number("grid", "columns", columns, 0) or math.ceil(count**0.5), count)
        return Image.fromarray(grid([self.arrays[start : start + columns] for start in range(0, count, columns)]))

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.grid().save(data, format="PNG")
        return data.getvalue()


def images_to_begin_from(init: Init, height: int, width: int, count: int, factor: int) -> np.ndarray:
    """The images that `count` images begin from, uint8 [count, H, W, 3].

    Args:
        init: as many, or one for all.
        height, width: what they are resized to; 0: their own, rounded down to a multiple of `factor`.
        count: of images to make.
        factor: pixels per latent position.

    Raises:
        InputError: they have another form, number or size.
    """
    if isinstance(init, np.ndarray):
        if init.dtype != np.uint8 or init.ndim not in (3, 4) or init.shape[-1] != 3 or not init.size:
            raise InputError(f"init: {init.dtype} {list(init.shape)}; expected uint8 [H, W, 3] or [N, H, W, 3]")
        pictures = [Image.fromarray(array) for array in (init if init.ndim == 4 else init[None])]
    else:
        pictures = [_rgb(image) for image in ([init] if isinstance(init, Image.Image) else init)]
    if len(pictures) not in (1, count):
        raise InputError(f"init: {len(pictures)} image(s) for {count} prompt(s); expected one, or as many as prompts")
    sizes = {image.size for image in pictures}
    if len(sizes) > 1:
        raise InputError(f"init: images of {len(sizes)} sizes; expected one size")
    own_width, own_height = sizes.pop()
    height, width = height or own_height // factor * factor, width or own_width // factor * factor
    for key, pixels in (("height", height), ("width", width)):
        require_multiple(pixels, factor, f"init: {key}")
    arrays = [np.asarray(image.resize((width, height), Image.Resampling.LANCZOS)) for image in pictures]
    return np.stack(arrays * (count if len(arrays) == 1 else 1))


def _rgb(image: Image.Image) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise InputError(f"init: {shown(image)}; expected an image of Pillow, or an array uint8 [N, H, W, 3]")
    try:
        return to_rgb(image)
    except ValueError as error:
        raise InputError(f"init: not a readable image ({error})") from error
