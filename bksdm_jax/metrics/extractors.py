"""Feature extractors: networks that turn images into features."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.images import to_unit
from bksdm_jax.base.precision import exact_products
from bksdm_jax.models.clip_pair import CLIP, CLIPConfig, unit_length
from bksdm_jax.pipelines.clip_folder import LoadedCLIP, load_clip
from bksdm_jax.pipelines.embedded import clip_folder


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its parameters and preprocessing.

    Attributes:
        size: height and width of its input, pixels.
        resize: rule for images of other sizes, a key of `RESIZE_RULES`.
        params: of the network, on the device.
        program: jitted; (params, uint8 [B, size, size, 3], text or None) -> features by name, each [B, ...].
        text: captions -> the program's text input, arrays [B, ...].
    """

    size: int
    resize: str
    params: Any
    program: Callable[[Any, np.ndarray, Any], dict[str, jax.Array]]
    text: Callable[[Sequence[str]], Any] = lambda captions: None

    def __call__(
        self, images: np.ndarray, captions: Sequence[str] | None = None, batch_size: int = 64
    ) -> dict[str, np.ndarray]:
        """Features by name, each [N, ...].

        Args:
            images: uint8 [N, H, W, 3].
            captions: one per image; None: features that need text are left out.
            batch_size: images per program call; the last call is padded with the last image.

        Raises:
            InputError: images of a size that the resize rule doesn't accept.
        """
        images, count = RESIZE_RULES[self.resize](images, self.size), len(images)
        batches = []
        with exact_products("float32"):
            for start in range(0, count, batch_size):
                chosen = np.arange(start, start + batch_size).clip(max=count - 1)
                text = None if captions is None else self.text([captions[i] for i in chosen])
                found = self.program(self.params, images[chosen], text)
                batches.append({name: np.asarray(rows)[: count - start] for name, rows in found.items()})
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def clip_extractor(loaded: LoadedCLIP) -> Extractor:
    """CLIP: `features`, the image tower's states [B, width], and with captions `clip_cosine` [B].

    The cosine is between each image's embedding and its own caption's.
    """
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)

    def text(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = loaded.tokenizer(captions)
        return tokens, loaded.tokenizer.ends(tokens)

    program = functools.partial(_clip_features, loaded.config)
    return Extractor(loaded.config.vision.image_size, "exact", params, program, text)


@functools.partial(jax.jit, static_argnums=0)
def _clip_features(
    config: CLIPConfig, params: Any, images: jax.Array, text: tuple[jax.Array, jax.Array] | None
) -> dict[str, jax.Array]:
    def apply(method: str, *inputs: jax.Array) -> jax.Array:
        return CLIP(config).apply({"params": params}, *inputs, method=method)

    pixels = to_unit(images)
    found = {"features": apply("image_features", pixels)}
    if text is not None:
        embeddings = unit_length(apply("embed_images", pixels))  # XLA computes the tower once
        found["clip_cosine"] = jnp.sum(embeddings * unit_length(apply("embed_texts", *text)), axis=-1)
    return found


def _exact(images: np.ndarray, size: int) -> np.ndarray:
    height, width = images.shape[1:3]
    if (height, width) != (size, size):
        raise InputError(f"images: {width} x {height} pixels; this extractor takes {size} x {size}")
    return images


RESIZE_RULES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"exact": _exact}
"""By name: (uint8 [B, H, W, 3], size) -> uint8 [B, size, size, 3]."""


@functools.cache
def shapes_clip() -> Extractor:
    """The small CLIP of the shapes world, bundled with the package."""
    return clip_extractor(load_clip(clip_folder()))


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"clip_shapes": shapes_clip}
"""By name; each is loaded at its first call."""
