"""The metrics by name: the features that each needs, and its formula."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.attributes import attribute_score
from bksdm_jax.metrics.bootstrap import Score, bootstrap_mean
from bksdm_jax.metrics.config import FEWEST, MetricsConfig
from bksdm_jax.metrics.frechet import frechet_score
from bksdm_jax.metrics.gather import Features
from bksdm_jax.metrics.inception_score import SPLITS, inception_score
from bksdm_jax.metrics.kernels import cmmd_score, kid_score
from bksdm_jax.metrics.manifolds import DENSITY_NEIGHBOURS, manifold_scores
from bksdm_jax.metrics.store import Need
from bksdm_jax.metrics.subjects import mean_by_subject, subject_score


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What metrics are computed from.

    Attributes:
        images, reference: features of the images, in the order of the files' names, and of the reference.
        subjects, reference_subjects: of each image; None: unknown.
        kid_subset_size: see `MetricsConfig`.
    """

    images: Features
    reference: Features = dataclasses.field(default_factory=dict)
    subjects: Sequence[str] | None = None
    reference_subjects: Sequence[str] | None = None
    kid_subset_size: int = 1000


@dataclasses.dataclass(frozen=True)
class Metric:
    """One or several scores that are computed together.

    Attributes:
        scores: evidence -> scores by name.
        images: the feature needed of the images, and whether of each image.
        reference: the same of reference images; None: no reference.
        captions: whether images need captions.
        subjects: whether images and reference need subjects.
        summable: without an interval, sums over the images' features are enough.
        better: `lower` or `higher`.
        fewest: images that it needs.
        subsets: whether it needs as many as are in one of KID's subsets.
    """

    scores: Callable[[Evidence], Mapping[str, Score]]
    images: Need
    reference: Need | None = None
    captions: bool = False
    subjects: bool = False
    summable: bool = False
    better: str = "lower"
    fewest: int = FEWEST
    subsets: bool = False

    def needs(self, intervals: bool) -> Need:
        """The feature needed of the images, of which sums may do without intervals."""
        return self.images if intervals or not self.summable else self.images._replace(kept=False)


def _frechet(name: str, extractor: str, feature: str) -> Metric:
    each = Need(extractor, feature, kept=True)
    sums = each._replace(kept=False)

    def scores(evidence: Evidence) -> dict[str, Score]:
        found = evidence.images[each] if each in evidence.images else evidence.images[sums]
        return {name: frechet_score(found, evidence.reference[sums])}

    return Metric(scores, each, sums, summable=True)


def _pair(name: str, extractor: str, feature: str, score: Callable[[np.ndarray, np.ndarray], Score]) -> Metric:
    need = Need(extractor, feature, kept=True)
    return Metric(lambda evidence: {name: score(evidence.images[need], evidence.reference[need])}, need, need)


def _kid(name: str, extractor: str) -> Metric:
    need = Need(extractor, "pool", kept=True)

    def scores(evidence: Evidence) -> dict[str, Score]:
        both = evidence.images[need], evidence.reference[need]
        return {name: kid_score(*both, subset_size=evidence.kid_subset_size)}

    return Metric(scores, need, need, subsets=True)


def _manifolds(names: Mapping[str, str], extractor: str, feature: str) -> Metric:
    """`names`: of `manifold_scores` -> in `scores.json`."""
    need = Need(extractor, feature, kept=True)

    def scores(evidence: Evidence) -> dict[str, Score]:
        found = manifold_scores(evidence.images[need], evidence.reference[need])
        return {name: found[key] for key, name in names.items()}

    return Metric(scores, need, need, better="higher", fewest=DENSITY_NEIGHBOURS + 1)


def _mean(name: str, extractor: str, feature: str) -> Metric:
    need = Need(extractor, feature, kept=True)

    def scores(evidence: Evidence) -> dict[str, Score]:
        return {name: bootstrap_mean(evidence.images[need])}

    return Metric(scores, need, captions=True, better="higher")


