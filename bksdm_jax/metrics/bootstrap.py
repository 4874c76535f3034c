"""A score with its uncertainty."""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.stats

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure and its 95% interval (None, None where a single image leaves no spread)."""

    value: float
    low: float | None
    high: float | None


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, centred: bool = False) -> Score:
    """A statistic of `count` images, and the 95% percentile interval of its bootstrap distribution over images.

    Args:
        statistic: of the images with the given indices, int [count].
        count: images.
        centred: the distribution is moved so that its mean is the statistic's value. For a Frechet distance, which is
            larger throughout for resampled images than for the images themselves: its interval would lie beside it.
    """
    indices = np.arange(count)
    value = float(statistic(indices))
    if count < 2:
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
