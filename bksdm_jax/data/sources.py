"""Images with captions, wherever they lie: a folder of files, or a TFDS set."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from bksdm_jax.data.image_folder import fit_square, read_image_folder
from bksdm_jax.errors import InputError, one_of
from bksdm_jax.shapes.world import ShapesWorld, build

_INFO = "dataset_info.json"  # what makes a folder a TFDS set


class Example(Protocol):
    """An image and its caption."""

    text: str

    def load(self, resolution: int) -> np.ndarray:
        """The image, its short side scaled and its middle cropped: uint8 [resolution, resolution, 3]."""


def data_folder(name: str | Path) -> Path:
    """The folder that a name of data stands for.

    `shapes_world/demo` and `shapes_world/full` are written, unless they are there, where TFDS keeps its sets
    (`TFDS_DATA_DIR`, by default `~/tensorflow_datasets`); every other name is a folder's own.

    Raises:
        InputError: the set can't be written there.
    """
    prefix, _, config = str(name).partition("/")
    if prefix == ShapesWorld.name and config in ShapesWorld.builder_configs and not Path(name).exists():
        return build(Path(tfds.core.constants.DATA_DIR), config)
    return Path(name).expanduser().resolve()


def open_examples(folder: Path, split: str = "train") -> Sequence[Example]:
    """The examples of an image folder (`metadata.csv`), or of a split of a TFDS set written as ArrayRecord.

    Args:
        folder: the image folder, or the one that holds the set's `dataset_info.json`.
        split: of the TFDS set.

    Raises:
        InputError: neither is there, or it can't be read.
    """
    if (folder / _INFO).is_file():
        return TfdsExamples(folder, split)
    inner = next((found.parent for depth in ("*", "*/*") for found in sorted(folder.glob(f"{depth}/{_INFO}"))), None)
    if inner is not None and not (folder / "metadata.csv").exists():
        raise InputError(f"{folder}: a TFDS set is named by the folder of its version, here {inner}")
    return read_image_folder(folder)


def fingerprint(folder: Path) -> str:
    """SHA-256 that tells one set of examples from another: of the table, or of what the TFDS set says of itself."""
    name = _INFO if (folder / _INFO).is_file() else "metadata.csv"
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


class TfdsExamples(Sequence[Example]):
    """A split of a TFDS set with `image` and `text`, read record by record."""

    def __init__(self, folder: Path, split: str) -> None:
        try:
            builder = tfds.builder_from_directory(folder)
        except Exception as error:  # TFDS raises whatever its parsers do
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: TFDS can't open this set ({reason})") from error
        if split not in builder.info.splits:
            raise one_of("split", split, builder.info.splits)
        missing = {"image", "text"} - set(builder.info.features)
        if missing:
            found = ", ".join(builder.info.features)
            raise InputError(f"{folder}: no feature {min(missing)!r}; this set has {found}")
        image, text = builder.info.features["image"], builder.info.features["text"]
        if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
            raise InputError(f"{folder}: image is {image}; expected 8-bit pictures with 1 or 3 channels")
        if not isinstance(text, tfds.features.Text):
            raise InputError(f"{folder}: text is {text}; expected one caption")
        try:
            self._records: Sequence[Any] = builder.as_data_source(split=split)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: not readable by random access ({reason}); write it as array_record") from error
        if not len(self._records):
            raise InputError(f"{folder}: split {split!r} is empty")
        self._place = f"{folder}: split {split!r}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> "TfdsExample":
        try:
            return TfdsExample(self._records[index])
        except Exception as error:  # ArrayRecord and the decoders raise many types
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self._place}: example {index} can't be read ({reason})") from error


class TfdsExample:
    """One record."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.text: str = record["text"].decode()
        self._image: np.ndarray = record["image"]

    def load(self, resolution: int) -> np.ndarray:
        """As `Example.load`."""
        grey = self._image.shape[-1] == 1
        image = Image.fromarray(self._image[..., 0] if grey else self._image)
        return fit_square(image.convert("RGB"), resolution)
