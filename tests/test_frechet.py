"""Sums, Frechet distances and the intervals of scores, against independent formulas."""

import logging
import time

import numpy as np
import pytest
import scipy.linalg

from bksdm_jax.metrics import frechet
from bksdm_jax.metrics.bootstrap import RESAMPLES, bootstrap, jackknife
from bksdm_jax.metrics.frechet import fit_normal, frechet_distance, frechet_score, make_normal
from bksdm_jax.metrics.sums import FeatureSums


def sums_of(features: np.ndarray, parts: int = 1) -> FeatureSums:
    sums = FeatureSums()
    for part in np.array_split(features, parts):
        sums.add(part)
    return sums


def by_singular_values(ours: np.ndarray, theirs: np.ndarray) -> float:
    """tr (S1 S2)^(1/2) is the sum of the singular values of the product of the centred features."""
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (ours, theirs))
    if len(a) > a.shape[1]:  # triangular factors have the same products
        a, b = (np.linalg.qr(x, mode="r") for x in (a, b))
    roots = scipy.linalg.svdvals(a @ b.T, check_finite=False)
    traces = np.sum(a**2) / (len(ours) - 1) + np.sum(b**2) / (len(theirs) - 1)
    between = np.sum((ours.mean(axis=0, dtype=np.float64) - theirs.mean(axis=0, dtype=np.float64)) ** 2)
    return float(between + traces - 2 * roots.sum() / np.sqrt((len(ours) - 1) * (len(theirs) - 1)))


def test_sums_of_parts_are_those_of_the_whole() -> None:
    features = np.random.default_rng().normal(1e4, 1.0, size=(2500, 5))  # raw second moments would cancel
    whole, chosen = sums_of(features, parts=7), np.random.default_rng().integers(2500, size=2000)
    np.testing.assert_allclose(whole.mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance(), np.cov(features, rowvar=False), atol=1e-9)
    left, right = sums_of(features[:100]), sums_of(features[100:])
    left.merge(FeatureSums())
    left.merge(right)
    assert left.count == 2500
    np.testing.assert_allclose(left.covariance(), whole.covariance(), atol=1e-9)
    drawn = FeatureSums()
    drawn.add(features, chosen)
    np.testing.assert_allclose(drawn.covariance(), np.cov(features[chosen], rowvar=False), atol=1e-9)


def test_sums_without_some_are_those_of_the_rest() -> None:
    features = np.random.default_rng(0).normal(1e4, 1.0, size=(2000, 5))
    rest = sums_of(features).without(sums_of(features[3::7]))
    wanted = sums_of(np.delete(features, np.s_[3::7], axis=0))
    assert rest.count == wanted.count
    np.testing.assert_allclose(rest.mean, wanted.mean, rtol=1e-14)
    np.testing.assert_allclose(rest.covariance(), wanted.covariance(), atol=1e-9)


def test_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    rng = np.random.default_rng()
    ours, theirs = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(0.3, 2.0, size=(250, 12))
    cov1, cov2 = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    wanted = np.sum((ours.mean(0) - theirs.mean(0)) ** 2) + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(sums_of(ours), fit_normal(sums_of(theirs))) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(sums_of(ours), fit_normal(sums_of(ours))) == pytest.approx(0, abs=1e-8)


def features_of(images: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.01, 1.5, dimensions)
    ours, theirs = rng.normal(size=(2, images, dimensions))
    return np.abs(ours * scales).astype(np.float32), np.abs((theirs + 0.1) * scales).astype(np.float32)


@pytest.mark.parametrize(("images", "error"), [pytest.param(2060, 1e-8, marks=pytest.mark.slow), (1000, 1e-5)])
def test_distance_at_2048_dimensions(images: int, error: float) -> None:
    """With a covariance of full rank, and without."""
    ours, theirs = features_of(images, 2048)
    normal = fit_normal(sums_of(theirs))
    start = time.perf_counter()
    value = frechet_distance(sums_of(ours), normal)
    print(f"{time.perf_counter() - start:.1f} s at 2048 dimensions")
    assert value == pytest.approx(by_singular_values(ours, theirs), rel=error)


@pytest.mark.parametrize("images", [900, 300])
def test_shards_in_any_order_have_the_distance_of_one_pass(images: int) -> None:
    ours, theirs = features_of(images, 400)
    normal, shards = fit_normal(sums_of(theirs)), FeatureSums()
    for first in (2, 0, 1):
        shards.merge(sums_of(ours[first::3][::-1]))
    value = frechet_distance(sums_of(ours), normal)
    assert frechet_distance(shards, normal) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(("images", "reference", "told"), [(8, 9, ["8", "8"]), (9, 9, []), (9, 5, ["5", "8"])])
