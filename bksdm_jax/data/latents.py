"""The identity of cached latents: autoencoder, tokenizer and image transform."""

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
# Captions that tokenizers treat differently.
_PROBE = ["a photo of a cat", "A 3D render, 1920x1080: \u732b & caf\u00e9!", ""]


@dataclasses.dataclass(frozen=True)
class LatentIdentity:
    """Everything that cached latents depend on.

    Attributes:
        vae_sha256: `weights_sha256` of the autoencoder.
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
    return LatentIdentity(weights_sha256(vae), vae.config.scaling_factor, resolution, crop, flip, tokens.hexdigest())


def weights_sha256(network: Network) -> str:
    """SHA-256 of a network's parameters as float32, in the order of their names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(network.params).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf, "<f4"))
    return digest.hexdigest()


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
