"""Opens images with captions for training."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.paths import AnyPath, read_bytes, to_path
from bksdm_jax.data.decode import fit_square
from bksdm_jax.data.latents import IDENTITY, CachedExample
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.pair_examples import PairExamples, read_pairs
from bksdm_jax.data.tfds_set import INFO, TfdsExamples
from bksdm_jax.shapes.world import ShapesWorld, build


class Example(Protocol):
    """An image and its captions."""

    name: str
    texts: Sequence[str]

    def image(self) -> Image.Image:
        """Upright RGB; raises `InputError` if it can't be read."""


def data_folder(name: str | Path) -> epath.Path:
    """Resolves the name of a dataset to its folder.

    `shapes_world/demo`, `/full` and `/hearts` are generated on first use in TFDS's data folder (`TFDS_DATA_DIR`, by
    default `~/tensorflow_datasets`); any other name is a path of this machine or of a bucket (`gs://`).

    Raises:
        InputError: the dataset can't be written, or the bucket can't be reached.
    """
    prefix, _, config = str(name).partition("/")
    if prefix == ShapesWorld.name and config in ShapesWorld.builder_configs and not Path(name).exists():
        if not is_first():
            barrier("built")  # the first process writes; others find it, or write their own copy on another disk
        folder = build(Path(tfds.core.constants.DATA_DIR), config)
        if is_first():
            barrier("built")
        return epath.Path(folder)
    return to_path(name)


def open_examples(
    folder: AnyPath, split: str = "train", options: SourceOptions | None = None, skip: bool = False
) -> Sequence[Example | CachedExample]:
    """Opens a split of a TFDS dataset in ArrayRecord (with `INFO`), or of any other form that `open_source` knows.

    Args:
        folder: a folder or file.
        split: a form without splits has only `train`.
        options: how images and captions are found; of TFDS datasets, `image` and `text` are used.
        skip: leave out pairs that can't be used, instead of raising an error.

    Raises:
        InputError: there are no such images with captions, or a pair can't be used.
    """
    options = options or SourceOptions()
    if (folder / INFO).is_file():
        _require_usual(folder, options)
        return TfdsExamples(folder, split)
    return read_pairs(folder, options, skip).of_split(split)


def _require_usual(folder: AnyPath, options: SourceOptions) -> None:
    """Raises `InputError` for a setting that a TFDS dataset, which is read as it is, would ignore."""
    same = {"image_column": "image", "text_column": "text"}
    for field in dataclasses.fields(SourceOptions):
        value = getattr(options, field.name)
        if value not in (field.default, same.get(field.name)):
            raise InputError(
                f"{field.name}: {shown(value)}, but {folder} is a TFDS dataset, which is read as it is; "
                "give that setting to launch.prepare, with this dataset as source"
            )


@dataclasses.dataclass(frozen=True)
class First(Sequence[Example | CachedExample]):
    """The first `count` of some examples."""

    examples: Sequence[Example | CachedExample]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example | CachedExample:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.count} examples; there is no example {index}")
        return self.examples[index]


def is_cached(examples: Sequence[Example | CachedExample]) -> bool:
    """Whether these are cached latents."""
    return isinstance(examples, TfdsExamples) and examples.cached


def splits_of(examples: Sequence[Example | CachedExample]) -> tuple[str, ...]:
    """All splits of the dataset that these come from; empty: it has none."""
    return examples.splits if isinstance(examples, (TfdsExamples, PairExamples)) else ()


def facts_of(folder: AnyPath, examples: Sequence[Example | CachedExample]) -> dict[str, int | str]:
    """What identifies a dataset: the number of its examples, and a hash of their names and captions.

    The images of pairs don't belong to it: a damaged one can be replaced while a run is interrupted.
    """
    if isinstance(examples, PairExamples):
        return examples.facts()
    return {"examples": len(examples), "sha256": fingerprint(folder)}


def square_image(
    example: Example, resolution: int, where: tuple[float, float] = (0.5, 0.5), mirror: bool = False
) -> np.ndarray:
    """An example's image by `fit_square`, uint8 [resolution, resolution, 3]; raises `InputError` if it is unusable."""
    image = example.image()
    try:
        return fit_square(image, resolution, where, mirror)
    except ValueError as error:
        raise InputError(f"{example.name}: {error}") from error


def fingerprint(folder: AnyPath) -> str:
    """SHA-256 of a TFDS dataset's own description."""
    contents = (read_bytes(path) for path in (folder / INFO, folder / IDENTITY) if path.is_file())
    return hashlib.sha256(b"".join(contents)).hexdigest()
