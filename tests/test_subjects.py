"""Likeness to photographs of a subject, against the mean over pairs."""

import dataclasses
import json

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics import subjects
from bksdm_jax.metrics.subjects import subject_score

OWNERS, REAL_OWNERS = ["dog", "cat", "dog", "dog"], ["cat", "dog", "cat", "dog", "dog", "vase"]


def features_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 1.0, (count, 6)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.astype(np.float64) @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("rows", [2, 1024])
def test_likeness_is_the_mean_over_pairs_of_one_subject(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(subjects, "_ROWS", rows)
    ours, theirs = features_of(4, 0), features_of(6, 1)
    each = [
        np.mean([cosine(row, other) for other, real in zip(theirs, REAL_OWNERS, strict=True) if real == owner])
        for row, owner in zip(ours, OWNERS, strict=True)
    ]
    score = subject_score(ours, OWNERS, theirs, REAL_OWNERS)
    assert score.value == pytest.approx(np.mean(each), rel=1e-6)
    assert score.subjects == pytest.approx({"cat": each[1], "dog": np.mean([each[0], *each[2:]])}, rel=1e-6)
    assert min(each) <= score.low < score.value < score.high <= max(each)
    assert "generated images" in score.interval
    assert json.loads(json.dumps(dataclasses.asdict(score)))["subjects"] == score.subjects


def test_the_length_of_features_does_not_matter() -> None:
    ours, theirs = features_of(4, 0), features_of(6, 1)
    score, longer = (subject_score(ours * scale, OWNERS, theirs, REAL_OWNERS) for scale in (1, 8))
    assert longer.value == pytest.approx(score.value, rel=1e-12)
    assert subject_score(ours * 0, OWNERS, theirs, REAL_OWNERS).value == 0


def test_a_subject_without_real_images_is_told() -> None:
    with pytest.raises(InputError, match="cat"):
        subject_score(features_of(4, 0), OWNERS, features_of(2, 1), ["dog", "vase"])
