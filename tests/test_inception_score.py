"""The Inception score against the formula as it is written down."""

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics import bootstrap
from bksdm_jax.metrics.inception_score import inception_score


def split_scores(logits: np.ndarray, splits: int) -> list[float]:
    logits = logits[np.random.RandomState(2020).permutation(len(logits))].astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    scores = []
    for split in range(splits):
        part = p[split * len(p) // splits : (split + 1) * len(p) // splits]
        q = part.mean(axis=0)
        scores.append(np.exp(np.mean([np.sum(row * np.log(row / q)) for row in part])))
    return scores


@pytest.mark.parametrize(("images", "splits"), [(503, 10), (10, 10), (4000, 2)])
def test_score_and_spread_are_those_of_the_formula(images: int, splits: int) -> None:
    logits = np.random.default_rng(0).normal(scale=2, size=(images, 12)).astype(np.float32)
    wanted, score = split_scores(logits, splits), inception_score(logits, splits)
    assert score.value == pytest.approx(np.mean(wanted), rel=1e-12)
    assert score.std == pytest.approx(np.std(wanted), rel=1e-9, abs=1e-12)


def test_interval_is_as_wide_as_the_scores_of_repeated_draws() -> None:
    rng = np.random.default_rng(0)
    scores = [inception_score(rng.normal(scale=2, size=(600, 8)), 4) for _ in range(60)]
    assert all(score.low < score.value < score.high for score in scores)
    widths = [(score.high - score.low) / 2 for score in scores]
    assert np.mean(widths) == pytest.approx(1.96 * np.std([score.value for score in scores]), rel=0.25)
    assert str(bootstrap.RESAMPLES) in scores[0].interval


def test_interval_surrounds_the_score_of_few_images() -> None:
    """Resampled images score lower, the more classes there are."""
    score = inception_score(np.random.default_rng(0).normal(scale=0.5, size=(300, 1000)), 2)
    assert score.low < score.value < score.high


@pytest.mark.filterwarnings("error")
def test_certain_classes_score_their_number() -> None:
    """Probabilities of exactly zero aren't undefined."""
    logits = np.full((400, 5), -1e5, np.float32)
    logits[np.arange(400), np.random.default_rng(0).integers(4, size=400)] = 1e5
    score = inception_score(logits, 2)
    assert score.value == pytest.approx(4, rel=0.05)
    assert inception_score(np.zeros((40, 5), np.float32)).value == pytest.approx(1)


def test_fewer_images_than_splits_are_told() -> None:
    with pytest.raises(InputError, match=r"\b9\b.*\b10\b"):
        inception_score(np.zeros((9, 5), np.float32))
    score = inception_score(np.random.default_rng(0).normal(size=(19, 5)))  # one split has a single image
    assert (score.low, score.high, score.interval) == (None, None, "")
