"""Writes a chunk: a shard (file of examples) for each split, and a record with counts and rejects."""

import heapq
import io
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import write_json
from bksdm_jax.data.decode import background_colour, open_image, require_shape, to_rgb
from bksdm_jax.data.forms.pairs import SPLITS, Chunk, Pair, Reject, printable, share
from bksdm_jax.data.prepare.config import ShardOptions

TRAIN, VALIDATION = "train", "validation"
SHOWN = 48
"""Images on the contact sheet."""
_KEPT = ("JPEG", "MPO", "PNG", "WEBP")  # formats stored unchanged
_QUALITY = 95  # of JPEG files written for downscaled images
_MOST_REASON = 300  # letters


def pair_features() -> tfds.features.FeaturesDict:
    """The features of an example: its name, the image file, one or more captions."""
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "text": tfds.features.Sequence(tfds.features.Text()),
        }
    )


def shard_path(folder: Path, index: int, split: str) -> Path:
    """The file of a chunk's examples of a split."""
    return folder / f"{index:06d}.{split}.array_record"


def record_path(folder: Path, index: int) -> Path:
    """The record of a chunk; it is written last, so a chunk with a record is complete."""
    return folder / f"{index:06d}.json"


def write_shard(folder: Path, index: int, chunk: Chunk, config: ShardOptions, splits: bool = False) -> dict[str, Any]:
    """Reads a chunk, and writes its shards and its record; raises `InputError` if either fails.

    With `splits` the pairs say which split they are of.
    """
    features, tally = pair_features(), Tally()
    with ShardWriters(folder, index) as writers:
        for pair in chunk.read(folder):
            try:
                if isinstance(pair, Reject):
                    raise ValueError(pair.reason)
                data, size = storable(pair.image.read(), config)
            except InputError:
                raise
            except ValueError as error:
                tally.reject(pair.name, str(error))
                continue
            by_hash = VALIDATION if share(pair.name) < config.validation else TRAIN
            split = pair.split if splits else by_hash  # copies stay together
            for copy in range(pair.times):
                name = f"{pair.name}#{copy + 1}" if copy else pair.name
                row = features.serialize_example({"name": name, "image": data, "text": list(pair.texts)})
                tally.accept(pair, split, size, len(row), writers.write(split, row))
    record = tally.to_json()
    write_json(record_path(folder, index), record)
    return record


class ShardWriters:
    """Writes the shards of one chunk, which get their names only when complete; use as a context manager."""

    def __init__(self, folder: Path, index: int, splits: Sequence[str] = SPLITS) -> None:
        self._folder = folder
        self._paths = {split: shard_path(folder, index, split) for split in splits}
        self._open: dict[str, ArrayRecordWriter] = {}
        self._counts: Counter[str] = Counter()
        self._dropped = False

    def __enter__(self) -> "ShardWriters":
        return self

    def write(self, split: str, row: bytes) -> int:
        """Adds an example to a split; returns its position."""
        try:
            if split not in self._open:
                self._open[split] = ArrayRecordWriter(str(_partial(self._paths[split])), "group_size:1")
            self._open[split].write(row)
        except Exception as error:  # ArrayRecord raises types of its own
            raise _failed(self._paths[split], error) from error
        self._counts[split] += 1
        return self._counts[split] - 1

    def drop(self) -> None:
        """Discards what was written."""
        self._dropped = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed: InputError | None = None
        for split, writer in self._open.items():
            try:
                writer.close()
            except Exception as error:
                failed = failed or _failed(self._paths[split], error)
        try:
            if failed is None and kind is None and not self._dropped:
                for split in self._open:
                    try:
                        _partial(self._paths[split]).replace(self._paths[split])
                    except OSError as error:
                        raise _failed(self._paths[split], error) from error
        finally:
            for split in self._open:
                _partial(self._paths[split]).unlink(missing_ok=True)
        if failed is not None and kind is None:
            raise failed


def _failed(path: Path, error: Exception) -> InputError:
    reason = in_short(error).partition(";")[0]  # ArrayRecord goes on with the temporary name
    return InputError(f"{path}: can't be written ({reason}); free some space on its disk and run the command again")


def _partial(path: Path) -> Path:
    # By process, in case an earlier worker is still writing.
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


class Tally:
    """Statistics of a chunk; only the list of rejects grows with it."""

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {split: [0, 0] for split in SPLITS}  # examples, bytes
        self._rejects: list[tuple[str, str]] = []
        self._sides: Counter[int] = Counter()
        self._letters: Counter[int] = Counter()
        self._captions = 0
        self._shown: list[tuple[float, str, int]] = []

    def reject(self, name: str, reason: str) -> None:
        """Counts a pair that can't be used."""
        self._rejects.append((printable(name), printable(reason[:_MOST_REASON])))

    def accept(self, pair: Pair, split: str, size: tuple[int, int], count: int, position: int) -> None:
        """Counts an example of `count` bytes at `position` in its split's shard."""
        self._counts[split][0] += 1
        self._counts[split][1] += count
        self._sides[bucket(min(size))] += 1
        self._captions += len(pair.texts)
        for text in pair.texts:
            self._letters[bucket(len(text))] += 1
        heapq.heappush(self._shown, (-share(f"shown {pair.name}"), split, position))
        if len(self._shown) > SHOWN:
            heapq.heappop(self._shown)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "splits": self._counts,
            "rejects": self._rejects,
            "captions": self._captions,
            "short_side": {str(least): count for least, count in sorted(self._sides.items())},
            "caption_letters": {str(least): count for least, count in sorted(self._letters.items())},
            "shown": [(-order, split, position) for order, split, position in self._shown],
        }


def bucket(number: int) -> int:
    """The power of two at or below a positive number."""
    return 2 ** int(math.log2(max(number, 1)))


def storable(data: bytes, config: ShardOptions) -> tuple[bytes, tuple[int, int]]:
    """The image file to store, and the width and height in which it is shown.

    JPEG, PNG and WebP files in 8-bit RGB are stored unchanged, with their EXIF orientation, which `to_rgb` applies;
    downscaled images become upright JPEG, all others upright lossless PNG. Raises `ValueError` if the image can't be
    used.
    """
    file = open_image(data, config.most_pixels)
    require_shape(file, config.least_side)
    short = min(file.size)
    shrinks = 0 < config.resolution < short
    background = background_colour("config", config.background)
    image = to_rgb(file, background=background)  # decodes it, so that damage is found
    composited = background is not None and file.has_transparency_data
    if file.format in _KEPT and file.mode == "RGB" and not composited and not shrinks:
        return data, image.size
    if shrinks:
        size = tuple(max(1, round(length * config.resolution / short)) for length in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.info = {}  # colour profiles and comments of the former format
    try:
        image.save(buffer, "JPEG" if shrinks else "PNG", quality=_QUALITY)
    except Exception as error:  # Pillow's encoders raise many types
        raise ValueError(f"can't be stored: {in_short(error)}") from error
    return buffer.getvalue(), image.size
