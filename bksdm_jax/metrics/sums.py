"""Running float64 sums over features, for means and Frechet distances."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from bksdm_jax.base.errors import InputError, in_short

_ROWS = 1024  # rows converted to float64 at a time


@dataclasses.dataclass
class FeatureSums:
    """Count, mean [D] and scatter [D, D] of features; the scatter is the sum of outer products about the mean.

    Sums are merged by the pairwise update of Chan, Golub and LeVeque (1979), which avoids the cancellation that raw
    second moments suffer.
    """

    count: int = 0
    mean: np.ndarray | float = 0.0
    scatter: np.ndarray | float = 0.0

    def add(self, features: np.ndarray, chosen: np.ndarray | None = None) -> None:
        """Adds features [N, D], or [N] for D = 1, of any float type; `chosen`: the indices of those to add."""
        chosen = np.arange(len(features)) if chosen is None else chosen
        for start in range(0, len(chosen), _ROWS):
            rows = features[chosen[start : start + _ROWS]].astype(np.float64)
            rows = rows.reshape(len(rows), -1)
            mean = rows.mean(axis=0)
            rows -= mean
            self.merge(FeatureSums(len(rows), mean, rows.T @ rows))

    def merge(self, other: "FeatureSums") -> None:
        """Adds the sums over other images."""
        if other.count == 0:
            return
        count = self.count + other.count
        difference = other.mean - self.mean
        between = np.multiply.outer(difference, difference) * (self.count * other.count / count)
        self.mean = self.mean + difference * (other.count / count)
        self.scatter = self.scatter + other.scatter + between
        self.count = count

    def without(self, other: "FeatureSums") -> "FeatureSums":
        """The sums over the images that aren't in `other`, the sums over some of the images; at least one is left."""
        count = self.count - other.count
        mean = self.mean + (self.mean - other.mean) * (other.count / count)
        difference = other.mean - mean
        between = np.multiply.outer(difference, difference) * (count * other.count / self.count)
        return FeatureSums(count, mean, self.scatter - other.scatter - between)

    def covariance(self) -> np.ndarray:
        """Unbiased covariance [D, D] of at least two features."""
        return self.scatter / (self.count - 1)


def write_sums(path: Path, sums: FeatureSums) -> None:
    """Writes sums as `.npz`."""
    with path.open("wb") as file:
        np.savez(file, count=sums.count, mean=sums.mean, scatter=sums.scatter)


def read_sums(path: Path) -> FeatureSums:
    """Reads what `write_sums` has written; raises `InputError` if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return FeatureSums(int(file["count"]), file["mean"], file["scatter"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({in_short(error)}); delete the folder it is in") from error
