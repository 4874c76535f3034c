"""A score with its uncertainty."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
GROUPS = 20
"""Of images, for jackknives: image i is in group i % 20."""


@dataclasses.dataclass(frozen=True)
class Score:
    """A value and its 95% interval; None for a single image, which has no spread, and for an undefined (NaN) value.

    Attributes:
        value: of the statistic.
        low: lower end of the interval.
        high: upper end of the interval.
        interval: how it was made; empty without one.
    """

    value: float
    low: float | None
    high: float | None
    interval: str = ""


@dataclasses.dataclass(frozen=True)
class SpreadScore(Score):
    """A mean over parts of the images, and the standard deviation over the parts, which torch-fidelity reports too."""

    std: float | None = None


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, centred: bool = False, over: str = "images"
) -> Score:
    """A statistic of `count` images, and the 95% percentile interval of its bootstrap distribution over images.

    Args:
        statistic: maps the indices of images, int [count], to a value.
        count: number of images.
        centred: shift the distribution so that its mean is the statistic's value; for Frechet distances, which are
            larger for resampled images, so that the interval would not contain the value.
        over: what is resampled, in words.
    """
    import scipy.stats  # noqa: PLC0415 - takes a second, and names of metrics are needed before

    indices = np.arange(count)
    value = float(statistic(indices))
    if count < 2 or math.isnan(value):
        return Score(value, None, None)
    result = scipy.stats.bootstrap(
        (indices,),
        lambda resamples, axis: np.array([statistic(chosen) for chosen in resamples]),
        n_resamples=RESAMPLES,
        batch=1,  # one resample in memory at a time
        vectorized=True,  # SciPy's own loop over resamples takes ten times as long
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    shift = value - result.bootstrap_distribution.mean() if centred else 0.0
    low, high = result.confidence_interval
    return Score(value, float(low + shift), float(high + shift), resampled(over, RESAMPLES, centred))


def bootstrap_mean(values: np.ndarray, over: str = "images") -> Score:
    """Mean of one number per image, [N], with its bootstrap interval."""
    return bootstrap(lambda chosen: float(values[chosen].mean(dtype=np.float64)), len(values), over=over)


def resampled(over: str, resamples: int, centred: bool = False) -> str:
    """A bootstrap in words."""
    return f"{'centred ' if centred else ''}bootstrap over {over}, {resamples} resamples"


def jackknife(value: float, replicates: Sequence[float], over: str = "images") -> Score:
    """A statistic with the normal interval of its delete-a-group jackknife.

    Args:
        value: of all images.
        replicates: the statistic without each group of images; groups of equal size, up to one image.
        over: what the groups consist of, in words.
    """
    groups = len(replicates)
    if groups < 2 or math.isnan(value):
        return Score(value, None, None)
    half = 1.96 * math.sqrt((groups - 1) * np.var(replicates))
    return Score(value, value - half, value + half, f"jackknife over {groups} groups of {over}")


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
