"""Cached latents: what the autoencoder makes of images, stored once, so that training never runs its encoder."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from bksdm_jax import trees
from bksdm_jax.errors import InputError
from bksdm_jax.files import read_json
from bksdm_jax.weights.pipeline import Network
from bksdm_jax.weights.tokenizer import Tokenizer

IDENTITY = "latents.json"
"""The file beside a set of cached latents that says what they were made with."""
CENTRE = "centre"
_PROBE = ["a photo of a cat", "A 3D render, 1920x1080: \u732b & caf\u00e9!", ""]  # captions that tell tokenizers apart


@dataclasses.dataclass(frozen=True)
class LatentIdentity:
    """What cached latents depend on.

    Attributes:
        vae_sha256: of the autoencoder's weights, `weights_sha256`.
        scaling_factor: its, for which the latents are unscaled.
        resolution: pixels of the images.
        crop: `CENTRE`, the middle of the image after its short side was brought to the resolution.
        flip: whether the mirrored image was encoded too.
        tokens_sha256: of the token ids of some captions: tells tokenizers, and their lengths, apart.
    """

    vae_sha256: str
    scaling_factor: float
    resolution: int
    crop: str
    flip: bool
    tokens_sha256: str


def latent_identity(
    vae: Network, tokenizer: Tokenizer, resolution: int, flip: bool, crop: str = CENTRE
) -> LatentIdentity:
    """The identity of latents that this autoencoder would make now."""
    tokens = hashlib.sha256(np.ascontiguousarray(tokenizer(_PROBE), "<i4").tobytes()).hexdigest()
    return LatentIdentity(weights_sha256(vae), vae.config.scaling_factor, resolution, crop, flip, tokens)


def weights_sha256(network: Network) -> str:
    """SHA-256 over a network's parameters, as float32, in the order of their names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(network.params).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf, "<f4"))
    return digest.hexdigest()


def require_identity(folder: Path, wanted: LatentIdentity) -> None:
    """Holds a set of cached latents to what a run needs.

    A cache with mirrored images serves a run without them; all else must be the same.

    Raises:
        InputError: an item differs; it is named.
    """
    path = folder / IDENTITY
    found = read_json(path)
    for key, value in dataclasses.asdict(wanted).items():
        if key not in found or (found[key] != value and not (key == "flip" and found[key])):
            raise InputError(
                f"{path}: these latents have {key} {found.get(key)!r}, the run needs {value!r}; "
                "prepare them anew, or train from the images"
            )


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

    def tokens(self, caption: int) -> np.ndarray:
        """Token ids of a caption, int32 [T]."""
        return self._tokens[caption]

    def moments(self, mirrored: bool) -> np.ndarray:
        """Mean and log-variance of the image, or of its mirror image: uint16 [2, h, w, C], bits of bfloat16."""
        return self._moments[int(mirrored)]
