"""CLIP as a feature extractor: states and embeddings of images, and cosines between images and captions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import known_name
from bksdm_jax.base.images import to_unit
from bksdm_jax.base.precision import cast_frozen, compute_dtype
from bksdm_jax.metrics.captions import clean_caption
from bksdm_jax.metrics.crops import short_side_crop, square_crop
from bksdm_jax.metrics.extractor import Extractor, exact
from bksdm_jax.metrics.facts import weights_facts
from bksdm_jax.models.clip_pair import CLIP, CLIPConfig, unit_length
from bksdm_jax.pipelines.clip_folder import LoadedCLIP


class _Preprocessing(NamedTuple):
    """`resize`: (uint8 [H, W, 3], size) -> [size, size, 3] in [0, 255]; `unit`: pixels go to [-1, 1]."""

    resize: Callable[[np.ndarray, int], np.ndarray]
    unit: bool = False


PREPROCESSING = {
    "shapes": _Preprocessing(exact, unit=True),
    "open_clip": _Preprocessing(lambda image, size: short_side_crop(image, size, size)),
    "cmmd": _Preprocessing(square_crop),
}
"""By name: images of the exact size in [-1, 1]; OpenCLIP's; CMMD's. The latter two normalise as the model's files say.

OpenCLIP resizes the shorter side bicubically by Pillow and crops the centre; the program of CMMD's authors crops first.
Its second resize, by PyTorch's bicubic, is to the size that images have then. It takes embeddings of unit length.
"""

_LETTERS = {(768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1408, 40): "g"}


def clip_extractor(loaded: LoadedCLIP, preprocess: str, dtype: str = "float32") -> Extractor:
    """CLIP's features of images, and with captions of pairs.

    `features`: the image tower's states before the projection, [B, width] in `dtype`; `image`: embeddings of unit
    length, float32 [B, projection]; with captions, `clip_cosine`: float32 [B], between an image's embedding and that
    of its own caption, which is cleaned (`clean_caption`) and, if too long, cut.

    Args:
        loaded: from `load_clip`.
        preprocess: a key of `PREPROCESSING`.
        dtype: `float32` or `bfloat16`, of the network's computations.

    Raises:
        InputError: an unknown name.
    """
    steps = PREPROCESSING[known_name("config", "preprocess", preprocess, PREPROCESSING)]
    compute = compute_dtype(dtype)

    def text(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens = loaded.tokenizer([clean_caption(caption) for caption in captions])
        return tokens, loaded.tokenizer.ends(tokens)

    width = loaded.config.vision.width
    means = None if steps.unit else (loaded.mean, loaded.std)
    return Extractor(
        prepare=functools.partial(steps.resize, size=loaded.config.vision.image_size),
        params=cast_frozen(loaded.params, compute),
        program=functools.partial(_features, loaded.config, compute, means),
        text=text,
        dtype=dtype,
        facts=weights_facts(
            loaded.name,
            loaded.files,
            (loaded.config, means),
            preprocess,
            dtype,
            architecture=_architecture(loaded.config),
            width=width,
        ),
    )


def _architecture(config: CLIPConfig) -> str:
    """OpenCLIP's name of the image tower, such as `ViT-g-14`; where there is none, its width and depth."""
    tower = config.vision
    letter = _LETTERS.get((tower.width, tower.layers), f"{tower.width}x{tower.layers}")
    at = "" if tower.image_size == 224 else f"-{tower.image_size}"
    return f"ViT-{letter}-{tower.patch_size}{at}"


def normalised(pixels: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 or float32 [B, H, W, 3] in [0, 255] -> float32, with `mean` and `std` of pixels in [0, 1] taken out."""
    pixels = pixels.astype(jnp.float32) / 255
    return (pixels - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(
    config: CLIPConfig,
    dtype: jnp.dtype,
    means: tuple[tuple[float, ...], tuple[float, ...]] | None,
    params: Any,
    images: jax.Array,
    text: tuple[jax.Array, jax.Array] | None,
) -> dict[str, jax.Array]:
    """`means`: mean and standard deviation; None: pixels in [-1, 1]."""

    def apply(method: str, *inputs: jax.Array) -> jax.Array:
        return CLIP(config, dtype).apply({"params": params}, *inputs, method=method)

    states = apply("image_features", to_unit(images) if means is None else normalised(images, *means))
    found = {"features": states, "image": unit_length(apply("project_images", states))}
    if text is not None:
        found["clip_cosine"] = jnp.sum(found["image"] * unit_length(apply("embed_texts", *text)), axis=-1)
    return found
