"""DreamBooth's scores: likeness of generated images to photographs of their subject (DINO, CLIP-I), and to prompts."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bksdm_jax.base.errors import InputError, listed, shown
from bksdm_jax.metrics.bootstrap import Score, bootstrap_mean

_ROWS = 1024  # features converted to float64 at a time


@dataclasses.dataclass(frozen=True)
class SubjectScore(Score):
    """A mean over images.

    Attributes:
        groups: the same over the images of each subject.
    """

    groups: Mapping[str, Score] = dataclasses.field(default_factory=dict)


def mean_by_subject(values: np.ndarray, subjects: Sequence[str], over: str = "images") -> SubjectScore:
    """Mean of one number per image, [N], over all and by subject; `over` says in words what is resampled."""
    owners = np.asarray(subjects)
    groups = {str(name): bootstrap_mean(values[owners == name], over) for name in np.unique(owners)}
    return SubjectScore(**vars(bootstrap_mean(values, over)), groups=groups)


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
    return mean_by_subject(cosines, subjects, "generated images, given the real ones")


def likeness_among(features: np.ndarray, subjects: Sequence[str]) -> dict[str, float]:
    """Mean cosine between two images of a subject, by subject; those with a single image are left out.

    Of real images, it is what the likeness of generated ones can hardly exceed.

    Args:
        features: of images, [N, D].
        subjects: of the images, [N].
    """
    owners, found = np.asarray(subjects), {}
    for name in np.unique(owners):
        rows = _directions(features[owners == name])
        pairs = len(rows) * (len(rows) - 1)
        if pairs:  # each pair counts twice; an image isn't one with itself
            found[str(name)] = float((np.square(rows.sum(axis=0)).sum() - np.square(rows).sum()) / pairs)
    return found


def _mean_direction(features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    parts = (chosen[start : start + _ROWS] for start in range(0, len(chosen), _ROWS))
    return sum(_directions(features[part]).sum(axis=0) for part in parts) / len(chosen)


def _directions(features: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float64; those of zeros stay so."""
    rows = features.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
