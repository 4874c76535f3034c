"""Feature extractors by name."""

import functools
from collections.abc import Callable

from bksdm_jax.metrics.clip import clip_extractor
from bksdm_jax.metrics.extractor import Extractor
from bksdm_jax.pipelines.clip_folder import load_clip
from bksdm_jax.pipelines.embedded import clip_folder


@functools.cache
def shapes_clip() -> Extractor:
    """The small CLIP of the shapes world, bundled with the package."""
    return clip_extractor(load_clip(clip_folder()), "shapes")


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"clip_shapes": shapes_clip}
"""By name; each is loaded at its first call."""
