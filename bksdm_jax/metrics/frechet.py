"""The Frechet distance between two sets of features."""

import numpy as np


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the normal distributions fitted to two sets (Heusel et al. 2017).

    The trace of the root is the sum of the roots of the eigenvalues of sqrt(S1) S2 sqrt(S1), in float64.

    Args:
        ours: features [N, D].
        theirs: features [M, D].

    Returns:
        at least 0, but for rounding; the fewer images, the larger: compare at equal N only.
    """
    (mean1, cov1), (mean2, cov2) = moments(ours), moments(theirs)
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = np.clip(np.linalg.eigvalsh(root @ cov2 @ root), 0, None)
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.sum(np.sqrt(product)))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D], float64."""
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))
