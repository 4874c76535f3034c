"""The Frechet distance between two sets of features."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Normal:
    """The normal distribution fitted to features: mean [D], unbiased covariance [D, D] and its root, float64."""

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray


def fit_normal(features: np.ndarray) -> Normal:
    """From features [N, D]."""
    mean, covariance = _moments(features)
    values, vectors = np.linalg.eigh(covariance)
    return Normal(mean, covariance, (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


def frechet_distance(features: np.ndarray, reference: Normal) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two normal distributions (Heusel et al. 2017).

    The trace of the root is the sum of the roots of the eigenvalues of sqrt(S2) S1 sqrt(S2), in float64.

    Args:
        features: [N, D], to which the first distribution is fitted.
        reference: the second one.

    Returns:
        at least 0, but for rounding; the fewer features, the larger: compare at equal N only.
    """
    mean, covariance = _moments(features)
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(reference.root @ covariance @ reference.root), 0, None))
    difference = np.sum((mean - reference.mean) ** 2)
    return float(difference + np.trace(covariance) + np.trace(reference.covariance) - 2 * np.sum(roots))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
