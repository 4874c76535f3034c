"""What cached latents depend on: the autoencoder, the tokenizer and the transform that they were made with."""

import dataclasses
import hashlib

import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.cached import IDENTITY
from bksdm_jax.pipelines.pipeline import Network, Pipeline

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


def latent_identity(pipeline: Pipeline, resolution: int, flip: bool, crop: str = CENTRE) -> LatentIdentity:
    """The identity of latents that this pipeline's autoencoder would make now."""
    vae = pipeline.networks["vae"]
    tokens = hashlib.sha256(np.ascontiguousarray(pipeline.caption_inputs(_PROBE)["tokens"], "<i4").tobytes())
    return LatentIdentity(weights_sha256(vae), vae.config.scaling_factor, resolution, crop, flip, tokens.hexdigest())


def weights_sha256(network: Network) -> str:
    """SHA-256 over a network's parameters, as float32, in the order of their names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(network.params).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf, "<f4"))
    return digest.hexdigest()


def require_identity(folder: AnyPath, wanted: LatentIdentity) -> None:
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
