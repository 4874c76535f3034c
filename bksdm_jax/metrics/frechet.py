"""The Frechet distance between two sets of features."""

import dataclasses

import numpy as np

from bksdm_jax.metrics.sums import FeatureSums


@dataclasses.dataclass(frozen=True)
class Normal:
    """A normal distribution fitted to features: mean [D], unbiased covariance [D, D] and its square root, float64."""

    mean: np.ndarray
    covariance: np.ndarray
    root: np.ndarray


def fit_normal(sums: FeatureSums) -> Normal:
    """From the sums over at least two features."""
    covariance = sums.covariance()
    values, vectors = np.linalg.eigh(covariance)
    return Normal(sums.mean, covariance, (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)


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
    roots = np.sqrt(np.clip(np.linalg.eigvalsh(reference.root @ covariance @ reference.root), 0, None))
    difference = np.sum((sums.mean - reference.mean) ** 2)
    return float(difference + np.trace(covariance) + np.trace(reference.covariance) - 2 * np.sum(roots))
