"""A score with its uncertainty."""

import dataclasses
from collections.abc import Callable

import numpy as np

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[np.ndarray], float], count: int, seed: int = 0) -> Score:
    """A statistic of `count` images, and the 95% interval of its bootstrap distribution over images.

    The distribution is moved so that its mean is the statistic's value: a Frechet distance of resampled images is
    larger throughout than that of the images themselves, which would push the interval beside the value.

    Args:
        statistic: of the images with the given indices, int [count].
        count: images.
        seed: of the resampling.
    """
    value = float(statistic(np.arange(count)))
    if count < 2:
        return Score(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)])
    low, high = np.percentile(drawn, [2.5, 97.5]) + value - drawn.mean()
    return Score(value, float(low), float(high))