def test_too_few_images_are_warned_of_once(images: int, reference: int, told: list[str], caplog) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(images, 8)), rng.normal(size=(reference, 8))
    with caplog.at_level(logging.WARNING, logger="absl"):
        score = frechet_score(ours, sums_of(theirs))
    assert score.value == pytest.approx(by_singular_values(ours, theirs), rel=1e-10)
    assert len(caplog.records) == bool(told)
    for number in told:
        assert number in caplog.text


def test_sums_alone_have_no_interval() -> None:
    ours, theirs = np.random.default_rng(0).normal(size=(2, 50, 3))
    score = frechet_score(sums_of(ours), make_normal(theirs.mean(axis=0), np.cov(theirs, rowvar=False)))
    assert score.value == pytest.approx(by_singular_values(ours, theirs), rel=1e-10)
    assert (score.low, score.high, score.interval) == (None, None, "")


def test_jackknife_of_many_dimensions_is_that_of_the_images_without_each_group(monkeypatch) -> None:
    monkeypatch.setattr(frechet, "MOST_RESAMPLED", 0)
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(90, 6)), rng.normal(0.3, 1.2, size=(300, 6))
    score = frechet_score(ours, sums_of(theirs))
    left = [by_singular_values(np.delete(ours, np.s_[group::20], axis=0), theirs) for group in range(20)]
    half = 1.96 * np.sqrt(19 / 20 * np.sum((np.array(left) - np.mean(left)) ** 2))
    assert score.value == pytest.approx(by_singular_values(ours, theirs), rel=1e-10)
    assert [score.low, score.high] == pytest.approx([score.value - half, score.value + half], rel=1e-8)
    assert "20 groups" in score.interval


@pytest.mark.parametrize("images", [2, 3])
def test_jackknife_of_few_images(images: int, monkeypatch) -> None:
    monkeypatch.setattr(frechet, "MOST_RESAMPLED", 0)
    ours, theirs = np.random.default_rng(0).normal(size=(2, images, 3))
    score = frechet_score(ours, sums_of(theirs))
    assert score.value == pytest.approx(by_singular_values(ours, theirs), rel=1e-10)
    assert (score.low is None) == (images == 2)


def test_jackknife_is_as_wide_as_the_distances_of_repeated_draws(monkeypatch) -> None:
    monkeypatch.setattr(frechet, "MOST_RESAMPLED", 0)
    rng = np.random.default_rng(0)
    reference = sums_of(rng.normal(0.3, 1.2, size=(2000, 4)))
    scores = [frechet_score(rng.normal(size=(400, 4)), reference) for _ in range(60)]
    widths = [score.high - score.value for score in scores]
    assert np.mean(widths) == pytest.approx(1.96 * np.std([score.value for score in scores]), rel=0.3)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=20)
    score = jackknife(values.mean(), [np.delete(values, group).mean() for group in range(20)])
    assert score.high - values.mean() == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(20))


def test_interval_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    score = bootstrap(lambda chosen: float(values[chosen].mean()), len(values))
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert score.value == pytest.approx(values.mean())
    assert score.high - score.value == pytest.approx(error, rel=0.15)
    assert score.value - score.low == pytest.approx(error, rel=0.15)
    assert str(RESAMPLES) in score.interval


def test_interval_surrounds_a_biased_statistic() -> None:
    values = np.random.default_rng(2).normal(size=(60, 8))
    normal = fit_normal(sums_of(values))
    score = frechet_score(values, sums_of(values))
    assert score.low < score.value < score.high
    beside = bootstrap(lambda chosen: frechet_distance(sums_of(values[chosen]), normal), len(values))
    assert beside.low > beside.value  # what centring is for
    assert score.high - score.low == pytest.approx(beside.high - beside.low)


def test_resamples_are_those_of_published_scores() -> None:
    """The numbers of NumPy's generator with seed 0, drawn image by image."""
    values, rng = np.random.default_rng(3).normal(size=37), np.random.default_rng(0)
    drawn = [values[rng.integers(37, size=37)].mean() for _ in range(RESAMPLES)]
    score = bootstrap(lambda chosen: float(values[chosen].mean()), 37)
    assert [score.low, score.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_an_undefined_value_has_no_interval() -> None:
    score = bootstrap(lambda chosen: float("nan"), 5)
    assert (score.low, score.high) == (None, None)
