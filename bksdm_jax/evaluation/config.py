"""The settings of `launch.score`, of `launch.reference`, and of sampling with scores; nothing here imports JAX."""

import dataclasses
from collections.abc import Sequence

from bksdm_jax.base.errors import InputError, known_name, listed, whole_number
from bksdm_jax.metrics.config import MetricsConfig, ScoringNetworks, require_metrics
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.sampling import config as sampling
from bksdm_jax.sampling.config import MOST_IMAGES, SampleConfig
from bksdm_jax.sampling.protocols import with_protocol

MAY_CHANGE = ("scoring_batch_size", "cache", "images", "reference", "captions", "most_unreadable")
"""Keys that may differ when a run continues: what they name is recorded too, or they change scores by rounding only."""
FID = "fid_pytorch_fid"
"""The metric whose statistics `launch.reference` writes."""
_MOST_SIZE = 4096  # pixels


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored, with what; the images' own settings are in `sampling.protocols`.

    Attributes:
        images: their number.
        size: height and width in pixels when they are scored, of the reference's images too.
        metrics: the published ones.
        clip: architecture of the CLIP of `clip_score`.
        clip_weights: its name on the hub.
        reference: number of real images, and what they are.
    """

    images: int
    size: int
    metrics: tuple[str, ...]
    clip: str
    clip_weights: str
    reference: int


SCORING = {
    "bk_sdm": Scoring(
        30_000,
        256,
        ("fid_pytorch_fid", "inception_score", "clip_score"),
        "ViT-g-14",
        "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
        40_504,
    ),
    "mlperf_sd": Scoring(
        30_000,
        512,
        ("fid_pytorch_fid", "clip_score"),
        "ViT-H-14",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        30_000,
    ),
}
"""By the names of `PROTOCOLS`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig(MetricsConfig):
    """What to score; see `MetricsConfig` for metrics, reference and networks.

    Attributes:
        images: a folder of images, or the workdir of `launch.sample`, of which the images of its protocol are scored.
        captions: a table `file_name,text` (and `subject`); empty: `metadata.csv` in the folder or the one above.
        protocol: bk_sdm or mlperf_sd: the scores say where they depart from it. Empty: that of `launch.sample`, if any.
        most_unreadable: so many images that can't be read are left out; more are an error.
    """

    images: str
    captions: str = ""
    protocol: str = ""
    most_unreadable: int = 0


def require_score_settings(config: ScoreConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used; reads no files."""
    require_metrics(config, tuple(METRICS))
    whole_number("config", "most_unreadable", config.most_unreadable, 0)
    if config.protocol:
        known_name("config", "protocol", config.protocol, SCORING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleAndScoreConfig(SampleConfig):
    """What to sample; with `score.metrics`, images are scored and not written.

    Attributes:
        score: group of settings.
    """

    score: MetricsConfig = MetricsConfig()


def require_sample_settings(config: SampleAndScoreConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used whatever the model is; reads no files."""
    sampling.require_settings(with_protocol(config))
    if config.score.metrics:
        require_live(config)


def require_live(config: SampleAndScoreConfig) -> None:
    """The same for a run whose images are scored straight from the sampler."""
    require_metrics(config.score, tuple(METRICS))
    for key in ("beside", "previews"):
        if getattr(config, key):
            raise InputError(f"score: images aren't written, so there is no {key}; leave it out")
    if config.init and not (config.resolution or (config.height and config.width)):
        raise InputError("score: images to begin from may differ in size; give resolution")
    for name in config.score.metrics:
        if METRICS[name].subjects:
            raise InputError(f"score.metrics: {name} needs subjects, which only a folder has; use launch.score")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceConfig(ScoringNetworks):
    """What to make; see `ScoringNetworks` for the networks.

    Attributes:
        images: the folder of COCO's images, such as `val2014`; its files stay as they are.
        captions: COCO's captions file, such as `captions_val2014.json`; it may be missing if `prompts` is given.
        prompts: a list of prompts that is used as it is: `.txt`, `.csv` with `file_name,text`, or `.tsv` with `caption`
            such as MLPerf's; empty: prompts are chosen.
        count: number of prompts to choose.
        seed: of the choice.
        size: height and width in pixels of the images to make.
        of_prompts: only the images that the prompts name, as MLPerf has it; else all of the folder.
        protocol: bk_sdm or mlperf_sd: where the result departs from it is said. Empty: none.
        metrics: of `launch.score`, such as kid_clean, for which features of the images are computed and kept in the
            cache.
        scoring_batch_size: images per call of a scoring network, and device.
        cache: folder for what is computed of the images; empty: `~/.cache/bksdm_jax`.
    """

    images: str
    captions: str = ""
    prompts: str = ""
    count: int = 30_000
    seed: int = 0
    size: int = 256
    of_prompts: bool = False
    protocol: str = ""
    metrics: tuple[str, ...] = ()
    scoring_batch_size: int = 32
    cache: str = ""


def reference_metrics(config: ReferenceConfig) -> tuple[str, ...]:
    """The metrics whose features are computed.

    Raises `InputError`, with the key, for a setting that can't be used; reads no files.
    """
    whole_number("config", "count", config.count, most=MOST_IMAGES)
    whole_number("config", "seed", config.seed, 0)
    whole_number("config", "size", config.size, most=_MOST_SIZE)
    if config.protocol:
        known_name("config", "protocol", config.protocol, SCORING)
    if not config.captions and not config.prompts:
        raise InputError("captions: empty; give COCO's captions file, or a list of prompts with --config.prompts")
    scored = tuple(dict.fromkeys(([FID] if config.inception else []) + list(config.metrics)))
    if scored:
        require_metrics(metrics_config(config, config.metrics or scored), tuple(METRICS))
    for name in scored:
        if METRICS[name].reference is None or METRICS[name].subjects:
            known = listed((name for name, own in METRICS.items() if own.reference and not own.subjects), name)
            raise InputError(f"metrics: {name} needs no features of these images; those that do: {known}")
    return scored


def metrics_config(config: ReferenceConfig, metrics: Sequence[str], reference: str = "") -> MetricsConfig:
    """The settings of some metrics, with those of `config`."""
    known = {field.name for field in dataclasses.fields(MetricsConfig)} - {"metrics"}
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name in known}
    return MetricsConfig(metrics=tuple(metrics), reference=reference, **shared)
