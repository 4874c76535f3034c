"""Running float64 sums over features: all that a mean or a Frechet distance needs of a set of images."""

import dataclasses

import numpy as np

_ROWS = 1024  # features that are converted to float64 at once


@dataclasses.dataclass
class FeatureSums:
    """Count, mean [D] and scatter [D, D] of features; the scatter is the sum of outer products about the mean.

    Sums of parts are merged by the pairwise update of Chan, Golub and LeVeque (1979), which doesn't cancel as raw
    second moments do.
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    scatter: np.ndarray | float = 0.0

    def add(self, features: np.ndarray, chosen: np.ndarray | None = None) -> None:
        """Adds features [N, D], or [N] for D = 1, of any float type; `chosen`: only those of these indices."""
        chosen = np.arange(len(features)) if chosen is None else chosen
        for start in range(0, len(chosen), _ROWS):
            rows = features[chosen[start : start + _ROWS]].astype(np.float64)
            rows = rows.reshape(len(rows), -1)
            mean = rows.mean(axis=0)
            rows -= mean
            self.merge(FeatureSums(len(rows), mean, rows.T @ rows))

    def merge(self, other: "FeatureSums") -> None:
        """Adds what another part of the images gave."""
        if other.count == 0:
            return
        count = self.count + other.count
        apart = other.mean - self.mean
        self.mean = self.mean + apart * (other.count / count)
        self.scatter = (
            self.scatter + other.scatter + np.multiply.outer(apart, apart) * (self.count * other.count / count)
        )
        self.count = count

    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D]; needs two images."""
        return self.scatter / (self.count - 1)
