"""Datasets of cached latents: how examples are stored and read, and what the latents depend on."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import read_json
from bksdm_jax.base.finite import count_non_finite
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.pipelines.pipeline import Pipeline

IDENTITY = "latents.json"
"""The file of such a dataset that records what its latents were made with."""
CENTRE = "centre"
# Captions that tokenizers treat differently.
_PROBE = ["a photo of a cat", "A 3D render, 1920x1080: \u732b & caf\u00e9!", ""]


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
    """A record of a dataset of cached latents; errors name it by `where`."""

    def __init__(self, record: Mapping[str, Any], where: str) -> None:
        self.name: str = record["name"].decode()
        self.texts: list[str] = [text.decode() for text in record["text"]]
        self._tokens, self._moments, self._where = record["tokens"], record["moments"], where

    def caption_inputs(self, caption: int) -> dict[str, np.ndarray]:
        """The pipeline's inputs for one of the captions: token ids int32 [T] under `tokens`."""
        return {"tokens": self._tokens[caption]}

    def moments(self, mirrored: bool, position: float = 0.0) -> np.ndarray:
        """Mean and log-variance for the image or its mirror image: uint16 [2, h, w, C], the bits of bfloat16.

        `position` in [0, 1) chooses among several crops of the image. Raises `InputError` if they aren't finite.
        """
        del position  # there is one crop
        return self._finite(self._moments[int(mirrored)])

    def _finite(self, moments: np.ndarray) -> np.ndarray:
        if count := count_non_finite(moments.view(ml_dtypes.bfloat16)):
            raise InputError(
                f"{self._where} ({shown(self.name)}): {count:,} of {moments.size:,} numbers of its latents aren't "
                "finite; prepare the latents again"
            )
        return moments


@dataclasses.dataclass(frozen=True)
class LatentIdentity:
    """Everything that cached latents depend on.

    Attributes:
        vae_sha256: `Network.weights_sha256` of the autoencoder.
        scaling_factor: the autoencoder's; the stored latents are unscaled.
        resolution: side of the images in pixels.
        crop: `CENTRE`: the centre of the image, its short side resized to `resolution`.
        flip: whether mirrored images were encoded too.
        tokens_sha256: hash of the token ids of a few captions; differs between tokenizers and caption lengths.
    """

    vae_sha256: str
    scaling_factor: float
    resolution: int
    crop: str
    flip: bool
    tokens_sha256: str


def latent_identity(pipeline: Pipeline, resolution: int, flip: bool, crop: str = CENTRE) -> LatentIdentity:
    """The identity of the latents that this pipeline would make."""
    vae = pipeline.networks[pipeline.architectures.kind.autoencoder]
    tokens = hashlib.sha256(np.ascontiguousarray(pipeline.caption_inputs(_PROBE)["tokens"], "<i4").tobytes())
    return LatentIdentity(vae.weights_sha256(), vae.config.scaling_factor, resolution, crop, flip, tokens.hexdigest())


def require_identity(folder: AnyPath, wanted: LatentIdentity) -> None:
    """Raises `InputError` with what differs if a dataset of cached latents doesn't fit a run.

    Latents with mirrored images also fit a run without them; everything else must be equal.
    """
    path = folder / IDENTITY
    found = read_json(path)
    for key, value in dataclasses.asdict(wanted).items():
        if key not in found or (found[key] != value and not (key == "flip" and found[key])):
            raise InputError(
                f"{path}: these latents have {key} {found.get(key)!r}, the run needs {value!r}; "
                "prepare them again for this run, or train from the images"
            )
