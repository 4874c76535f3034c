"""Likeness to photographs of a subject, against the mean over pairs."""

import dataclasses
import json

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics import subjects
from bksdm_jax.metrics.subjects import likeness_among, mean_by_subject, subject_score

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
    by_subject = {name: group.value for name, group in score.groups.items()}
    assert by_subject == pytest.approx({"cat": each[1], "dog": np.mean([each[0], *each[2:]])}, rel=1e-6)
    assert score.groups["dog"].low < score.groups["dog"].value < score.groups["dog"].high
    assert score.groups["cat"].low is None  # of a single image
    assert min(each) <= score.low < score.value < score.high <= max(each)
    assert "generated images" in score.interval
    assert json.loads(json.dumps(dataclasses.asdict(score)))["groups"]["cat"]["value"] == by_subject["cat"]


def test_the_length_of_features_does_not_matter() -> None:
    ours, theirs = features_of(4, 0), features_of(6, 1)
    score, longer = (subject_score(ours * scale, OWNERS, theirs, REAL_OWNERS) for scale in (1, 8))
    assert longer.value == pytest.approx(score.value, rel=1e-12)
    assert subject_score(ours * 0, OWNERS, theirs, REAL_OWNERS).value == 0


def test_a_subject_without_real_images_is_told() -> None:
    with pytest.raises(InputError, match="cat"):
        subject_score(features_of(4, 0), OWNERS, features_of(2, 1), ["dog", "vase"])


def test_prompts_are_scored_by_subject() -> None:
    score = mean_by_subject(np.array([1, 5, 2, 3], np.float32), OWNERS)
    assert (score.value, score.groups["cat"].value, score.groups["dog"].value) == (2.75, 5, 2)
    assert 1 <= score.groups["dog"].low < score.groups["dog"].high <= 3


def test_real_images_are_compared_with_each_other_but_not_with_themselves() -> None:
    rows = features_of(6, 1)
    found = likeness_among(rows, REAL_OWNERS)
    dogs = [rows[i] for i, owner in enumerate(REAL_OWNERS) if owner == "dog"]
    wanted = np.mean([cosine(a, b) for i, a in enumerate(dogs) for j, b in enumerate(dogs) if i != j])
    assert found == pytest.approx({"cat": cosine(rows[0], rows[2]), "dog": wanted}, rel=1e-6)  # one photo of the vase
