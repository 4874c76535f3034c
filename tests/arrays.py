"""Comparisons of arrays and of nested parameters, and a function in place of a U-Net."""

from typing import Any

import numpy as np

from bksdm_jax.base import trees


def require_close(ours: Any, theirs: np.ndarray, tolerance: float = 2e-5) -> None:
    """The same shape, and no number further off than `tolerance` of the largest."""
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


def require_equal(ours: Any, theirs: Any) -> None:
    """Nested arrays under the same names, equal to the bit."""
    ours, theirs = trees.flatten(ours), trees.flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def stand_in(x: Any, t: Any, backend: Any) -> Any:
    """A fixed nonlinear function in place of the U-Net; `backend` is torch or jax.numpy."""
    return 0.7 * backend.tanh(1.3 * x + t / 1000) + 0.2 * backend.sin(2 * x)
