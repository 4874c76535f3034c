"""CLIP's view of images and captions."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.dtypes import exact_products
from bksdm_jax.images import to_unit
from bksdm_jax.models.clip_pair import CLIP, unit_length
from bksdm_jax.weights.clip_folder import LoadedCLIP


@dataclasses.dataclass(frozen=True)
class ClipView:
    """The image tower's states [N, width], and each image's cosine with its own caption [N]."""

    features: np.ndarray
    cosines: np.ndarray


def clip_view(
    loaded: LoadedCLIP, images: np.ndarray, captions: Sequence[str] | None = None, batch_size: int = 64
) -> ClipView:
    """Both for a list of images, in float32.

    Args:
        loaded: from `load_clip`.
        images: uint8 [N, image_size, image_size, 3].
        captions: one to an image; None: no cosines (an empty array).
        batch_size: images per program call; changes nothing but the speed.
    """
    clip = CLIP(loaded.config)
    variables = {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), loaded.params)}

    @jax.jit
    def view(images: jax.Array, tokens: jax.Array, ends: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = clip.apply(variables, to_unit(images), method="image_features")
        directions = unit_length(clip.apply(variables, to_unit(images), method="embed_images"))
        texts = unit_length(clip.apply(variables, tokens, ends, method="embed_texts"))
        return states, jnp.sum(directions * texts, axis=-1)

    tokens = loaded.tokenizer(captions if captions is not None else [""] * len(images))
    ends = loaded.tokenizer.ends(tokens)
    features, cosines = [], []
    with exact_products("float32"):
        for start in range(0, len(images), batch_size):
            chosen = np.arange(start, start + batch_size).clip(max=len(images) - 1)  # the last call is filled up
            states, cosine = view(images[chosen], tokens[chosen], ends[chosen])
            count = min(batch_size, len(images) - start)
            features.append(np.asarray(states)[:count])
            cosines.append(np.asarray(cosine)[:count])
    return ClipView(np.concatenate(features), np.concatenate(cosines if captions is not None else [np.zeros(0)]))
