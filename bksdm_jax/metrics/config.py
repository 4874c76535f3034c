"""What to measure, and with which networks; nothing here imports JAX."""

import dataclasses
from collections.abc import Sequence

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, known_name, listed, whole_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringNetworks:
    """Weights of the networks that metrics need; only those that are needed are read.

    Attributes:
        inception: the file `pt_inception-2015-12-05-6726825d.pth` that pytorch-fid downloads, or its safetensors twin.
        clip: for `clip_score`, `clip_i` and `clip_t`: folder, file or hub id of a CLIP; the default is the paper's.
        clip_336: the CLIP for `cmmd`, which is defined with OpenAI's ViT-L/14 for 336 pixels.
        dino: the ViT for `dino`: folder or hub id.
        dinov2: the ViT for `fd_dinov2` and other metrics on DINOv2's features.
        scoring_dtype: of these networks' computations, `float32` or `bfloat16`.
    """

    inception: str = ""
    clip: str = "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"
    clip_336: str = "openai/clip-vit-large-patch14-336"
    dino: str = "facebook/dino-vits16"
    dinov2: str = "facebook/dinov2-large"
    scoring_dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringOptions(ScoringNetworks):
    """How metrics are taken.

    Attributes:
        reference: of metrics that compare with real images: a folder of images; for Frechet distances also a `.npz`
            file of statistics; `shapes`: rendered held-out pictures of the shapes world.
        reference_count: number of rendered pictures.
        kid_subset_size: images in each of KID's subsets.
        intervals: false keeps sums instead of every image's features where that is enough, and gives no interval there.
        scoring_batch_size: images per call of a scoring network, and device.
        cache: folder for what is computed of reference images; empty: `~/.cache/bksdm_jax`.
    """

    reference: str = ""
    reference_count: int = 1000
    kid_subset_size: int = 1000
    intervals: bool = True
    scoring_batch_size: int = 32
    cache: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig(ScoringOptions):
    """Which metrics, and how.

    Attributes:
        metrics: any of fid_pytorch_fid, fid_torch_fidelity, fid_clean, inception_score, kid_torch_fidelity, kid_clean,
            clip_score, cmmd, fd_dinov2, manifolds_inception, manifolds_dinov2 (precision, recall, density and
            coverage), dino, clip_i, clip_t, and of the shapes world attribute_accuracy, clip_score_shapes,
            fd_clip_shapes.
    """

    metrics: tuple[str, ...] = ()


FEWEST = 2
"""Number of images that scores need at least."""


def require_metrics(config: MetricsConfig, known: Sequence[str]) -> None:
    """Raises `InputError` for a setting that can't be used; `known` are the metrics' names."""
    if not config.metrics:
        raise InputError(f"metrics: none; give --config.metrics=\"('NAME',)\" with some of {listed(known)}")
    for name in config.metrics:
        known_name("config", "metrics", name, known)
    doubled = [name for name in config.metrics if config.metrics.count(name) > 1]
    if doubled:
        raise InputError(f"metrics: {doubled[0]} is in it twice; name each once")
    require_dtype(config.scoring_dtype, "scoring_dtype")
    whole_number("config", "scoring_batch_size", config.scoring_batch_size)
    whole_number("config", "reference_count", config.reference_count, FEWEST)
    whole_number("config", "kid_subset_size", config.kid_subset_size, FEWEST)
