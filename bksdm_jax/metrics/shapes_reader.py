"""The shapes world's reader as an extractor: the scenes that captions ask for and images show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.extractor import exact
from bksdm_jax.shapes.codes import encode
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.render import PIXELS
from bksdm_jax.shapes.scenes import parse_caption


class ShapesReader:
    """Reads facts from pictures, without a network."""

    facts: Mapping[str, Any] = {"weights": "none", "resize": "exact"}

    def __call__(
        self, images: Sequence[np.ndarray], captions: Sequence[str] | None = None, batch_size: int = 0
    ) -> dict[str, np.ndarray]:
        """`scenes` uint8 [N, 2, WIDTH]: codes of the scenes that were asked for and that are shown.

        Raises `InputError` for an image that isn't of 64 x 64 pixels, or a caption that isn't of the shapes world.
        """
        del batch_size
        if captions is None:
            raise InputError("captions: none; attribute_accuracy needs those of the shapes world")
        asked = [encode(parse_caption(text)) for text in captions]
        shown = [encode(read_scene(exact(image, PIXELS))) for image in images]
        return {"scenes": np.stack([np.stack(asked), np.stack(shown)], axis=1)}
