"""Examples of a set of cached latents, as they are stored and read."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

IDENTITY = "latents.json"
"""The file beside such a set that says what its latents were made with."""


def latent_features(shape: Sequence[int], max_length: int) -> tfds.features.FeaturesDict:
    """What an example of a set of cached latents has.

    Args:
        shape: of one image's latents, [h, w, C].
        max_length: token ids of a caption.
    """
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "text": tfds.features.Sequence(tfds.features.Text()),
            "tokens": tfds.features.Tensor(shape=(None, max_length), dtype=np.int32),
            # plain and mirrored; mean and log-variance; TFDS stores no bfloat16, so its bits
            "moments": tfds.features.Tensor(
                shape=(None, 2, *shape), dtype=np.uint16, encoding=tfds.features.Encoding.BYTES
            ),
        }
    )


def to_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16, uint16, rounded to nearest."""
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


class CachedExample:
    """One record of a set of cached latents."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.name: str = record["name"].decode()
        self.texts: list[str] = [text.decode() for text in record["text"]]
        self._tokens, self._moments = record["tokens"], record["moments"]

    def caption_inputs(self, caption: int) -> dict[str, np.ndarray]:
        """What the pipeline takes of a caption: token ids int32 [T] under `tokens`."""
        return {"tokens": self._tokens[caption]}

    def moments(self, mirrored: bool) -> np.ndarray:
        """Mean and log-variance of the image, or of its mirror image: uint16 [2, h, w, C], bits of bfloat16."""
        return self._moments[int(mirrored)]
