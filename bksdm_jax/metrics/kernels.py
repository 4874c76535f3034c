"""Distances between sets of features by kernels: KID and CMMD."""

from collections.abc import Iterator

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.bootstrap import GROUPS, Score, SpreadScore, jackknife, percentiles

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
_SEED = 2020
_SIGMA, _SCALE = 10.0, 1000.0  # of CMMD
_ROWS = 1024  # rows of a block of the kernel


def kid_score(
    features: np.ndarray, reference: np.ndarray, subset_size: int = KID_SUBSET_SIZE, subsets: int = KID_SUBSETS
) -> SpreadScore:
    """Kernel Inception distance (Binkowski et al. 2018), with the subsets of torch-fidelity 0.4.

    The mean over random subsets of the unbiased squared maximum mean discrepancy for the kernel (x.y / D + 1)^3, in
    float64. The interval is the spread of the subsets' values, not the error of their mean.

    Args:
        features: [N, D]; rows in the order of the files' names, since subsets are drawn by position.
        reference: [M, D], in that order too.
        subset_size: images in a subset.
        subsets: their number.

    Raises:
        InputError: fewer images than `subset_size` on a side.
    """
    for side, count in (("images", len(features)), ("reference", len(reference))):
        if count < subset_size:
            raise InputError(f"{side}: {count} images; KID draws {subset_size}: lower kid_subset_size ({subset_size})")
    rng = np.random.RandomState(_SEED)
    values = np.empty(subsets)
    for number in range(subsets):
        ours, theirs = (
            rows[rng.choice(len(rows), subset_size, replace=False)].astype(np.float64) for rows in (features, reference)
        )
        values[number] = _within(ours) + _within(theirs) - 2 * _cubes(ours @ theirs.T, ours.shape[1]).mean()
    low, high = percentiles(values)
    how = f"percentiles over {subsets} subsets of {subset_size} images: their spread"
    return SpreadScore(float(values.mean()), low, high, how, float(values.std()))


def _within(rows: np.ndarray) -> float:
    """Mean of the cubic kernel over pairs of different rows."""
    kernel, count = _cubes(rows @ rows.T, rows.shape[1]), len(rows)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def _cubes(products: np.ndarray, dimensions: int) -> np.ndarray:
    products /= dimensions
    products += 1
    return products * products * products  # forty times as fast as NumPy's power


def cmmd_score(features: np.ndarray, reference: np.ndarray, own_term: float | None = None) -> Score:
    """CLIP maximum mean discrepancy (Jayasumana et al. 2024): a Gaussian kernel of sigma 10, all pairs, times 1000.

    Computed in float64 and in blocks. The interval is a jackknife's over the images, given the reference.

    Args:
        features: [N, D], of unit length in the published scores.
        reference: [M, D].
        own_term: of the reference, from `cmmd_own_term`; None: it is computed.
    """
    count, groups = len(features), min(GROUPS, len(features))
    sizes = np.array([len(range(group, count, GROUPS)) for group in range(groups)])
    within, across = np.zeros((groups, groups)), np.zeros(groups)
    for first in range(groups):
        for rows in _blocks(features[first::GROUPS]):
            across[first] += sum(_gaussians(rows, others) for others in _blocks(reference))
            for second in range(first + 1):
                added = sum(_gaussians(rows, others) for others in _blocks(features[second::GROUPS]))
                within[first, second] += added
                if second < first:
                    within[second, first] += added
    theirs = cmmd_own_term(reference) if own_term is None else own_term

    def statistic(left: np.ndarray) -> float:
        number = sizes[left].sum()
        own = within[np.ix_(left, left)].sum() / number**2
        return float(_SCALE * (own + theirs - 2 * across[left].sum() / (number * len(reference))))

    numbers = np.arange(groups)
    replicates = [statistic(np.delete(numbers, group)) for group in numbers] if groups > 1 else []
    return jackknife(statistic(numbers), replicates)


def cmmd_own_term(reference: np.ndarray) -> float:
    """Mean of the Gaussian kernel over all pairs of rows of [M, D], each with itself too."""
    total = 0.0
    for number, rows in enumerate(_blocks(reference)):
        for other, others in enumerate(_blocks(reference[: (number + 1) * _ROWS])):
            total += _gaussians(rows, others) * (1 if other == number else 2)
    return total / len(reference) ** 2


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS].astype(np.float64)


def _gaussians(rows: np.ndarray, others: np.ndarray) -> float:
    """Sum of exp(-|x - y|^2 / (2 sigma^2)) over all pairs."""
    exponents = rows @ others.T
    exponents -= np.square(rows).sum(axis=1, keepdims=True) / 2
    exponents -= np.square(others).sum(axis=1) / 2
    exponents /= _SIGMA**2
    return float(np.exp(exponents, out=exponents).sum())
