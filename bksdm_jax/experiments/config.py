"""The settings of `launch.demo`, `launch.ablation` and `launch.tradeoff`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.metrics.config import FEWEST, MetricsConfig, require_metrics
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.pruning.removal import removed_blocks


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """Settings shared by all rows.

    Attributes:
        student: a preset, or a comma-separated list of removed blocks.
        steps: optimiser updates of training.
        batch_size: images per optimiser update.
        learning_rate: after the warm-up; it then falls along a cosine to zero.
        warmup_steps: updates over which the rate rises linearly from zero.
        images: number of held-out captions to sample and score.
        sampling_steps: of the PNDM sampler.
        guidance_scale: of classifier-free guidance.
        seed: of initial weights, batches and noise.
        dataset: of the shapes world, `demo` or `full`.
    """

    student: str = "bk_small"
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    images: int = 256
    seed: int = 0
    dataset: str = "demo"
    sampling_steps: int = 25
    guidance_scale: float = 3.0


def require_comparison(config: ComparisonConfig) -> None:
    """Raises `InputError`, with the key, for a setting that no comparison can have."""
    removed_blocks(config.student)
    for key in ("steps", "batch_size", "sampling_steps"):
        whole_number("config", key, getattr(config, key))
    whole_number("config", "images", config.images, FEWEST)
    for key in ("warmup_steps", "seed"):
        whole_number("config", key, getattr(config, key), 0)
    for key in ("learning_rate", "guidance_scale"):
        finite_number("config", key, getattr(config, key), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TradeoffConfig(MetricsConfig):
    """What to sample and score; see `MetricsConfig` for metrics, reference and networks.

    Attributes:
        models: pipeline folders, single files, ids on the hub, or `shapes_teacher`; up to 16.
        labels: of the models, names of their folders; empty: the models' own names.
        prompts: a `.txt` or `.csv` file.
        over_guidance: guidance scales, all with `steps`; empty: no curve over guidance.
        over_steps: numbers of sampling steps, all with `guidance_scale`; empty: no curve over steps.
        steps: sampling steps where they aren't varied.
        guidance_scale: where it isn't varied.
        sampler: as of `launch.sample`, such as ddim; `scheduler`: the model's own.
        seed: of the starting noise.
        resolution: pixels; 0: the model's own.
        dtype: of the models' computations, `float32` or `bfloat16`.
        batch_size: images per sampling call and device.
        columns: of the page's image grid; 0: none.
    """

    models: tuple[str, ...]
    prompts: str
    labels: tuple[str, ...] = ()
    over_guidance: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0, 7.5, 9.0)
    over_steps: tuple[int, ...] = ()
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "scheduler"
    seed: int = 0
    resolution: int = 0
    dtype: str = "float32"
    batch_size: int = 4
    columns: int = 8


def require_tradeoff(config: TradeoffConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used; reads no files."""
    require_metrics(config, tuple(METRICS))
    for name in config.metrics:
        if METRICS[name].subjects:
            raise InputError(f"metrics: {name} needs subjects, which prompts don't have; use launch.score for it")
        if METRICS[name].reference and not config.reference:
            raise InputError(f"reference: empty, but {name} compares with real images; give a folder of images")
    known_name("config", "sampler", config.sampler, (SCHEDULER, *SAMPLERS))
    require_dtype(config.dtype)
    whole_number("config", "columns", config.columns, 0)
    for key in ("steps", "batch_size"):
        whole_number("config", key, getattr(config, key))
    for scale in (*config.over_guidance, config.guidance_scale):
        finite_number("config", "over_guidance", scale, 0)
    for count in config.over_steps:
        whole_number("config", "over_steps", count)
    if not config.over_guidance and not config.over_steps:
        raise InputError('over_guidance: empty, as is over_steps; give --config.over_guidance="(2.0,7.5)"')
