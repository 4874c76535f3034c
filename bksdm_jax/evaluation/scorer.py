"""The scores of one list of images, fed batch by batch."""

import dataclasses
import functools
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError, NotFiniteError
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.evaluation.reference import gather_reference
from bksdm_jax.metrics.config import FEWEST, MetricsConfig, require_metrics
from bksdm_jax.metrics.extractors import EXTRACTORS
from bksdm_jax.metrics.gather import Pass
from bksdm_jax.metrics.table import METRICS, Evidence, image_needs, reference_needs, require_enough


class Scorer:
    """Gathers features of images in a folder, and scores them; `restart` comes before the other methods.

    Attributes:
        done: images from the beginning that needn't be fed again.
        skipped: numbers of those that couldn't be read.
        facts: `extractors`, `reference`, `versions`, for `scores.json`.
    """

    def __init__(self, config: MetricsConfig) -> None:
        """Loads the networks and the reference.

        Raises `InputError` if a setting, a file of weights or the reference can't be used.
        """
        require_metrics(config, tuple(METRICS))
        self._config = config
        load = {name: functools.cache(functools.partial(build, config)) for name, build in EXTRACTORS.items()}
        needs = image_needs(config.metrics, config.intervals)
        theirs = reference_needs(config.metrics)
        for name in sorted({need.extractor for need in (*needs, *theirs)}):
            with waiting(f"reading the network {name}", QUIET):
                load[name]()  # wrong weights are refused before anything slow
        self._reference = gather_reference(config, theirs, load)
        images = self._reference and self._reference.facts["images"]
        if images is not None:
            require_enough(config, images, f"reference: {config.reference}", reference=True)
        self._load, self._needs = load, needs
        self.facts = {
            "extractors": {name: dict(load[name]().facts) for name in sorted({need.extractor for need in needs})},
            "reference": self._reference and dict(self._reference.facts),
            "versions": versions(),
        }

    @property
    def done(self) -> int:  # noqa: D102
        return self._pass.done

    @property
    def skipped(self) -> list[int]:  # noqa: D102
        return self._pass.skipped

    def restart(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Scores these images from here on.

        Args:
            folder: for the features; an interrupted pass over the same images continues. No other program may use it.
            record: identifies the images.

        Raises:
            InputError: files in the folder are damaged.
        """
        self._pass = Pass(folder, self._needs, self._load, record, self._config.scoring_batch_size)

    def add(
        self, first: int, images: Sequence[np.ndarray | None], captions: Sequence[str] | None, last: bool = False
    ) -> None:
        """Feeds the images from number `first` on; see `Pass.add`."""
        self._pass.add(first, images, captions, last)

    def scores(self, subjects: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
        """The scores of all images so far by name: `value`, `low`, `high`, `interval` and what a metric adds.

        `subjects` are of the images that could be read, in their order. Raises `InputError` if there are too few
        images, or a score isn't finite.
        """
        count = self._pass.done - len(self._pass.skipped)
        if count < FEWEST:
            raise InputError(f"images: {count}; scores need at least {FEWEST}")
        reference = self._reference
        evidence = Evidence(
            self._pass.read(),
            reference.features if reference else {},
            subjects,
            reference.subjects if reference else None,
            self._config.kid_subset_size,
        )
        found: dict[str, dict[str, Any]] = {}
        for name in self._config.metrics:
            with waiting(f"computing {name}", QUIET):
                scores = METRICS[name].scores(evidence)
            found |= {key: dataclasses.asdict(score) for key, score in scores.items()}
        _require_finite(found)
        return found


def _require_finite(found: Mapping[str, Any], name: str = "") -> None:
    """Raises `NotFiniteError`, with its name, for a number in nested scores that isn't finite."""
    for key, value in found.items():
        inner = f"{name}: {key}" if name else key
        if isinstance(value, Mapping):
            _require_finite(value, inner)
        elif isinstance(value, float) and not math.isfinite(value):
            raise NotFiniteError(
                f"{inner} is {value}, so no scores are written; leave this metric out, or score more images"
            )


def versions() -> dict[str, str]:
    """Of everything that scores depend on."""
    packages = ("bksdm_jax", "jax", "numpy", "scipy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
