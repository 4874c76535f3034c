"""A distillation run's settings, and what must hold among them."""

import dataclasses
import math

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.attention import require_attention
from bksdm_jax.models.remat import require_remat
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.stable_diffusion import GENERATIONS, TEACHERS
from bksdm_jax.sampling.text_to_image import MOST_SEED
from bksdm_jax.tasks.distill.losses import LossWeights
from bksdm_jax.tasks.distill.objective import Augmentation
from bksdm_jax.training.profile import PROFILED
from bksdm_jax.training.program import ProgramConfig
from bksdm_jax.training.sample_grids import SheetConfig
from bksdm_jax.training.state import OptimizerConfig

MAY_CHANGE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "accumulation",
    "sheets",
    "validation",
    "profile_step",
    "fsdp",
    "attention",
    "remat",
    "format",
    "save_dtype",
    "save_weights",
    "safety_checker",
    "workers",
    "topology",
    "plan",
    "revision",  # the teacher's folder is recorded, with its commit
)
"""Keys that don't change what is trained, and so may differ when a run goes on."""

_BELOW_1 = math.nextafter(1, 0)

WEIGHTS = {"ema": "the moving average", "raw": "those of the last update"}
"""The student's weights that `model/` may hold -> what the model card calls them."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Losses on held-out images.

    Attributes:
        every: optimiser updates between them; 0: once at the end.
        images: how many, rounded up to whole micro-batches; 0: no validation.
        split: of the TFDS set; empty: `validation` or `heldout`, where there is one.
    """

    every: int = 1000
    images: int = 512
    split: str = ""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What `launch.plan` asks besides the run; training doesn't.

    Attributes:
        cached: whether the data are cached latents.
        price: of one chip for an hour, in whatever money; 0: not known.
        largest: find the largest batch, by a second compilation; and
        confirm: compile that too.
    """

    cached: bool = True
    price: float = 0.0
    largest: bool = True
    confirm: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A distillation run.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        revision: branch, tag or commit of a teacher from the hub.
        variant: of the teacher's weights, `fp16`, `non_ema`, ...; empty: the plain ones.
        student: a preset, or a comma-separated list of removed blocks.
        student_init, init_revision, init_variant: `teacher`, `random`, or a pipeline whose U-Net is that student, as
            `StudentInit` has them: training goes on from it.
        data: image folder with `metadata.csv`, folder of a TFDS set with `image` and `text` or with cached latents, or
            `shapes_world/demo`.
        split: of the TFDS set.
        generation: of Stable Diffusion, a key of `presets.GENERATIONS`, that the settings are meant for: a teacher of
            another one is refused, and `launch.plan` takes its networks where no teacher is named; empty: any.
        examples: train on the first so many; 0: on all.
        resolution: pixels.
        flip: mirror half of the images.
        random_crop: crop anywhere along the long side, not in the middle.
        workers: processes that read and decode images; 0: threads do.
        caption_dropout, noise_offset: as `Augmentation` has them.
        seed: of everything random.
        steps: optimiser updates.
        batch_size: images per optimiser update.
        accumulation: micro-batches that an update is made of.
        dtype: of the networks' computations.
        attention: of the U-Nets, a key of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass computes anew, a key of `remat.POLICIES`.
        fsdp: how many devices share one copy of the parameters.
        log_every, checkpoint_every: optimiser updates.
        keep_checkpoints: how many of the newest stay; 0: all.
        save_weights: which of the student's are written, a key of `WEIGHTS`.
        format, save_dtype, safety_checker: of the final `model/`, as `SaveConfig` has them.
        tokenizer, prediction: what a single-file teacher doesn't say: a folder or id on the hub; `epsilon` or
            `v_prediction`.
        profile_step: the first of three updates that the profiler watches; 0: none.
        topology: TPUs to plan for, `v4:2x2x4`; empty: this machine's devices. Of `launch.plan` alone, as `plan` is.
        loss, optimizer, validation, sheets, plan: see there.
    """

    teacher: str
    student: str
    data: str
    split: str = "train"
    student_init: str = "teacher"
    resolution: int = 512
    flip: bool = True
    seed: int = 1234
    steps: int = 50_000
    batch_size: int = 256
    accumulation: int = 4
    dtype: str = "bfloat16"
    fsdp: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    format: str = "safetensors"
    loss: LossWeights = LossWeights()
    optimizer: OptimizerConfig = OptimizerConfig()
    sheets: SheetConfig = SheetConfig()
    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction: str = ""
    attention: str = "auto"
    remat: str = "none"
    save_dtype: str = ""
    save_weights: str = "ema"
    safety_checker: bool = True
    init_revision: str = ""
    init_variant: str = ""
    random_crop: bool = False
    workers: int = 0
    caption_dropout: float = 0.0
    noise_offset: float = 0.0
    examples: int = 0
    generation: str = ""
    validation: ValidationConfig = ValidationConfig()
    profile_step: int = 0
    topology: str = ""
    plan: PlanConfig = PlanConfig()


