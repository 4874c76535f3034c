"""Bicubic interpolation along one axis, with the coefficients and coordinates of PyTorch's `interpolate`."""

import numpy as np

_PLAIN, _ANTIALIASED = -0.75, -0.5  # the cubic's parameter in PyTorch, and in Pillow, which its antialiasing follows


def bicubic_taps(length: int, target: int, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Interpolation without antialiasing: the four pixels that each new one is a sum of, and their weights.

    Args:
        length: pixels.
        target: new pixels.
        scale: width of a new pixel in old ones. None: `length / target`.

    Returns:
        indices [target, 4] and float32 weights [target, 4].
    """
    scale = length / target if scale is None else scale
    where = np.float32(scale) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(where).astype(np.int64)
    taps = first[:, None] + np.arange(-1, 3)
    weights = _cubic(np.abs(where[:, None].astype(np.float64) - taps), _PLAIN)
    return taps.clip(0, length - 1), weights.astype(np.float32)


def bicubic_matrix(length: int, target: int, scale: float | None = None, antialias: bool = False) -> np.ndarray:
    """The interpolation as a matrix, float32 [target, length]; arguments as in `bicubic_taps`.

    If `antialias`, the cubic widens with `length / target`, whatever the `scale`.
    """
    matrix = np.zeros((target, length), np.float64)
    if not antialias:
        for row, (taps, weights) in enumerate(zip(*bicubic_taps(length, target, scale), strict=True)):
            np.add.at(matrix[row], taps, weights)
        return matrix.astype(np.float32)
    ratio = length / target
    wide = max(ratio, 1.0)
    for row in range(target):
        centre = ratio * (row + 0.5)
        low, high = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), length)
        weights = _cubic(np.abs((np.arange(low, high) - centre + 0.5) / wide), _ANTIALIASED)
        matrix[row, low:high] = weights / weights.sum()
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution (1981) at distances of at least 0."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
