"""Whether two ways of scoring the same things, such as blocks, rank them alike."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation, in [-1, 1], and the ends of its 95% interval; NaN if all of a list are equal."""

    value: float
    low: float
    high: float


def rank_correlation(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Agreement:
    """Spearman's rank correlation of two scores of the same things.

    The interval is the percentile bootstrap's over these (Efron 1979); resamples of equal values are left out.
    """
    pairs = np.array([first, second], np.float64)
    if not np.ptp(pairs, axis=1).all():
        return Agreement(np.nan, np.nan, np.nan)
    value = float(stats.spearmanr(*pairs).statistic)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        some = pairs[:, generator.integers(0, pairs.shape[1], pairs.shape[1])]
        if np.ptp(some, axis=1).all():
            found.append(stats.spearmanr(*some).statistic)
    low, high = np.percentile(found, (2.5, 97.5)) if found else (np.nan, np.nan)
    return Agreement(value, float(low), float(high))


def agreements(scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Of each two criteria, `FIRST, SECOND`: `value`, `low` and `high`; None where it can't be computed.

    `scores` are of the same blocks, by criterion.
    """
    found = {}
    for first, second in itertools.combinations(scores, 2):
        blocks = sorted(scores[first])  # so that the intervals are the same again
        one = rank_correlation(*([scores[name][block] for block in blocks] for name in (first, second)))
        numbers = dataclasses.asdict(one).items()
        found[f"{first}, {second}"] = {key: value if math.isfinite(value) else None for key, value in numbers}
    return found
