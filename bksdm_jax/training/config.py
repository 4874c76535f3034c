"""The trainer's settings, common to all tasks; nothing here imports JAX."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.metrics.config import FEWEST, MetricsConfig, ScoringOptions, require_metrics
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.sampling.config import MOST_SEED, SamplerConfig

if TYPE_CHECKING:
    from bksdm_jax.diffusion.schedule import ScheduleConfig

PROFILED = 3
"""Number of profiled updates."""
RETRY_WITHOUT_ROOM, STOP_WITHOUT_ROOM = "retry", "stop"
_LONGEST_STEP = 1e18  # far below the largest float32, 3.4e38
_BELOW_1 = 1 - 2**-24  # the largest float32 below 1
CONV_LAYOUTS = ("hwio", "ohwi")
"""Orders of the dimensions of convolution weights in memory: Flax's, and cuDNN's (`layouts`)."""
WEIGHTS = {"ema": "the moving average", "raw": "those of the last update"}
"""The weights that a run can return -> their description in model cards."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, gradient clipping and moving average. Defaults are the reference run's.

    Attributes:
        learning_rate: after the warm-up.
        warmup_steps: updates over which the rate rises linearly from zero.
        cosine_steps: the update at which it reaches zero along a half cosine; 0: it stays constant.
        beta1, beta2: decay of AdamW's first and second moments.
        weight_decay: decoupled, on every parameter.
        epsilon: added to AdamW's denominator.
        clip_norm: largest global norm of the gradients; larger ones are scaled down to it.
        ema_decay: upper bound of the moving average's decay; 0: none is kept.
    """

    learning_rate: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    warmup_steps: int = 0
    cosine_steps: int = 0


@dataclasses.dataclass(frozen=True)
class SampleGridConfig:
    """When and how sample grids are drawn.

    Attributes:
        every: optimiser updates between grids; 0: one grid at the end.
        prompts: one column each; empty: the first captions of the data.
        steps: of the sampler; 0: no grids.
        guidance_scale: of the sampler.
    """

    every: int = 1000
    prompts: tuple[str, ...] = ()
    steps: int = 25
    guidance_scale: float = 7.5

    def sampler(
        self, schedule: "ScheduleConfig", resolution: int, seed: int, attention: str, norms: str
    ) -> SamplerConfig:
        """The sampler of the grids."""
        return SamplerConfig(
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            resolution=resolution,
            sampler=usual_sampler(schedule),
            seed=seed,
            attention=attention,
            norms=norms,
        )


def usual_sampler(schedule: "ScheduleConfig") -> str:
    """PNDM, or DDIM where PNDM isn't defined."""
    return "ddim" if schedule.zero_snr or schedule.prediction_type == "sample" else "pndm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig(ScoringOptions):
    """When and how images of the moving average are scored.

    Attributes:
        every: optimiser updates between scores; 0: once at the end.
        prompts: a `.txt` or `.csv` file of prompts; empty: captions of the held-out split.
        images: number of images, of the first prompts, one each.
        steps: of the sampler.
        guidance_scale: of the sampler.
        sampler: as of `launch.sample`, such as ddim; empty: as for sample grids.
        seed: image number i starts from noise drawn with `fold_in(key(seed), i)`, in every run alike.
        batch_size: images per sampling call and device.
    """

    every: int = 0
    prompts: str = ""
    images: int = 32
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = ""
    seed: int = 0
    batch_size: int = 4

    def of(self, metrics: Sequence[str]) -> MetricsConfig:
        """The settings for some metrics."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(ScoringOptions)}
        return MetricsConfig(metrics=tuple(metrics), **shared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The trainer's settings.

    Attributes:
        seed: of everything random.
        steps: optimiser updates.
        batch_size: images per optimiser update.
        accumulation: micro-batches per update.
        dtype: of the networks' computations, `float32` or `bfloat16`.
        fsdp: how many devices share one copy of the parameters.
        conv_layout: how the weights of convolutions lie in memory: hwio, or ohwi, as cuDNN reads them (NVIDIA GPUs).
        evaluate_first: run the evaluators before the first update too.
        log_every: optimiser updates between logged losses; 0: those of the last only.
        checkpoint_every: optimiser updates between checkpoints; 0: only one at the end.
        keep_checkpoints: how many of the newest are kept; 0: all.
        keep_every: checkpoints whose step is a multiple of this are kept for good; 0: none.
        checkpoints: their folder, also in a bucket (`gs://`), from where a machine that lost its disk continues; empty:
            `checkpoints/` in the workdir.
        without_room: what follows if a checkpoint can't be written: `retry`, at the next one, or `stop`.
        most_skipped: so many updates in a row that aren't finite, and so are skipped, end the run.
        stack_dump_seconds: an update that takes longer prints the stacks of all threads; 0: never.
        replay: a folder `not_finite/STEP` of a workdir: computes that skipped update again, and nothing else.
        profile_step: the first of three updates to profile; 0: none.
        save_weights: the weights that the run returns: `ema`, the moving average, or `raw`, those of the last update.
        optimizer: of the updates.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    dtype: str = "float32"
    save_weights: str = "ema"
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluate_first: bool = False
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    keep_every: int = 0
    checkpoints: str = ""
    without_room: str = RETRY_WITHOUT_ROOM
    most_skipped: int = 5
    stack_dump_seconds: int = 600
    replay: str = ""
    profile_step: int = 0
    fsdp: int = 1
    conv_layout: str = "hwio"


def require_trainer_settings(config: TrainerConfig) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range."""
    require_dtype(config.dtype)
    require_conv_layout(config.conv_layout)
    known_name("config", "save_weights", config.save_weights, WEIGHTS)
    known_name("config", "without_room", config.without_room, (RETRY_WITHOUT_ROOM, STOP_WITHOUT_ROOM))
    for key in ("steps", "batch_size", "accumulation", "fsdp", "most_skipped"):
        whole_number("config", key, getattr(config, key))
    for key in (
        *("log_every", "checkpoint_every", "keep_checkpoints", "keep_every", "profile_step"),
        "stack_dump_seconds",
    ):
        whole_number("config", key, getattr(config, key), 0)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    if config.profile_step > max(config.steps - PROFILED + 1, 0):
        raise InputError(
            f"profile_step: {config.profile_step}; the {PROFILED} updates from there must end by step {config.steps}"
        )
    _require_optimizer(config.optimizer, config.steps)


