"""The Frechet distance between two sets of features."""

import dataclasses

import numpy as np
from absl import logging

from bksdm_jax.metrics.bootstrap import GROUPS, Score, bootstrap, jackknife
from bksdm_jax.metrics.sums import FeatureSums

MOST_RESAMPLED = 256
"""Dimensions up to which the interval is a bootstrap's; beyond, a thousand distances take too long."""
_FEWEST_IN_GROUPS = 3  # images, of which two are left without a group


@dataclasses.dataclass(frozen=True)
class Normal:
    """A normal distribution fitted to features, float64.

    Attributes:
        mean: [D].
        covariance: [D, D], unbiased.
        root: its square root.
        images: to which it was fitted; None: unknown.
    """

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray
    images: int | None = None


def fit_normal(sums: FeatureSums) -> Normal:
    """From the sums over at least two features."""
    return make_normal(sums.mean, sums.covariance(), sums.count)


def make_normal(mean: np.ndarray, covariance: np.ndarray, images: int | None = None) -> Normal:
    """From its mean [D] and covariance [D, D]; arguments as the attributes of `Normal`."""
    values, vectors = np.linalg.eigh(covariance)
    return Normal(mean, covariance, (vectors * _roots(values, images)) @ vectors.T, images)


def frechet_distance(sums: FeatureSums, reference: Normal) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two normal distributions (Heusel et al. 2017).

    The trace of the root is the sum of the roots of the eigenvalues of sqrt(S2) S1 sqrt(S2), in float64.

    Args:
        sums: over at least two features, to which the first distribution is fitted.
        reference: the second one.

    Returns:
        at least 0 up to rounding; biased upwards for small N, so compare at equal N only.
    """
    covariance = sums.covariance()
    fewest = sums.count if reference.images is None else min(sums.count, reference.images)
    roots = _roots(np.linalg.eigvalsh(reference.root @ covariance @ reference.root), fewest)
    difference = np.sum((sums.mean - reference.mean) ** 2)
    return float(difference + np.trace(covariance) + np.trace(reference.covariance) - 2 * np.sum(roots))


def frechet_score(found: np.ndarray | FeatureSums, reference: FeatureSums | Normal) -> Score:
    """Frechet distance between features and the reference, with its interval.

    The interval is a bootstrap's up to 256 dimensions, else that of a jackknife, which takes a second pass over the
    features. Warns of N <= D: a covariance without full rank.

    Args:
        found: features [N, D], or sums over them: no interval then.
        reference: sums over its features, or the normal distribution fitted to them.
    """
    normal = fit_normal(reference) if isinstance(reference, FeatureSums) else reference
    summed = isinstance(found, FeatureSums)
    _warn_of_few(found.count if summed else len(found), normal)
    if summed:
        return Score(frechet_distance(found, normal), None, None)
    return (_resampled if len(normal.covariance) <= MOST_RESAMPLED else _in_groups)(found, normal)


def _resampled(features: np.ndarray, normal: Normal) -> Score:
    def distance(chosen: np.ndarray) -> float:
        sums = FeatureSums()
        sums.add(features, chosen)
        return frechet_distance(sums, normal)

    return bootstrap(distance, len(features), centred=True)


def _in_groups(features: np.ndarray, normal: Normal) -> Score:
    """Each group is summed twice, since the sums of all groups wouldn't fit in memory."""

    def group(number: int) -> FeatureSums:
        sums = FeatureSums()
        sums.add(features, np.arange(number, len(features), GROUPS))
        return sums

    groups, total = range(min(GROUPS, len(features))), FeatureSums()
    for number in groups:
        total.merge(group(number))
    value = frechet_distance(total, normal)
    if len(features) < _FEWEST_IN_GROUPS:
        return Score(value, None, None)
    return jackknife(value, [frechet_distance(total.without(group(number)), normal) for number in groups])


def _roots(values: np.ndarray, images: int | None) -> np.ndarray:
    """Square roots of ascending eigenvalues; those that are zero because of few images are exactly zero.

    Rounding would make them about 1e-16 of the largest, and their roots 1e-8 of the largest root.
    """
    roots = np.sqrt(np.clip(values, 0, None))
    if images is not None:
        roots[: max(0, len(roots) - (images - 1))] = 0
    return roots


def _warn_of_few(images: int, normal: Normal) -> None:
    dimensions = len(normal.covariance)
    counts = {"images": images, "reference images": normal.images}
    few = [f"{count} {name}" for name, count in counts.items() if count is not None and count <= dimensions]
    if few:
        logging.warning(
            "Frechet distance: %s for %d dimensions; it is unreliable with so few, more than %d are needed",
            " and ".join(few),
            dimensions,
            dimensions,
        )
