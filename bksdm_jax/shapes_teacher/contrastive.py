"""The teacher's CLIP: contrastive training on captions and pictures."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bksdm_jax.base.images import to_unit
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.clip_pair import CLIP, CLIPConfig, CLIPVisionConfig
from bksdm_jax.pipelines.tokenizer import Tokenizer
from bksdm_jax.shapes.render import PIXELS, render
from bksdm_jax.shapes.scenes import Scene, caption, neighbour, parse_caption
from bksdm_jax.training.train_step import Batch, Frozen, Loss, LossAndTerms

WIDTH = 64
GROUP = 4
"""Pictures of a batch that differ in a single fact; otherwise the colours alone would tell captions apart."""


def clip_config(vocabulary: int) -> CLIPConfig:
    """Two small towers."""
    tower = {"width": WIDTH, "mlp_width": 4 * WIDTH, "layers": 3, "heads": 4}
    text = CLIPTextConfig(vocab_size=vocabulary, **tower)
    return CLIPConfig(text, CLIPVisionConfig(image_size=PIXELS, patch_size=8, **tower), WIDTH)


def contrastive_loss(config: CLIPConfig) -> Loss:
    """Symmetric cross-entropy of the scaled cosines (Radford et al. 2021, figure 3).

    Batches have `images` uint8 [M, H, W, 3], `tokens` int32 [M, T] and their `ends` int32 [M]. T may be short, since
    the text tower is causal and ignores tokens after the end.
    """
    clip = CLIP(config)

    def loss(params: Any, ema: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> LossAndTerms:
        del ema
        logits = clip.apply({"params": params}, batch["tokens"], batch["ends"], to_unit(batch["images"]))
        labels = jnp.arange(len(logits))
        entropy = optax.softmax_cross_entropy_with_integer_labels
        total = (entropy(logits, labels).mean() + entropy(logits.T, labels).mean()) / 2
        hits = jnp.mean((logits.argmax(axis=1) == labels).astype(jnp.float32))
        return total, {"loss": total, "retrieved": hits}

    return loss


def groups(captions: list[str], tokenizer: Tokenizer, seed: int) -> dict[str, np.ndarray]:
    """Each caption and GROUP - 1 of its neighbours, with their pictures.

    Returns:
        `images` uint8 [N, GROUP, H, W, 3], `tokens` int32 [N, GROUP, T] without common padding, and `ends` int32
        [N, GROUP].
    """
    rng = np.random.default_rng([seed, 1])
    scenes: list[Scene] = []
    for text in captions:
        scene = parse_caption(text)
        scenes += [scene, *(neighbour(scene, rng) for _ in range(GROUP - 1))]
    tokens = tokenizer([caption(scene) for scene in scenes])
    ends = tokenizer.ends(tokens)
    arrays = {
        "images": np.stack([render(scene, rng) for scene in scenes]),
        "tokens": tokens[:, : ends.max() + 1],
        "ends": ends,
    }
    return {name: value.reshape(len(captions), GROUP, *value.shape[1:]) for name, value in arrays.items()}


def flattened(batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Batches of groups [M, GROUP, ...] as batches of examples [M * GROUP, ...]."""
    for batch in batches:
        yield {name: value.reshape(-1, *value.shape[2:]) for name, value in batch.items()}
