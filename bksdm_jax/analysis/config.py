"""The settings of `launch.analyse`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, known_name, whole_number
from bksdm_jax.data.options import SourceOptions, require_options
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pruning.targets import CRITERIA

OF_DATA = ("taylor", "output_error")
"""The criteria that are measured on a calibration set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyseConfig(ModelOptions, SourceOptions):
    """What to measure of a teacher's blocks.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        criteria: of `magnitude` (weights alone), `taylor` (also the task loss's gradient) and `output_error` (of the
            U-Net without the block).
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
    """

    teacher: str
    criteria: tuple[str, ...] = tuple(CRITERIA)
    data: str = ""
    split: str = "train"
    skip_unusable: bool = False
    images: int = 1000
    resolution: int = 0
    batch_size: int = 4
    dtype: str = "float32"
    seed: int = 0


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
