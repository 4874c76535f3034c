"""One pass over images that feeds all extractors."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bksdm_jax.base.errors import InputError
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
        done: images from the beginning that no feature needs any more.
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
            record: identifies the images; a feature of another one, or of another extractor, is gathered anew.
            batch_size: images per program call and device.
        """
        self._batch_size, self._since = batch_size, time.monotonic()
        names = sorted({need.extractor for need in needs})
        self._extractors = {name: extractors[name]() for name in names}
        self._stores: dict[Need, FeatureStore] = {}
        for need in sorted(needs):
            own = folder / need.extractor / (need.feature if need.kept else f"{need.feature}_sums")
            facts = dict(self._extractors[need.extractor].facts)
            self._stores[need] = FeatureStore(own, need.kept, {**record, "extractor": facts})

    @property
    def done(self) -> int:  # noqa: D102
        return min(store.done for store in self._stores.values())

    @property
    def skipped(self) -> list[int]:  # noqa: D102
        return max((store.skipped for store in self._stores.values()), key=len)

    def add(
        self, first: int, images: Sequence[np.ndarray | None], captions: Sequence[str] | None = None, last: bool = False
    ) -> None:
        """Feeds images to the extractors of which a feature still needs them.

        Args:
            first: number of the first one, at most `done`.
            images: uint8 [H, W, 3] each; None: can't be read, and is passed over.
            captions: one per image.
            last: there are no more, so that all is written to disk now; otherwise that happens once a minute.

        Raises:
            InputError: images of a size that an extractor doesn't take, or features that aren't finite.
        """
        for name, extractor in self._extractors.items():
            lacking = {
                need: store.done - first
                for need, store in self._stores.items()
                if need.extractor == name and store.done - first < len(images)
            }
            if not lacking:
                continue
            there = [i for i in range(min(lacking.values()), len(images)) if images[i] is not None]
            features: Mapping[str, np.ndarray] = {}
            if there:
                own = None if captions is None else [captions[i] for i in there]
                features = extractor([images[i] for i in there], own, self._batch_size)
                for need in lacking:
                    finite = np.isfinite(features[need.feature]).reshape(len(there), -1).all(axis=1)
                    if not finite.all():
                        raise _not_finite(need, first + there[finite.argmin()], extractor.facts)
            for need, start in lacking.items():
                rows = [row for row, i in enumerate(there) if i >= start]
                missing = [first + i for i in range(start, len(images)) if images[i] is None]
                self._stores[need].add(features[need.feature][rows[0] :] if rows else np.zeros((0,)), missing)
        if last or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes what was added so far to disk."""
        for store in self._stores.values():
            store.commit()
        self._since = time.monotonic()

    def read(self) -> dict[Need, np.ndarray | FeatureSums]:
        """All features so far."""
        return {need: store.read() for need, store in self._stores.items()}


def _not_finite(need: Need, image: int, facts: Mapping[str, Any]) -> InputError:
    return InputError(
        f"{need.extractor}: {need.feature} of image {image + 1} isn't finite; are the weights {facts.get('weights')} "
        "damaged? If they are whole, use scoring_dtype float32"
    )
