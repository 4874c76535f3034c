"""A score with its uncertainty."""

import dataclasses
from collections.abc import Callable

import numpy as np

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
    value = float(statistic(np.arange(count)))
    if count < 2:
        return Score(value, None, None)
    rng = np.random.default_rng(0)
    drawn = np.array([statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)])
    low, high = np.percentile(drawn, [2.5, 97.5]) + (value - drawn.mean() if centred else 0.0)
    return Score(value, float(low), float(high))
