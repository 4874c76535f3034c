"""Examples of a dataset of cached latents: how they are stored and read."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

IDENTITY = "latents.json"
"""The file of such a dataset that records what its latents were made with."""


def latent_features(shape: Sequence[int], max_length: int) -> tfds.features.FeaturesDict:
    """The features of an example: latents of `shape` [h, w, C], captions of `max_length` token ids."""
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "text": tfds.features.Sequence(tfds.features.Text()),
            "tokens": tfds.features.Tensor(shape=(None, max_length), dtype=np.int32),
            # as is, mirrored; mean, log-variance; as bits, since TFDS can't store bfloat16
            "moments": tfds.features.Tensor(
                shape=(None, 2, *shape), dtype=np.uint16, encoding=tfds.features.Encoding.BYTES
            ),
        }
    )


def to_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16, uint16, rounded to nearest."""
    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


class CachedExample:
    """A record of a dataset of cached latents."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.name: str = record["name"].decode()
        self.texts: list[str] = [text.decode() for text in record["text"]]
        self._tokens, self._moments = record["tokens"], record["moments"]

    def caption_inputs(self, caption: int) -> dict[str, np.ndarray]:
        """The pipeline's inputs for one of the captions: token ids int32 [T] under `tokens`."""
        return {"tokens": self._tokens[caption]}

    def moments(self, mirrored: bool) -> np.ndarray:
        """Mean and log-variance for the image or its mirror image: uint16 [2, h, w, C], the bits of bfloat16."""
        return self._moments[int(mirrored)]
