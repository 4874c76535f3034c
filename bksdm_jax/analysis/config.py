"""The settings of `launch.analyse`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.data.options import SourceOptions, require_options
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.metrics.config import FEWEST, MetricsConfig, require_metrics
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pruning.targets import CRITERIA

OF_DATA = ("taylor", "output_error")
"""The criteria that are measured on a calibration set."""
OF_IMAGES = {
    "clip": ("clip_score", "clip_score_shapes"),
    "frechet": ("fid_pytorch_fid", "fid_torch_fidelity", "fid_clean", "fd_dinov2", "fd_clip_shapes"),
}
"""Criterion of sampled images -> metrics of which the first that is measured counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensitivityConfig(MetricsConfig):
    """Images that are sampled without each block, and scored.

    Attributes:
        prompts: a `.txt` or `.csv` file; empty: the captions of `data`.
        images: number of prompts used, from the first on.
        skips: also without each skip connection, and without those of each up stage.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance.
        sampler: as of `launch.sample`; `scheduler`: the model's own.
        resolution: pixels; 0: the teacher's own.
        seed: of the starting noise.
        batch_size: images of a call on each device.
    """

    prompts: str = ""
    images: int = 1000
    skips: bool = True
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "scheduler"
    resolution: int = 0
    seed: int = 0
    batch_size: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyseConfig(ModelOptions, SourceOptions):
    """What to measure of a teacher's blocks.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        criteria: of `magnitude` (weights alone), `taylor` (also the task loss's gradient), `output_error` (of the U-Net
            without the block), `clip` and `frechet` (of images sampled without the block).
        data: the calibration set, for `taylor` and `output_error`: images with captions in any form that
            `launch.train` reads, or `shapes_world/demo`.
        split: of the data; data without splits are `train`.
        skip_unusable: leave out pairs that can't be used; a damaged image is replaced by the next one, and
            `skipped.csv` lists it.
        images: of the calibration set, rounded up to whole batches of all devices.
        resolution: pixels of the calibration images; 0: the teacher's own.
        batch_size: images in one step on each device.
        dtype: of the networks' computations, `float32` or `bfloat16`.
        seed: of the choice of images, their noise and timesteps.
        sensitivity: a group of settings, for `clip` and `frechet`.
    """

    teacher: str
    criteria: tuple[str, ...] = ("magnitude", *OF_DATA)
    data: str = ""
    split: str = "train"
    skip_unusable: bool = False
    images: int = 1000
    resolution: int = 0
    batch_size: int = 4
    dtype: str = "float32"
    seed: int = 0
    sensitivity: SensitivityConfig = SensitivityConfig()


def require_analysis(config: AnalyseConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used; reads no files."""
    if not config.criteria:
        raise InputError(f"criteria: empty; expected some of {', '.join(CRITERIA)}")
    for name in config.criteria:
        known_name("config", "criteria", name, CRITERIA)
    needing = [name for name in config.criteria if name in OF_DATA]
    if needing and not config.data:
        raise InputError(f"data: empty, but {needing[0]} needs a calibration set: give --config.data=DIR")
    require_options(config)
    require_dtype(config.dtype)
    for key in ("images", "batch_size"):
        whole_number("config", key, getattr(config, key))
    for key in ("resolution", "seed"):
        whole_number("config", key, getattr(config, key), 0)
    if any(name in OF_IMAGES for name in config.criteria):
        _require_sensitivity(config.sensitivity, [name for name in config.criteria if name in OF_IMAGES])
        if not config.sensitivity.prompts and not config.data:
            raise InputError("sensitivity.prompts: empty; give a .txt or .csv file of prompts, or data with captions")


def _require_sensitivity(config: SensitivityConfig, criteria: list[str]) -> None:
    require_metrics(config, tuple(METRICS))
    for name in criteria:
        if not set(OF_IMAGES[name]) & set(config.metrics):
            raise InputError(f"sensitivity.metrics: {name} needs one of {', '.join(OF_IMAGES[name])}")
    for name in config.metrics:
        if METRICS[name].subjects:
            raise InputError(f"sensitivity.metrics: {name} needs subjects, which prompts don't have")
        if METRICS[name].reference and not config.reference:
            raise InputError(
                f"sensitivity.reference: empty, but {name} compares with real images; give a folder of them"
            )
    known_name("config", "sensitivity.sampler", config.sampler, (SCHEDULER, *SAMPLERS))
    for key in ("steps", "batch_size"):
        whole_number("config", f"sensitivity.{key}", getattr(config, key))
    whole_number("config", "sensitivity.images", config.images, FEWEST)
    for key in ("resolution", "seed"):
        whole_number("config", f"sensitivity.{key}", getattr(config, key), 0)
    finite_number("config", "sensitivity.guidance_scale", config.guidance_scale, 0)
