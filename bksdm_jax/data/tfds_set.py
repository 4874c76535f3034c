"""TFDS datasets with `image` and `text`, or with cached latents, as examples."""

import resource
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from bksdm_jax.base.errors import InputError, in_short, one_of
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.decode import open_image, to_rgb
from bksdm_jax.data.latents import CachedExample

INFO = "dataset_info.json"
"""The file that marks a folder as a TFDS dataset."""


def open_set(folder: AnyPath) -> tfds.core.DatasetBuilder:
    """Opens a TFDS dataset by its folder with `INFO`; raises `InputError` if it can't be opened."""
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises whatever its parsers do
        raise InputError(f"{folder}: TFDS can't open this dataset ({in_short(error)})") from error


class TfdsExamples(Sequence["TfdsExample | CachedExample"]):
    """A split of a TFDS dataset with `image` and `text`, or with cached latents (`cached`), read record by record."""

    def __init__(self, folder: AnyPath, split: str) -> None:
        builder = open_set(folder)
        if split not in builder.info.splits:
            raise one_of("split", split, builder.info.splits)
        self.splits = tuple(builder.info.splits)
        self.cached = "moments" in builder.info.features
        if not self.cached:
            _require_pairs(folder, builder.info.features)
        # Keep the encoded bytes: Pillow decodes them in half the time that TFDS takes.
        decoders = None if self.cached else {"image": tfds.decode.SkipDecoding()}
        _allow_open(len(builder.info.splits[split].filepaths))
        try:
            self._records: Sequence[Any] = builder.as_data_source(split=split, decoders=decoders)
        except Exception as error:
            reason = f"no random access ({in_short(error)}); write the dataset as array_record"
            raise InputError(f"{folder}: {reason}") from error
        if not len(self._records):
            raise InputError(f"{folder}: split {split!r} is empty")
        self._where = f"{folder}: split {split!r}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> "TfdsExample | CachedExample":
        if not 0 <= index < len(self):
            raise IndexError(f"{self._where} has {len(self)} examples; there is no example {index}")
        try:
            record = self._records[index]
            return (CachedExample if self.cached else TfdsExample)(record, f"{self._where}: example {index}")
        except Exception as error:  # ArrayRecord and the decoders raise many types
            raise InputError(f"{self._where}: example {index} can't be read ({in_short(error)})") from error


def _allow_open(files: int) -> None:
    """Raises the limit of open files: ArrayRecord keeps open every file it has read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _require_pairs(folder: AnyPath, features: tfds.features.FeaturesDict) -> None:
    missing = {"image", "text"} - set(features)
    if missing:
        found = ", ".join(features)
        raise InputError(f"{folder}: no feature {min(missing)!r}; this dataset has {found}")
    image, text = features["image"], features["text"]
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise InputError(f"{folder}: image is {image}; expected 8-bit images with 1 or 3 channels")
    several = isinstance(text, tfds.features.Sequence) and isinstance(text.feature, tfds.features.Text)
    if not several and not isinstance(text, tfds.features.Text):
        raise InputError(f"{folder}: text is {text}; expected captions")


class TfdsExample:
    """One record; errors name it by `where`."""

    def __init__(self, record: dict[str, Any], where: str) -> None:
        texts = record["text"] if isinstance(record["text"], list) else [record["text"]]
        self.texts = [text.decode() for text in texts]
        self.name = record["name"].decode() if "name" in record else where
        self._data: bytes = record["image"]
        self._where = where

    def image(self) -> Image.Image:
        """As `Example.image`."""
        try:
            return to_rgb(open_image(self._data))
        except ValueError as error:
            raise InputError(f"{self._where} can't be read ({error})") from error
