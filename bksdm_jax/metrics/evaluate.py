"""Metrics by name, computed in one pass over batches of images."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from bksdm_jax.metrics.bootstrap import Score, bootstrap
from bksdm_jax.metrics.extractor import Extractor
from bksdm_jax.metrics.extractors import EXTRACTORS
from bksdm_jax.metrics.features import Batch, FeatureFile, Need, gather
from bksdm_jax.metrics.frechet import fit_normal, frechet_distance
from bksdm_jax.metrics.sums import FeatureSums


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score and the features that it needs.

    Attributes:
        score: (the images' `FeatureSums` or kept features [N, ...], the reference's sums or None) -> score.
        images: the features needed of the images.
        reference: the sums needed of reference images; None: no reference.
    """

    score: Callable[..., Score]
    images: Need
    reference: Need | None = None


def mean_score(features: np.ndarray, _: None) -> Score:
    """Mean of one number per image, [N], with its interval."""
    return bootstrap(lambda chosen: float(features[chosen].mean(dtype=np.float64)), len(features))


def frechet_score(features: np.ndarray, reference: FeatureSums) -> Score:
    """Frechet distance between features [N, D] and the reference, with its interval."""
    normal = fit_normal(reference)

    def distance(chosen: np.ndarray) -> float:
        sums = FeatureSums()
        sums.add(features, chosen)
        return frechet_distance(sums, normal)

    return bootstrap(distance, len(features), centred=True)


METRICS = {
    "clip_score_shapes": Metric(mean_score, Need("clip_shapes", "clip_cosine", kept=True)),
    "fd_clip_shapes": Metric(
        frechet_score, Need("clip_shapes", "features", kept=True), reference=Need("clip_shapes", "features")
    ),
}
"""By name in `scores.json`."""


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Number of reference images, and the sums over their features that metrics need."""

    images: int
    sums: Mapping[Need, FeatureSums]


def reference_statistics(
    batches: Iterable[Batch],
    batch_size: int = 64,
    metrics: Mapping[str, Metric] = METRICS,
    extractors: Mapping[str, Callable[[], Extractor]] = EXTRACTORS,
) -> ReferenceStatistics:
    """The sums that the metrics need of reference images; arguments and errors as in `evaluate`."""
    sums = {metric.reference: FeatureSums() for metric in metrics.values() if metric.reference}
    return ReferenceStatistics(gather(batches, sums, extractors, batch_size), sums)


def evaluate(
    batches: Iterable[Batch],
    reference: ReferenceStatistics,
    batch_size: int = 64,
    metrics: Mapping[str, Metric] = METRICS,
    extractors: Mapping[str, Callable[[], Extractor]] = EXTRACTORS,
) -> tuple[int, dict[str, Score]]:
    """Scores images, which may come from files or straight from a sampler, in one pass.

    Args:
        batches: of any size; one is in memory at a time.
        reference: for the same metrics and extractors.
        batch_size: images per program call.
        metrics: by name.
        extractors: by the names in the metrics' needs.

    Returns:
        the number of images, and the scores by name.

    Raises:
        InputError: fewer than two images, or images of a size that an extractor doesn't take.
    """
    with tempfile.TemporaryDirectory(prefix="features_") as folder:
        receivers = {
            need: FeatureFile(Path(folder) / "_".join(need[:2])) if need.kept else FeatureSums()
            for need in {metric.images for metric in metrics.values()}
        }
        count = gather(batches, receivers, extractors, batch_size)
        found = {need: receiver.read() if need.kept else receiver for need, receiver in receivers.items()}
        scores = {
            name: metric.score(found[metric.images], reference.sums[metric.reference] if metric.reference else None)
            for name, metric in metrics.items()
        }
    return count, scores
