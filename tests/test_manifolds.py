"""Precision, recall, density and coverage against the definitions over all pairs."""

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics import manifolds
from bksdm_jax.metrics.manifolds import manifold_scores


def pairs(count: int = 150, reference: int = 130) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 4)).astype(np.float32), rng.normal(0.7, 1.3, (reference, 4)).astype(np.float32)


def distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(ours[:, None].astype(np.float64) - theirs[None], axis=-1)


def from_definitions(ours: np.ndarray, theirs: np.ndarray, k: int = 3, dense: int = 5) -> dict[str, float]:
    across = distances(ours, theirs)
    radii = {name: np.sort(distances(rows, rows), axis=1) for name, rows in (("ours", ours), ("theirs", theirs))}
    return {
        "precision": (across <= radii["theirs"][:, k]).any(axis=1).mean(),
        "recall": (across <= radii["ours"][:, [k]]).any(axis=0).mean(),
        "density": (across < radii["theirs"][:, dense]).sum(axis=1).mean() / dense,
        "coverage": (across.min(axis=0) < radii["theirs"][:, dense]).mean(),
    }


def values(scores: dict) -> dict[str, float]:
    return {name: score.value for name, score in scores.items()}


@pytest.mark.parametrize("rows", [16, 1024])
@pytest.mark.parametrize("numbers", [(3, 5), (4, 2)])
def test_scores_are_those_of_the_definitions(rows: int, numbers: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(manifolds, "_ROWS", rows)
    ours, theirs = pairs()
    wanted = from_definitions(ours, theirs, *numbers)
    assert all(0 < value < 1.5 and value != 1 for value in wanted.values())
    assert values(manifold_scores(ours, theirs, *numbers)) == pytest.approx(wanted, abs=1e-12)
    assert values(manifold_scores(ours[::-1], theirs[::-1], *numbers)) == pytest.approx(wanted, abs=1e-12)


def test_intervals_are_over_the_images_that_are_counted() -> None:
    ours, theirs = pairs()
    for name, score in manifold_scores(ours, theirs).items():
        assert ("bootstrap over real" in score.interval) == (name in ("recall", "coverage"))
        assert score.low < score.value < score.high
    precision = manifold_scores(ours, theirs)["precision"]
    error = 1.96 * np.sqrt(precision.value * (1 - precision.value) / len(ours))
    assert (precision.high - precision.low) / 2 == pytest.approx(error, rel=0.2)


def test_copies_lie_in_balls_of_no_size() -> None:
    """Far from the origin, where products of lengths 1e3 would hide the distance zero."""
    real = np.repeat(np.random.default_rng(0).normal(600.0, 1.0, (20, 5)).astype(np.float32), 8, axis=0)
    scores = manifold_scores(real[::2], real)
    assert (scores["precision"].value, scores["recall"].value) == (1, 1)
    assert (scores["density"].value, scores["coverage"].value) == (0, 0)  # which ask for less than the radius


@pytest.mark.parametrize(("ours", "theirs", "side"), [(5, 9, "images"), (9, 5, "reference")])
def test_no_more_images_than_neighbours_are_told(ours: int, theirs: int, side: str) -> None:
    with pytest.raises(InputError, match=rf"{side}: 5\b.*\b6\b"):
        manifold_scores(*pairs(ours, theirs))
    assert manifold_scores(*pairs(6, 6))["recall"].value >= 0
