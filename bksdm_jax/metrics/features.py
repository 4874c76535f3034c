"""One pass over batches of images, whose features are summed or kept in a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.extractor import Extractor
from bksdm_jax.metrics.sums import FeatureSums

FEWEST = 2
"""Number of images that scores need at least."""
Batch = tuple[np.ndarray, Sequence[str] | None]
"""uint8 images [B, H, W, 3] and their captions, if any."""


class Need(NamedTuple):
    """An extractor's feature: its sums over all images, or (`kept`) its values for each image."""

    extractor: str
    feature: str
    kept: bool = False


class FeatureFile:
    """Features on disk, written batch by batch and read back as a memory-mapped array."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows, self._dtype, self._shape = path, 0, np.dtype(np.float32), ()
        self._path.touch()

    def add(self, features: np.ndarray) -> None:
        """Appends features [N, ...]."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(features).data)
        self._rows, self._dtype, self._shape = self._rows + len(features), features.dtype, features.shape[1:]

    def read(self) -> np.memmap:
        """All features so far, [N, ...]."""
        return np.memmap(self._path, self._dtype, mode="r", shape=(self._rows, *self._shape))


def gather(
    batches: Iterable[Batch],
    receivers: Mapping[Need, FeatureSums | FeatureFile],
    extractors: Mapping[str, Callable[[], Extractor]],
    batch_size: int,
) -> int:
    """Runs the extractors on every batch and adds the features to their receivers.

    Args:
        batches: of any size; one is in memory at a time.
        receivers: by the features that they receive.
        extractors: by name, as `EXTRACTORS`.
        batch_size: images per program call.

    Returns:
        the number of images.

    Raises:
        InputError: fewer than two images, or images of a size that an extractor doesn't take.
    """
    loaded = {name: extractors[name]() for name in sorted({need.extractor for need in receivers})}
    count = 0
    for images, captions in batches:
        for name, extractor in loaded.items():
            features = extractor(images, captions, batch_size)
            for need, receiver in receivers.items():
                if need.extractor == name:
                    receiver.add(features[need.feature])
        count += len(images)
    if count < FEWEST:
        raise InputError(f"images: {count}; scores need at least {FEWEST}")
    return count
