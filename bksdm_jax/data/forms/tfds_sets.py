"""A TFDS dataset with images and captions as a source, read file by file."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from bksdm_jax.base.errors import InputError, in_short, nearest, one_of
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.forms.pairs import SPLIT_NAMES, Chunk, Pair, Reject, StoredBytes, captions, in_order
from bksdm_jax.data.tfds_set import INFO, open_set


@dataclasses.dataclass(frozen=True)
class TfdsChunk:
    """A file of a split and its number of examples. One without a `name` is named by file and position."""

    folder: AnyPath
    path: epath.Path
    examples: int
    columns: tuple[str, str]
    caption: str
    split: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
        del scratch
        features = open_set(self.folder).info.features
        image, text = self.columns
        decoders = {image: tfds.decode.SkipDecoding()}
        count, damage = 0, "it ends early"
        try:
            for record in _records(self.path):
                name = f"{self.path.name}/{count}"
                count += 1
                try:
                    example = features.deserialize_example_np(record, decoders=decoders)
                    name = example["name"].decode() if isinstance(example.get("name"), bytes) else name
                    texts = captions(_texts(example, text), self.caption)
                    yield Pair(name, StoredBytes(example[image], name), texts, self.split)
                except Exception as error:  # whatever TFDS's parsers raise
                    yield Reject(name, in_short(error))
        except Exception as error:  # ArrayRecord and TensorFlow raise types of their own
            damage = in_short(error)
        for index in range(count, self.examples):
            yield Reject(f"{self.path.name}/{index}", f"damaged file ({damage})")


class TfdsSource:
    """Splits of a dataset; each file is a chunk."""

    unit = "pairs"
    notes: Sequence[str] = ()

    def __init__(self, folder: AnyPath, split: str, columns: tuple[str, str], caption: str) -> None:
        """Opens the dataset.

        Args:
            folder: of the dataset's version.
            split: the one to read, without keeping it as a split; empty: all, kept as splits.
            columns: the features of image and caption (`captions/text` names a nested one).
            caption: of images without one; empty: they are rejected.

        Raises:
            InputError: the split or a feature doesn't exist, or the dataset can't be opened.
        """
        info = open_set(folder).info
        names = {split: ""} if split else _splits(folder, list(info.splits))
        if split and split not in info.splits:
            raise one_of("split", split, info.splits)
        _require_features(folder, info.features, columns)
        self.total = sum(info.splits[name].num_examples for name in names)
        self.splits = in_order(set(names.values()) - {""})
        self._chunks = [
            TfdsChunk(folder, path, examples, columns, caption, kept)
            for name, kept in names.items()
            for path, examples in zip(
                map(epath.Path, info.splits[name].filepaths), info.splits[name].shard_lengths, strict=True
            )
        ]
        self.facts = {"examples": self.total, "sha256": hashlib.sha256((folder / INFO).read_bytes()).hexdigest()}

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        return iter(self._chunks)


def _splits(folder: AnyPath, names: Sequence[str]) -> dict[str, str]:
    """The dataset's splits -> what they are kept as; nothing if there is only one for training."""
    kept = {name: SPLIT_NAMES.get(name, "") for name in names}
    unknown = [name for name, split in kept.items() if not split]
    if unknown or len(set(kept.values())) < len(kept):
        raise InputError(f"{folder}: splits {', '.join(names)}; choose one with --config.split")
    return kept if set(kept.values()) != {"train"} else dict.fromkeys(kept, "")


def _require_features(folder: AnyPath, features: Any, columns: tuple[str, str]) -> None:
    for column, setting in zip(columns, ("image_column", "text_column"), strict=True):
        inner: Any = features
        for name in column.split("/"):
            inner = inner.feature if isinstance(inner, tfds.features.Sequence) else inner
            if not isinstance(inner, tfds.features.FeaturesDict) or name not in inner:
                raise InputError(
                    f"{folder}: no feature {column!r}{nearest(column, features)}; it has {', '.join(features)}; "
                    f"name yours with --config.{setting}"
                )
            inner = inner[name]
    image = dict(features).get(columns[0])
    if not isinstance(image, tfds.features.Image) or image.np_dtype not in (np.uint8, np.uint16):
        raise InputError(f"{folder}: {columns[0]} is {image}; expected an 8-bit or 16-bit image")


def _records(path: epath.Path) -> Iterator[bytes]:
    """The serialized examples of a file."""
    if ".array_record" in path.name:
        with ArrayRecordDataSource([str(path)]) as records:
            yield from (records[index] for index in range(len(records)))
        return
    import tensorflow as tf  # noqa: PLC0415  # takes seconds, and only TFRecord needs it

    if ".tfrecord" not in path.name:
        raise ValueError("expected a file in array_record or tfrecord")
    yield from tf.data.TFRecordDataset(str(path)).as_numpy_iterator()


def _texts(example: dict[str, Any], column: str) -> list[object]:
    value: Any = example
    for name in column.split("/"):
        value = value[name]
    values = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    return [text.decode() if isinstance(text, bytes) else text for text in values]
