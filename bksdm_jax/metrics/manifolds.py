"""Precision, recall, density and coverage: how the balls around features of one set hold those of the other."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.bootstrap import Score, bootstrap_mean

NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
_ROWS = 1024  # rows of a block of distances
_ROUNDING = 1e-13  # of a squared distance, relative to the squared lengths


def manifold_scores(
    features: np.ndarray,
    reference: np.ndarray,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> dict[str, Score]:
    """`precision` and `recall` (Kynkaanniemi et al. 2019), `density` and `coverage` (Naeem et al. 2020).

    A set's manifold is the union of balls around its features, each as large as the distance to the k-th nearest other
    one. As in the papers' code, a point on a ball's surface counts for precision and recall, and not for the others.
    Distances are computed in float64 and in blocks, so that the order of the rows doesn't matter.

    Args:
        features: of the generated images, [N, D].
        reference: of the real images, [M, D].
        neighbours: k of precision and recall.
        density_neighbours: k of density and coverage.

    Raises:
        InputError: not more than k images on a side.
    """
    most = max(neighbours, density_neighbours)
    for side, count in (("images", len(features)), ("reference", len(reference))):
        if count <= most:
            raise InputError(f"{side}: {count} images; distances to {most} neighbours need at least {most + 1}")
    ours, theirs = _nearest(features, neighbours), _nearest(reference, most)
    held = _held(features, reference, ours[:, neighbours], theirs[:, neighbours], theirs[:, density_neighbours])
    generated = "generated images, given the real images' manifold"
    return {
        "precision": bootstrap_mean(held.generated, generated),
        "recall": bootstrap_mean(held.real, "real images, given the generated images' manifold"),
        "density": bootstrap_mean(held.balls / density_neighbours, generated),
        "coverage": bootstrap_mean(held.covered, "real images, given the generated images"),
    }


@dataclasses.dataclass(frozen=True)
class _Held:
    """Which features are in balls of the other set.

    Attributes:
        generated: in a ball of a real one, bool [N].
        balls: number of real ones' balls that hold a generated one, int [N].
        real: in a ball of a generated one, bool [M].
        covered: real ones whose ball holds a generated one, bool [M].
    """

    generated: np.ndarray
    balls: np.ndarray
    real: np.ndarray
    covered: np.ndarray


def _held(
    features: np.ndarray, reference: np.ndarray, ours: np.ndarray, theirs: np.ndarray, inner: np.ndarray
) -> _Held:
    """From the squared radii: of generated images [N], of real ones [M], and of these for density and coverage [M]."""
    held = _Held(
        *(
            np.zeros(len(rows), dtype)
            for rows, dtype in zip((features, features, reference, reference), (bool, int, bool, bool), strict=True)
        )
    )
    for here, rows in _blocks(features):
        for there, others in _blocks(reference):
            squares = _squares(rows, others)
            held.generated[here] |= (squares <= theirs[there]).any(axis=1)
            held.real[there] |= (squares <= ours[here, None]).any(axis=0)
            inside = squares < inner[there]
            held.balls[here] += inside.sum(axis=1)
            held.covered[there] |= inside.any(axis=0)
    return held


def _nearest(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Squared distances to the nearest features, ascending, [N, 1 + neighbours]; the first is to the feature itself."""
    nearest = np.full((len(features), 1 + neighbours), np.inf)

    def merge(rows: slice, squares: np.ndarray) -> None:
        both = np.concatenate([nearest[rows], squares], axis=1)
        both.partition(neighbours, axis=1)
        nearest[rows] = both[:, : 1 + neighbours]

    for number, (here, rows) in enumerate(_blocks(features)):
        for there, others in _blocks(features[: number * _ROWS]):
            squares = _squares(rows, others)
            merge(here, squares)
            merge(there, squares.T)
        squares = _squares(rows, rows)
        np.fill_diagonal(squares, 0)
        merge(here, squares)
    return np.sort(nearest, axis=1)


def _blocks(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(features), _ROWS):
        rows = slice(start, min(start + _ROWS, len(features)))
        yield rows, features[rows].astype(np.float64)


def _squares(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances [n, m]; exactly zero between equal rows, so that a copy lies in a ball of no size."""
    lengths = np.square(rows).sum(axis=1, keepdims=True) + np.square(others).sum(axis=1)
    squares = rows @ others.T
    squares *= -2
    squares += lengths
    squares[squares < _ROUNDING * lengths] = 0
    return squares
