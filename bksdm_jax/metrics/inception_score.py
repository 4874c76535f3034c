"""The Inception score (Salimans et al. 2016), as torch-fidelity computes it."""

import itertools

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics import bootstrap
from bksdm_jax.metrics.bootstrap import SpreadScore

SPLITS = 10
_SEED = 2020
_ROWS = 256  # images whose probabilities are in memory at a time
_RESAMPLES = 250  # of the bootstrap, likewise


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> SpreadScore:
    """exp(mean KL(p(class | image) || p(class))), mean over `splits` parts of the images.

    The interval is a bootstrap over the images of each split, shifted so that the distribution's mean is the value,
    since resampled images score lower.

    Args:
        logits: [N, classes], without the last layer's bias; rows in the order of the files' names, since images are
            assigned to splits by their position.
        splits: number of parts.

    Raises:
        InputError: fewer images than splits.
    """
    count = len(logits)
    if count < splits:
        raise InputError(f"images: {count}; the Inception score needs at least {splits}, one for each of its splits")
    order = np.random.RandomState(_SEED).permutation(count)
    bounds = [split * count // splits for split in range(splits + 1)]
    rng = np.random.default_rng(0)
    parts = (order[first:last] for first, last in itertools.pairwise(bounds))
    scores = np.stack([_split_scores(logits, part, rng) for part in parts])  # [splits, 1 + resamples]
    value, std = float(scores[:, 0].mean()), float(scores[:, 0].std())
    if count < 2 * splits:
        return SpreadScore(value, None, None, std=std)
    replicates = scores[:, 1:].mean(axis=0)
    low, high = bootstrap.percentiles(replicates - replicates.mean() + value)
    how = bootstrap.resampled(f"the images of each of {splits} splits", bootstrap.RESAMPLES, centred=True)
    return SpreadScore(value, low, high, how, std)


def _split_scores(logits: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores of the chosen images, and of resamples of them, [1 + RESAMPLES]."""
    count, found = len(chosen), [_scores(logits, chosen, np.ones((1, len(chosen)), np.uint16))]
    for start in range(0, bootstrap.RESAMPLES, _RESAMPLES):
        times = np.empty((min(_RESAMPLES, bootstrap.RESAMPLES - start), count), np.uint16)
        for row in times:
            row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
        found.append(_scores(logits, chosen, times))
    return np.concatenate(found)


def _scores(logits: np.ndarray, chosen: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Scores of the chosen images, each drawn as many times as a row of `times` [R, images] says, [R].

    The mean divergence is the mean over images of sum(p log p), less sum(q log q) for the mean q of p: both means are
    products with the number of times that each image was drawn.
    """
    from scipy.special import log_softmax, xlogy  # noqa: PLC0415 - takes long, and names of metrics are needed before

    count = len(chosen)
    mean, inner = np.zeros((len(times), logits.shape[1])), np.zeros(len(times))
    for start in range(0, count, _ROWS):
        log_p = log_softmax(logits[chosen[start : start + _ROWS]].astype(np.float64), axis=1)
        p, weights = np.exp(log_p), times[:, start : start + _ROWS] / count
        mean += weights @ p
        inner += weights @ np.sum(p * log_p, axis=1)
    return np.exp(inner - xlogy(mean, mean).sum(axis=1))
