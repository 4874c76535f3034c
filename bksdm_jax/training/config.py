"""The trainer's settings, common to all tasks."""

import dataclasses
import math

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.sampling.text_to_image import MOST_SEED
from bksdm_jax.training.state import OptimizerConfig

PROFILED = 3
"""Number of profiled updates."""
_BELOW_1 = math.nextafter(1, 0)
WEIGHTS = {"ema": "the moving average", "raw": "those of the last update"}
"""The weights that a run can return -> their description in model cards."""


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
        log_every, checkpoint_every: in optimiser updates.
        keep_checkpoints: how many of the newest are kept; 0: all.
        profile_step: the first of `PROFILED` updates to profile; 0: none.
        save_weights: the weights that the run returns, a key of `WEIGHTS`.
        optimizer: see `OptimizerConfig`.
    """

    steps: int
    batch_size: int
    accumulation: int = 1
    dtype: str = "float32"
    save_weights: str = "ema"
    seed: int = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    profile_step: int = 0
    fsdp: int = 1


def require_trainer_settings(config: TrainerConfig) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range."""
    compute_dtype(config.dtype)
    known_name("config", "save_weights", config.save_weights, WEIGHTS)
    for key in ("steps", "batch_size", "accumulation", "fsdp"):
        whole_number("config", key, getattr(config, key))
    for key in ("log_every", "checkpoint_every", "keep_checkpoints", "profile_step"):
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


def require_whole_batches(config: TrainerConfig, devices: int) -> None:
    """Raises `InputError` if the devices can't share each micro-batch evenly."""
    shards = config.accumulation * devices
    if config.batch_size % shards:
        raise InputError(
            f"batch_size: {config.batch_size} isn't a multiple of accumulation {config.accumulation} "
            f"x {devices} device(s) = {shards}"
        )