def require_settings(config: TrainConfig) -> None:
    """Holds every number to its range before anything is read; raises `InputError` with the key."""
    require_attention(config.attention, compute_dtype(config.dtype))
    known_name("config", "save_weights", config.save_weights, WEIGHTS)
    require_remat(config.remat)
    if config.generation:
        known_name("config", "generation", config.generation, GENERATIONS)
    whole = {"steps": 1, "batch_size": 1, "accumulation": 1, "resolution": 1, "fsdp": 1}
    whole |= {"examples": 0, "workers": 0, "log_every": 0, "checkpoint_every": 0, "keep_checkpoints": 0}
    for key, least in whole.items():
        whole_number("config", key, getattr(config, key), least)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    for key in ("every", "steps"):
        whole_number("config", f"sheets.{key}", getattr(config.sheets, key), 0)
    for key in ("every", "images"):
        whole_number("config", f"validation.{key}", getattr(config.validation, key), 0)
    whole_number("config", "profile_step", config.profile_step, 0)
    if config.profile_step > max(config.steps - PROFILED + 1, 0):
        raise InputError(
            f"profile_step: {config.profile_step}, {PROFILED} updates from there on aren't in {config.steps}"
        )
    if any(not isinstance(prompt, str) for prompt in config.sheets.prompts):
        raise InputError(f"sheets.prompts: {config.sheets.prompts}; expected texts")
    for key in ("warmup_steps", "cosine_steps"):
        whole_number("config", f"optimizer.{key}", getattr(config.optimizer, key), 0)
    _require_schedule(config)
    for key in ("task", "output", "feature", "min_snr_gamma"):
        finite_number("config", f"loss.{key}", getattr(config.loss, key), 0)
    finite_number("config", "caption_dropout", config.caption_dropout, 0, 1)
    finite_number("config", "noise_offset", config.noise_offset, 0)
    bounds = {"learning_rate": (0, math.inf), "weight_decay": (0, math.inf), "ema_decay": (0, 1)}
    bounds |= {
        "beta1": (0, _BELOW_1),
        "beta2": (0, _BELOW_1),
        "epsilon": (1e-30, math.inf),
        "clip_norm": (1e-30, math.inf),
    }
    for key, (least, most) in bounds.items():
        finite_number("config", f"optimizer.{key}", getattr(config.optimizer, key), least, most)


def _require_schedule(config: TrainConfig) -> None:
    warmup, cosine = config.optimizer.warmup_steps, config.optimizer.cosine_steps
    if 0 < cosine < config.steps:
        raise InputError(
            f"optimizer.cosine_steps: {cosine}, fewer than steps {config.steps}: the rest would learn nothing; "
            "set both alike, or cosine_steps to 0 for a constant rate"
        )
    if 0 < cosine <= warmup:
        raise InputError(f"optimizer.warmup_steps: {warmup}, not below optimizer.cosine_steps {cosine}")


def require_whole_batches(config: TrainConfig, devices: int) -> None:
    """Raises `InputError` if so many devices can't share each micro-batch evenly."""
    shards = config.accumulation * devices
    if config.batch_size % shards:
        raise InputError(
            f"batch_size: {config.batch_size} doesn't divide by accumulation {config.accumulation} "
            f"x {devices} device(s) = {shards}"
        )


def program_config(config: TrainConfig, cached: bool, empty_tokens: tuple[int, ...] = ()) -> ProgramConfig:
    """What of a run's settings its update depends on; `empty_tokens` as `Augmentation` has them."""
    return ProgramConfig(
        config.resolution,
        config.batch_size,
        config.accumulation,
        cached,
        compute_dtype(config.dtype),
        config.attention,
        config.remat,
        config.seed,
        config.loss,
        config.optimizer,
        Augmentation(config.caption_dropout, empty_tokens, config.noise_offset),
    )


def require_generation(config: TrainConfig, teacher: Architectures) -> None:
    """Raises `InputError` if the teacher is of another generation than the settings.

    Text states tell SD 1.x from 2.x, and what the U-Net predicts the two sizes of 2.x; a teacher with text states of
    neither width may be anything.
    """
    width, predicts = teacher.unet.context_width, teacher.schedule.prediction
    of_width = {name: pair for name, pair in GENERATIONS.items() if TEACHERS[pair[0]]["cross_attention_dim"] == width}
    fitting = [name for name, (_, prediction) in of_width.items() if prediction in ("", predicts)]
    if config.generation and fitting and config.generation not in fitting:
        raise InputError(
            f"teacher: {config.teacher} takes text states of {width} channels and predicts {predicts}, as Stable "
            f"Diffusion {fitting[0]}, and these settings are for {config.generation}; name the variant {fitting[0]} "
            "in --config, or take any teacher with --config.generation="
        )
