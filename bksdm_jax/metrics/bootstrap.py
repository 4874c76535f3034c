"""A score with its uncertainty."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy.stats

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Score:
    """A value and its 95% interval; None for a single image, which has no spread, and for an undefined (NaN) value."""

    value: float
    low: float | None
    high: float | None


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, centred: bool = False) -> Score:
    """A statistic of `count` images, and the 95% percentile interval of its bootstrap distribution over images.

    Args:
        statistic: maps the indices of images, int [count], to a value.
        count: number of images.
        centred: shift the distribution so that its mean is the statistic's value; for Frechet distances, which are
            larger for resampled images, so that the interval would not contain the value.
    """
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
    return Score(value, float(low + shift), float(high + shift))
