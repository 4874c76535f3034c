"""The shapes world's reader as an extractor: the scenes that captions ask for and images show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.extractor import exact
from bksdm_jax.shapes.codes import encode
from bksdm_jax.shapes.reader import candidates, read_scene
from bksdm_jax.shapes.render import PIXELS
from bksdm_jax.shapes.scenes import parse_caption


class ShapesReader:
    """Reads facts from pictures, without a network."""

    facts: Mapping[str, Any] = {"weights": "none", "resize": "exact"}

    def __call__(
        self, images: Sequence[np.ndarray], captions: Sequence[str] | None = None, batch_size: int = 0
    ) -> dict[str, np.ndarray]:
        """`scenes` uint8 [N, 2, WIDTH]: codes of the scenes that were asked for and that are shown.

        New shapes are looked for only in images whose caption has one, so other images' facts don't depend on them.
        Raises `InputError` for an image that isn't of 64 x 64 pixels, or a caption that isn't of the shapes world.
        """
        del batch_size
        if captions is None:
            raise InputError("captions: none; attribute_accuracy needs those of the shapes world")
        asked = [parse_caption(text) for text in captions]
        shown = [
            read_scene(exact(image, PIXELS), candidates(scene)) for image, scene in zip(images, asked, strict=True)
        ]
        return {"scenes": np.stack([np.stack([*map(encode, scenes)]) for scenes in (asked, shown)], axis=1)}
