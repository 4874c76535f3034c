"""KID and CMMD against the formulas over all pairs."""

import itertools

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics import kernels
from bksdm_jax.metrics.kernels import cmmd_own_term, cmmd_score, kid_score


def features_of(count: int, seed: int, dimensions: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.1 * seed, 1.0, (count, dimensions)).astype(np.float32)


def directions(count: int, seed: int) -> np.ndarray:
    rows = features_of(count, seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gaussian_mean(ours: np.ndarray, theirs: np.ndarray) -> float:
    differences = ours[:, None].astype(np.float64) - theirs[None]
    return float(np.exp(-0.5 * np.square(differences).sum(axis=-1) / 10**2).mean())


def cmmd(ours: np.ndarray, theirs: np.ndarray) -> float:
    return 1000 * (gaussian_mean(ours, ours) + gaussian_mean(theirs, theirs) - 2 * gaussian_mean(ours, theirs))


def test_kid_is_the_mean_over_subsets() -> None:
    ours, theirs = features_of(40, 0), features_of(30, 1)
    score = kid_score(ours, theirs, subset_size=12, subsets=5)
    rng, wanted = np.random.RandomState(2020), []
    for _ in range(5):
        x = ours[rng.choice(40, 12, replace=False)].astype(np.float64)
        y = theirs[rng.choice(30, 12, replace=False)].astype(np.float64)
        within = sum(np.mean([(a @ b / 6 + 1) ** 3 for a, b in itertools.permutations(rows, 2)]) for rows in (x, y))
        wanted.append(within - 2 * np.mean([(a @ b / 6 + 1) ** 3 for a, b in itertools.product(x, y)]))
    assert score.value == pytest.approx(np.mean(wanted), rel=1e-9)
    assert score.std == pytest.approx(np.std(wanted), rel=1e-9)
    assert [score.low, score.high] == pytest.approx(np.percentile(wanted, [2.5, 97.5]), rel=1e-9)
    assert "5 subsets of 12" in score.interval


@pytest.mark.parametrize(("ours", "theirs", "side"), [(11, 12, "images"), (12, 11, "reference")])
def test_a_set_smaller_than_the_subsets_is_told(ours: int, theirs: int, side: str) -> None:
    with pytest.raises(InputError, match=rf"{side}.*\b11\b.*kid_subset_size"):
        kid_score(features_of(ours, 0), features_of(theirs, 1), subset_size=12)


@pytest.mark.parametrize("rows", [4, 1024])
def test_cmmd_and_its_jackknife_are_those_of_all_pairs(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "_ROWS", rows)
    ours, theirs = directions(130, 0), directions(51, 1)
    score = cmmd_score(ours, theirs)
    left = [cmmd(np.delete(ours, np.s_[group::20], axis=0), theirs) for group in range(20)]
    half = 1.96 * np.sqrt(19 / 20 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert score.value == pytest.approx(cmmd(ours, theirs), abs=1e-9)
    assert [score.low, score.high] == pytest.approx([score.value - half, score.value + half], abs=1e-9)
    assert "20 groups" in score.interval
    own = cmmd_own_term(theirs)
    assert own == pytest.approx(gaussian_mean(theirs, theirs), rel=1e-13)
    assert cmmd_score(ours[::-1], theirs[::-1], own).value == pytest.approx(score.value, rel=1e-9)


def test_cmmd_of_one_image_and_of_equal_sets() -> None:
    assert cmmd_score(directions(1, 0), directions(9, 1)).interval == ""
    assert cmmd_score(directions(30, 0), directions(30, 0)).value == pytest.approx(0, abs=1e-9)
