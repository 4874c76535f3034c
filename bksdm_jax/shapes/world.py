"""The shapes world as a TFDS dataset: pictures and captions in ArrayRecord files."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from bksdm_jax.base.errors import InputError, in_short, one_of
from bksdm_jax.shapes import hearts
from bksdm_jax.shapes.render import PIXELS, render
from bksdm_jax.shapes.scenes import caption, draw_scene

TWO_OBJECTS = 0.4
"""Share of the scenes that have two objects."""


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
    """The number of examples per split, and whether they are of `hearts.example` rather than `example`."""

    train: int = 0
    heldout: int = 0
    hearts: bool = False


class ShapesWorld(tfds.core.GeneratorBasedBuilder):
    """64x64 pictures of coloured shapes with captions; `heldout` has combinations that aren't in `train`.

    Example i depends only on the split and i, so a larger dataset begins with the smaller one.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        ShapesConfig(name="demo", description="for the demo", train=4_000, heldout=512),
        ShapesConfig(name="full", description="for the teacher", train=20_000, heldout=1_000),
        ShapesConfig(name="hearts", description="an object new to the teacher", train=5, heldout=10, hearts=True),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(PIXELS, PIXELS, 3), encoding_format="png"),
            "text": tfds.features.Text(),
        }
        description = "One or two coloured shapes on a plain background, with a caption that states every fact."
        return self.dataset_info_from_configs(description=description, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        counts = {"train": self.builder_config.train, "heldout": self.builder_config.heldout}
        return {split: self._generate_examples(split, count) for split, count in counts.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            picture, text = (hearts.example if self.builder_config.hearts else example)(split, index)
            file = io.BytesIO()  # TFDS would start a TensorFlow session per picture to encode it
            Image.fromarray(picture).save(file, format="PNG")
            file.seek(0)
            yield index, {"image": file, "text": text}


def example(split: str, index: int) -> tuple[np.ndarray, str]:
    """Picture uint8 [64, 64, 3] and caption of example `index` of `train` or `heldout`."""
    rng = np.random.default_rng([{"train": 0, "heldout": 1}[split], index])
    scene = draw_scene(rng, 1 + int(rng.random() < TWO_OBJECTS), split == "heldout")
    return render(scene, rng), caption(scene)


def build(folder: Path, name: str) -> Path:
    """Writes the dataset `name` below `folder` unless it exists, and returns its own folder.

    Raises `InputError` if the name is unknown, or the folder can't be written.
    """
    if name not in ShapesWorld.builder_configs:
        raise one_of("dataset", name, ShapesWorld.builder_configs)
    try:
        builder = ShapesWorld(data_dir=folder, config=name, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # TFDS and ArrayRecord raise many types
        raise InputError(f"{folder}: can't write the shapes world ({in_short(error)})") from error
    return Path(builder.data_dir)
