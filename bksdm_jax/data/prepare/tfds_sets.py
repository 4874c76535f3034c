"""A TFDS dataset with images and captions as a source, read file by file."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from bksdm_jax.base.errors import InputError, in_short, nearest, one_of
from bksdm_jax.data.prepare.pairs import Chunk, Pair, Reject, checked_texts
from bksdm_jax.data.sources import INFO, open_set


@dataclasses.dataclass(frozen=True)
class TfdsChunk:
    """A file of a split and its number of examples. One without a `name` is named by file and position."""

    folder: epath.Path
    path: epath.Path
    examples: int
    columns: tuple[str, str]

    def read(self) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
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
                    yield Pair(name, example[image], checked_texts(_texts(example, text)))
                except Exception as error:  # whatever TFDS's parsers raise
                    yield Reject(name, in_short(error))
        except Exception as error:  # ArrayRecord and TensorFlow raise types of their own
            damage = in_short(error)
        for index in range(count, self.examples):
            yield Reject(f"{self.path.name}/{index}", f"damaged file ({damage})")


class TfdsSource:
    """A split of a dataset; each file is a chunk."""

    unit = "pairs"

    def __init__(self, folder: epath.Path, split: str, columns: tuple[str, str]) -> None:
        """Opens the dataset; `columns` are the features of image and caption (`captions/text` names a nested one).

        Raises `InputError` if the split or a feature doesn't exist, or the dataset can't be opened.
        """
        info = open_set(folder).info
        if split not in info.splits:
            raise one_of("split", split, info.splits)
        for column in columns:
            inner: Any = info.features
            for name in column.split("/"):
                inner = inner.feature if isinstance(inner, tfds.features.Sequence) else inner
                if not isinstance(inner, tfds.features.FeaturesDict) or name not in inner:
                    found = ", ".join(info.features)
                    raise InputError(f"{folder}: no feature {column!r}{nearest(column, info.features)}; it has {found}")
                inner = inner[name]
        image = dict(info.features).get(columns[0])
        if not isinstance(image, tfds.features.Image) or image.np_dtype not in (np.uint8, np.uint16):
            raise InputError(f"{folder}: {columns[0]} is {image}; expected an 8-bit or 16-bit image")
        self.total = info.splits[split].num_examples
        files = zip(map(epath.Path, info.splits[split].filepaths), info.splits[split].shard_lengths, strict=True)
        self._chunks = [TfdsChunk(folder, path, examples, columns) for path, examples in files]
        self.fingerprint = hashlib.sha256((folder / INFO).read_bytes()).hexdigest()

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        return iter(self._chunks)


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
