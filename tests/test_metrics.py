"""Scores against independent formulas."""

import numpy as np
import pytest
import scipy.linalg

from bksdm_jax.metrics.attributes import attribute_scores, unreadable_share
from bksdm_jax.metrics.bootstrap import bootstrap
from bksdm_jax.metrics.frechet import fit_normal, frechet_distance
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.scenes import parse_caption
from bksdm_jax.shapes.world import example


def test_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    rng = np.random.default_rng()
    ours, theirs = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(0.3, 2.0, size=(250, 12))
    cov1, cov2 = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    wanted = np.sum((ours.mean(0) - theirs.mean(0)) ** 2) + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(ours, fit_normal(theirs)) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(ours, fit_normal(ours)) == pytest.approx(0, abs=1e-8)


def test_interval_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    score = bootstrap(lambda chosen: float(values[chosen].mean()), len(values))
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert score.value == pytest.approx(values.mean())
    assert score.high - score.value == pytest.approx(error, rel=0.15)
    assert score.value - score.low == pytest.approx(error, rel=0.15)


def test_interval_surrounds_a_biased_statistic() -> None:
    values = np.random.default_rng(2).normal(size=(60, 8))
    score = bootstrap(lambda chosen: frechet_distance(values[chosen], fit_normal(values)), len(values), centred=True)
    assert score.low < score.value < score.high
    beside = bootstrap(lambda chosen: frechet_distance(values[chosen], fit_normal(values)), len(values))
    assert beside.low > beside.value  # what centring is for
    assert score.high - score.low == pytest.approx(beside.high - beside.low)


def test_attribute_accuracy_of_right_wrong_and_empty_pictures() -> None:
    pairs = [example("heldout", index) for index in range(60)]
    captions, pictures = [parse_caption(text) for _, text in pairs], [read_scene(picture) for picture, _ in pairs]
    right = attribute_scores(captions, pictures)
    assert right["all"].accuracy.value >= 0.99
    others = attribute_scores(captions, pictures[7:] + pictures[:7])  # each with another's picture: chance
    assert others["all"].accuracy.value == pytest.approx(right["all"].chance, abs=0.1)
    assert right["background"].chance == pytest.approx(1 / 3, abs=0.1)
    nothing = read_scene(np.full((64, 64, 3), 242, np.uint8))
    empty = attribute_scores(captions, [nothing] * 60)
    assert empty["shape"].accuracy.value == empty["count"].accuracy.value == 0
    assert right["one object"].facts + right["two objects"].facts == right["all"].facts
    assert unreadable_share(pictures) <= 0.05
    assert unreadable_share([nothing]) == 1
