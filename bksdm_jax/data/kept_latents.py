"""Latents of a run's images, encoded at its start and kept in memory."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.decode import fit_square
from bksdm_jax.data.encode import make_encode, require_finite_latents
from bksdm_jax.data.latents import CachedExample, to_bits
from bksdm_jax.data.skipping import Skipping
from bksdm_jax.data.sources import Example
from bksdm_jax.pipelines.pipeline import Pipeline

_AT_ONCE = 4  # images per device


@dataclasses.dataclass(frozen=True)
class KeptConfig:
    """What is kept.

    Attributes:
        resolution: side of the images in pixels.
        flip: encode mirrored images too.
        crops: random crops of each image that isn't a square; 1: the one at the centre.
        seed: of the crops.
        dtype: of the autoencoder's computations.
    """

    resolution: int
    flip: bool
    crops: int
    seed: int
    dtype: str


class KeptExample(CachedExample):
    """An example with the latents of some crops of its image."""

    def __init__(self, record: Mapping[str, Any], where: str, crops: Sequence[np.ndarray]) -> None:
        """`crops` are uint16 [views, 2, h, w, C] each, as in `latent_features`; `record` is without them."""
        super().__init__({**record, "moments": crops[0]}, where)
        self._crops = crops

    def moments(self, mirrored: bool, position: float = 0.0) -> np.ndarray:
        """As of `CachedExample`."""
        return self._crops[int(position * len(self._crops))][int(mirrored)]


def keep_latents(examples: Sequence[Example], pipeline: Pipeline, config: KeptConfig, where: str) -> list[KeptExample]:
    """Encodes images with the pipeline's autoencoder, on this process's devices; `where` they are is for errors.

    Of `Skipping` examples, the next usable one takes the place of one that can't be used, as in the loader. Raises
    `InputError` for an image that can't be used, or whose latents aren't finite.
    """
    vae = pipeline.networks[pipeline.architectures.kind.autoencoder]
    most, encode = make_encode(vae, config.dtype, _AT_ONCE, config.flip)
    found: list[list[np.ndarray]] = [[] for _ in examples]
    images = _images(examples, config)
    with exact_products(config.dtype), Progress("encoding images", len(examples)) as progress:
        done = 0
        while chunk := list(itertools.islice(images, most)):
            encoded = to_bits(encode(np.stack([image for _, image in chunk])))
            require_finite_latents([examples[i] for i, _ in chunk], encoded, vae, config.dtype)
            for (i, _), moments in zip(chunk, encoded, strict=True):
                found[i].append(moments)
            progress.advance(chunk[-1][0] - done)
            done = chunk[-1][0]
        progress.advance(len(examples) - done)
    if not any(found):
        raise InputError(f"{where}: none of the {len(examples)} images can be used")
    kept = {i: _kept(examples[i], crops, pipeline, where) for i, crops in enumerate(found) if crops}
    return [kept[next(j % len(found) for j in itertools.count(i) if j % len(found) in kept)] for i in range(len(found))]


def _kept(example: Example, crops: Sequence[np.ndarray], pipeline: Pipeline, where: str) -> KeptExample:
    record = {"name": example.name.encode(), "text": [text.encode() for text in example.texts]}
    return KeptExample(record | pipeline.caption_inputs(example.texts), where, crops)


def _images(examples: Sequence[Example], config: KeptConfig) -> Iterator[tuple[int, np.ndarray]]:
    """The crops of all images, uint8 [H, W, 3], with the number of the example."""
    for index in range(len(examples)):
        try:
            for image in _different(examples[index], index, config):
                yield index, image
        except InputError as error:
            if not isinstance(examples, Skipping):
                raise
            examples.note(examples[index].name, error)


def _different(example: Example, index: int, config: KeptConfig) -> Iterator[np.ndarray]:
    """The crops of an image."""
    image = example.image()
    places = np.random.default_rng([config.seed, index]).random((config.crops, 2))
    if config.crops == 1 or image.width == image.height:
        places = np.full((1, 2), 0.5)
    for x, y in places:
        try:
            yield fit_square(image, config.resolution, (float(x), float(y)))
        except ValueError as error:
            raise InputError(f"{example.name}: {error}") from error
