"""One pass over images that feeds all extractors."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bksdm_jax.metrics.frechet import Normal
from bksdm_jax.metrics.store import FeatureStore, Need
from bksdm_jax.metrics.sums import FeatureSums

_COMMIT_SECONDS = 60.0
Features = Mapping[Need, np.ndarray | FeatureSums | Normal]
"""By need: rows [N, ...] of what is kept; of the rest sums, or the normal distribution of a file of statistics."""


class Extracts(Protocol):
    """What turns images into features, as `Extractor` does."""

    facts: Mapping[str, Any]

    def __call__(
        self, images: Sequence[np.ndarray], captions: Sequence[str] | None, batch_size: int
    ) -> dict[str, np.ndarray]:
        """See `Extractor.__call__`."""


class Pass:
    """The features of a list of images, of which every extractor sees each once.

    Attributes:
        done: images from the beginning that no extractor needs any more.
        skipped: numbers of those that couldn't be read.
    """

    def __init__(
        self,
        folder: Path,
        needs: Collection[Need],
        extractors: Mapping[str, Callable[[], Extracts]],
        record: Mapping[str, Any],
        batch_size: int,
    ) -> None:
        """Continues what an interrupted pass has left in the folder.

        Args:
            folder: for the features.
            needs: what is gathered.
            extractors: by the names in the needs; each is loaded now.
            record: identifies the images; with another one, or another extractor, features are gathered anew.
            batch_size: images per program call and device.
        """
        self._batch_size, self._since = batch_size, time.monotonic()
        names = sorted({need.extractor for need in needs})
        self._extractors = {name: extractors[name]() for name in names}
        self._stores = {
            name: FeatureStore(
                folder / name,
                [need for need in needs if need.extractor == name],
                {**record, "extractor": dict(self._extractors[name].facts)},
            )
            for name in names
        }

    @property
    def done(self) -> int:  # noqa: D102
        return min(store.done for store in self._stores.values())

    @property
    def skipped(self) -> list[int]:  # noqa: D102
        return max((store.skipped for store in self._stores.values()), key=len)

    def facts(self) -> dict[str, dict[str, Any]]:
        """What scores say of each extractor."""
        return {name: dict(extractor.facts) for name, extractor in self._extractors.items()}

    def add(
        self, first: int, images: Sequence[np.ndarray | None], captions: Sequence[str] | None = None, last: bool = False
    ) -> None:
        """Feeds images that no extractor has seen, or all of them that need these.

        Args:
            first: number of the first one, at most `done`.
            images: uint8 [H, W, 3] each; None: can't be read, and is passed over.
            captions: one per image.
            last: there are no more, so that all is written to disk now; otherwise that happens once a minute.

        Raises:
            InputError: images of a size that an extractor doesn't take.
        """
        for name, store in self._stores.items():
            seen = store.done - first
            if not 0 <= seen < len(images):
                continue
            there = [i for i in range(seen, len(images)) if images[i] is not None]
            missing = [first + i for i in range(seen, len(images)) if images[i] is None]
            features = {}
            if there:
                own = None if captions is None else [captions[i] for i in there]
                features = self._extractors[name]([images[i] for i in there], own, self._batch_size)
            store.add(features, missing)
        if last or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes what was added so far to disk."""
        for store in self._stores.values():
            store.commit()
        self._since = time.monotonic()

    def read(self) -> dict[Need, np.ndarray | FeatureSums]:
        """All features so far."""
        found: dict[Need, np.ndarray | FeatureSums] = {}
        for store in self._stores.values():
            found |= store.read()
        return found