def _require_optimizer(config: OptimizerConfig, steps: int) -> None:
    for key in ("warmup_steps", "cosine_steps"):
        whole_number("config", f"optimizer.{key}", getattr(config, key), 0)
    warmup, cosine = config.warmup_steps, config.cosine_steps
    if 0 < cosine < steps:
        raise InputError(
            f"optimizer.cosine_steps: {cosine}, fewer than steps {steps}: the learning rate would be 0 after that; "
            "set both to the same value, or cosine_steps to 0 for a constant rate"
        )
    if 0 < cosine <= warmup:
        raise InputError(f"optimizer.warmup_steps: {warmup}, not below optimizer.cosine_steps {cosine}")
    bounds = {"learning_rate": (0, math.inf), "weight_decay": (0, math.inf), "ema_decay": (0, 1)}
    bounds |= {"beta1": (0, _BELOW_1), "beta2": (0, _BELOW_1)}
    bounds |= {"epsilon": (1e-30, math.inf), "clip_norm": (1e-30, math.inf)}
    for key, (least, most) in bounds.items():
        finite_number("config", f"optimizer.{key}", getattr(config, key), least, most)
    longest = config.clip_norm / config.epsilon  # of Adam's steps at a rate of 1
    if config.learning_rate * max(longest, config.weight_decay) > _LONGEST_STEP:
        raise InputError(
            f"optimizer.learning_rate: {config.learning_rate:g}; with clip_norm {config.clip_norm:g}, epsilon "
            f"{config.epsilon:g} and weight_decay {config.weight_decay:g} a step could overflow; lower the rate"
        )


def require_conv_layout(name: str) -> None:
    """Raises `InputError` unless `name` is one of `CONV_LAYOUTS`."""
    known_name("config", "conv_layout", name, CONV_LAYOUTS)


def require_whole_batches(config: TrainerConfig, devices: int) -> None:
    """Raises `InputError` if the devices can't share each micro-batch evenly."""
    shards = config.accumulation * devices
    if config.batch_size % shards:
        raise InputError(
            f"batch_size: {config.batch_size} isn't a multiple of accumulation {config.accumulation} "
            f"x {devices} device(s) = {shards}"
        )


def require_scoring(config: ScoringConfig, metrics: Sequence[str]) -> None:
    """Raises `InputError` for settings or metrics that can't be used during training; reads no files."""
    if not metrics:
        return
    for name in metrics:
        known_name("config", "evaluators", name, METRICS)
        if METRICS[name].subjects:
            raise InputError(f"evaluators: {name} needs subjects, which prompts don't have; use launch.score for it")
        if METRICS[name].reference and not config.reference:
            raise InputError(f"scoring.reference: empty, but {name} compares with real images; give a folder of them")
    require_metrics(config.of(metrics), tuple(METRICS))
    if config.sampler:
        known_name("config", "scoring.sampler", config.sampler, (SCHEDULER, *SAMPLERS))
    whole_number("config", "scoring.steps", config.steps)
    finite_number("config", "scoring.guidance_scale", config.guidance_scale, 0)
    whole_number("config", "scoring.seed", config.seed, 0, MOST_SEED)
    whole_number("config", "scoring.every", config.every, 0)
    whole_number("config", "scoring.images", config.images, FEWEST)
    whole_number("config", "scoring.batch_size", config.batch_size)