def _mean_by_subject(name: str, extractor: str, feature: str) -> Metric:
    """By subject where images are known to be of several."""
    need = Need(extractor, feature, kept=True)

    def scores(evidence: Evidence) -> dict[str, Score]:
        subjects = evidence.subjects or ()
        several = len(set(subjects)) > 1 and all(subjects)
        values = evidence.images[need]
        return {name: mean_by_subject(values, subjects) if several else bootstrap_mean(values)}

    return Metric(scores, need, captions=True, better="higher")


def _subjects(name: str, extractor: str, feature: str) -> Metric:
    need = Need(extractor, feature, kept=True)

    def scores(evidence: Evidence) -> dict[str, Score]:
        ours, theirs = evidence.images[need], evidence.reference[need]
        return {name: subject_score(ours, evidence.subjects or (), theirs, evidence.reference_subjects or ())}

    return Metric(scores, need, need, subjects=True, better="higher")


_SCENES = Need("shapes_reader", "scenes", kept=True)
_LIKENESS = ("precision", "recall", "density", "coverage")

METRICS: dict[str, Metric] = {
    "fid_pytorch_fid": _frechet("fid_pytorch_fid", "inception_pytorch_fid", "pool"),
    "fid_torch_fidelity": _frechet("fid_torch_fidelity", "inception_torch_fidelity", "pool"),
    "fid_clean": _frechet("fid_clean", "inception_clean", "pool"),
    "inception_score": Metric(
        lambda evidence: {"inception_score": inception_score(evidence.images[_LOGITS])},
        _LOGITS := Need("inception_torch_fidelity", "logits", kept=True),
        better="higher",
        fewest=SPLITS,
    ),
    "kid_torch_fidelity": _kid("kid_torch_fidelity", "inception_torch_fidelity"),
    "kid_clean": _kid("kid_clean", "inception_clean"),
    "clip_score": _mean("clip_score", "clip", "clip_cosine"),
    "cmmd": _pair("cmmd", "clip_336", "image", cmmd_score),
    "fd_dinov2": _frechet("fd_dinov2", "dinov2", "cls"),
    "manifolds_inception": _manifolds(
        {name: f"{name}_inception" for name in _LIKENESS}, "inception_torch_fidelity", "pool"
    ),
    "manifolds_dinov2": _manifolds({name: f"{name}_dinov2" for name in _LIKENESS}, "dinov2", "cls"),
    "dino": _subjects("dino", "dino", "cls"),
    "clip_i": _subjects("clip_i", "clip", "image"),
    "clip_t": _mean_by_subject("clip_t", "clip", "clip_cosine"),
    "attribute_accuracy": Metric(
        lambda evidence: {"attribute_accuracy": attribute_score(evidence.images[_SCENES])},
        _SCENES,
        captions=True,
        better="higher",
    ),
    "clip_score_shapes": _mean("clip_score_shapes", "clip_shapes", "clip_cosine"),
    "fd_clip_shapes": _frechet("fd_clip_shapes", "clip_shapes", "features"),
}
"""By name. Precision, recall, density and coverage are computed together: `manifolds_...`."""


def image_needs(metrics: Collection[str], intervals: bool) -> set[Need]:
    """The features of images that some metrics need."""
    return {METRICS[name].needs(intervals) for name in metrics}


def reference_needs(metrics: Collection[str]) -> set[Need]:
    """The features of reference images that some metrics need; none if no metric compares with real images."""
    return {need for name in metrics if (need := METRICS[name].reference) is not None}


def require_enough(config: MetricsConfig, images: int, source: str, reference: bool = False) -> None:
    """Raises `InputError`, with `source`, if a metric needs more images; `reference`: they are the reference's."""
    for name in config.metrics:
        metric = METRICS[name]
        least, how = (config.kid_subset_size, "; lower kid_subset_size") if metric.subsets else (metric.fewest, "")
        if images < least and (metric.reference or not reference):
            raise InputError(f"{source}: {images} image(s); {name} needs at least {least}{how}")
