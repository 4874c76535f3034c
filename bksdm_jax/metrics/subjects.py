"""DreamBooth's subject fidelity: likeness of generated images to photographs of their subject (DINO, CLIP-I)."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bksdm_jax.base.errors import InputError, listed, shown
from bksdm_jax.metrics.bootstrap import Score, bootstrap_mean

_ROWS = 1024  # features converted to float64 at a time


@dataclasses.dataclass(frozen=True)
class SubjectScore(Score):
    """A mean over images, and the means by subject."""

    subjects: Mapping[str, float] = dataclasses.field(default_factory=dict)


def subject_score(
    features: np.ndarray, subjects: Sequence[str], reference: np.ndarray, reference_subjects: Sequence[str]
) -> SubjectScore:
    """Mean cosine between a generated image and the real images of its subject (Ruiz et al. 2023).

    Each generated image counts once, and is compared with all real images of its subject; with equally many images of
    every subject, as in DreamBooth's protocol, that is the mean of the subjects' means too.

    Args:
        features: of generated images, [N, D].
        subjects: of the generated images, [N].
        reference: features of real images, [M, D].
        reference_subjects: of the real images, [M].

    Raises:
        InputError: a subject without real images.
    """
    names = sorted(set(subjects))
    missing = [name for name in names if name not in set(reference_subjects)]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        known = listed(sorted(set(reference_subjects)), missing[0])
        raise InputError(f"subject {shown(missing[0])}{others}: no real images; known: {known}")
    # The mean cosine with some features is the product with the mean of their directions.
    means = {name: _mean_direction(reference, np.flatnonzero(np.asarray(reference_subjects) == name)) for name in names}
    cosines = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        rows = slice(start, start + _ROWS)
        theirs = np.stack([means[name] for name in subjects[rows]])
        cosines[rows] = np.sum(_directions(features[rows]) * theirs, axis=1)
    score = bootstrap_mean(cosines, "generated images, given the real ones")
    owners = np.asarray(subjects)
    by_subject = {name: float(cosines[owners == name].mean()) for name in names}
    return SubjectScore(**dataclasses.asdict(score), subjects=by_subject)


def _mean_direction(features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    parts = (chosen[start : start + _ROWS] for start in range(0, len(chosen), _ROWS))
    return sum(_directions(features[part]).sum(axis=0) for part in parts) / len(chosen)


def _directions(features: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float64; those of zeros stay so."""
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
