"""DINO and DINOv2 as feature extractors."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import known_name
from bksdm_jax.base.precision import cast_frozen, compute_dtype
from bksdm_jax.metrics.clip import normalised
from bksdm_jax.metrics.crops import short_side_crop, squash
from bksdm_jax.metrics.extractor import Extractor
from bksdm_jax.metrics.facts import weights_facts
from bksdm_jax.models.vit import ViT, ViTConfig
from bksdm_jax.pipelines.vit_folder import LoadedViT

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of pixels in [0, 1]: mean and standard deviation of red, green and blue."""
_AUTHORS_OFFSET = 0.1

PREPROCESSING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dino": functools.partial(short_side_crop, short=256, crop=224),
    "dgm_eval": functools.partial(squash, size=224),
}
"""By name: uint8 [H, W, 3] -> uint8 [224, 224, 3], bicubically by Pillow.

`dino`: DINO's own evaluation, as DreamBooth's scores use it: the shorter side to 256, then the centre. `dgm_eval`: that
of FD-DINOv2 (Stein et al. 2023): both sides. Transformers' processors of these models resize in other ways.
"""


def vit_extractor(loaded: LoadedViT, preprocess: str, dtype: str = "float32") -> Extractor:
    """`cls`: the class token after the last norm, [B, width] in `dtype`.

    With `dgm_eval`, position embeddings of DINOv2 without registers are interpolated as its authors' code does it,
    whose scale differs slightly from Transformers'.

    Args:
        loaded: from `load_vit`.
        preprocess: a key of `PREPROCESSING`.
        dtype: `float32` or `bfloat16`, of the network's computations.

    Raises:
        InputError: an unknown name.
    """
    known_name("config", "preprocess", preprocess, PREPROCESSING)
    config, compute = loaded.config, compute_dtype(dtype)
    if preprocess == "dgm_eval" and config.layer_scale and not config.registers:
        config = dataclasses.replace(config, offset=_AUTHORS_OFFSET)
    return Extractor(
        prepare=PREPROCESSING[preprocess],
        params=cast_frozen(loaded.params, compute),
        program=functools.partial(_features, config, compute),
        dtype=dtype,
        facts=weights_facts(loaded.name, loaded.files, (config,), preprocess, dtype, width=config.width),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(config: ViTConfig, dtype: jnp.dtype, params: Any, images: jax.Array, _: None) -> dict[str, jax.Array]:
    pixels = normalised(images, MEAN, STD).astype(dtype)
    return {"cls": ViT(config, dtype).apply({"params": params}, pixels)}
