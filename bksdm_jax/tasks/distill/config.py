"""A distillation run's settings, and what must hold among them."""

import dataclasses

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.attention import require_attention
from bksdm_jax.models.remat import require_remat
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.save import SaveOptions
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pipelines.stable_diffusion import GENERATIONS, TEACHERS
from bksdm_jax.pruning.prune import InitOptions
from bksdm_jax.sampling.text_to_image import SamplerConfig
from bksdm_jax.tasks.distill.losses import LossWeights
from bksdm_jax.training.config import TrainerConfig, require_trainer_settings
from bksdm_jax.training.sample_grids import SampleGridConfig

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
class DistillConfig(TrainerConfig, ModelOptions, InitOptions, SaveOptions):
    """A distillation run. Settings of every training are explained in `TrainerConfig`.

    Defaults are the reference run's (section 4 of the paper).

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        student: a preset, or a comma-separated list of removed blocks.
        data: image folder with `metadata.csv`, folder of a TFDS dataset with `image` and `text` or with cached latents,
            or `shapes_world/demo`.
        split: of the TFDS dataset.
        generation: of Stable Diffusion, a key of `GENERATIONS`, that the settings are meant for: a teacher of another
            one is refused, and `launch.plan` takes its networks where no teacher is named; empty: any.
        examples: train on the first so many; 0: on all.
        resolution: pixels.
        flip: mirror half of the images.
        random_crop: crop anywhere along the long side, not in the middle.
        workers: processes that read and decode images; 0: threads do.
        caption_dropout, noise_offset: as `Augmentation` has them.
        attention: of the U-Nets, a key of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass recomputes, a key of `remat.POLICIES`.
        topology: TPUs to plan for, `v4:2x2x4`; empty: this machine's devices. Of `launch.plan` alone, as `plan` is.
        loss, validation, sheets, plan: see there.
        revision, variant, tokenizer, prediction: of the teacher, as `ModelSource` has them.
        student_init, init_revision, init_variant: where the student starts, as `StudentInit` has them.
        format, save_dtype, safety_checker: of the final `model/`, as `SaveConfig` has them.
    """

    teacher: str
    student: str
    data: str
    split: str = "train"
    generation: str = ""
    seed: int = dataclasses.field(default=1234, kw_only=True)
    steps: int = dataclasses.field(default=50_000, kw_only=True)
    batch_size: int = dataclasses.field(default=256, kw_only=True)
    accumulation: int = dataclasses.field(default=4, kw_only=True)
    dtype: str = dataclasses.field(default="bfloat16", kw_only=True)
    loss: LossWeights = LossWeights()
    resolution: int = 512
    flip: bool = True
    random_crop: bool = False
    workers: int = 0
    examples: int = 0
    sheets: SampleGridConfig = SampleGridConfig()
    caption_dropout: float = 0.0
    noise_offset: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    validation: ValidationConfig = ValidationConfig()
    topology: str = ""
    plan: PlanConfig = PlanConfig()

    def grid_sampler(self) -> SamplerConfig:
        """How sample grids are drawn."""
        sheets = self.sheets
        return SamplerConfig(
            sheets.steps, sheets.guidance_scale, self.resolution, seed=self.seed, attention=self.attention
        )


def require_settings(config: DistillConfig) -> None:
    """Holds every setting to its range before anything is read; raises `InputError` with the key."""
    require_trainer_settings(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_remat(config.remat)
    if config.generation:
        known_name("config", "generation", config.generation, GENERATIONS)
    for key, least in {"resolution": 1, "examples": 0, "workers": 0}.items():
        whole_number("config", key, getattr(config, key), least)
    for key in ("every", "steps"):
        whole_number("config", f"sheets.{key}", getattr(config.sheets, key), 0)
    for key in ("every", "images"):
        whole_number("config", f"validation.{key}", getattr(config.validation, key), 0)
    if any(not isinstance(prompt, str) for prompt in config.sheets.prompts):
        raise InputError(f"sheets.prompts: {config.sheets.prompts}; expected texts")
    config.loss.require_valid()
    finite_number("config", "caption_dropout", config.caption_dropout, 0, 1)
    finite_number("config", "noise_offset", config.noise_offset, 0)


def require_generation(config: DistillConfig, teacher: Architectures) -> None:
    """Raises `InputError` if the teacher is of another generation than the settings.

    Text states tell SD 1.x from 2.x, and what the U-Net predicts the two sizes of 2.x; a teacher with text states of
    neither width may be anything.
    """
    width, predicts = teacher.denoiser.context_width, teacher.schedule.prediction_type
    of_width = {name: pair for name, pair in GENERATIONS.items() if TEACHERS[pair[0]]["cross_attention_dim"] == width}
    fitting = [name for name, (_, prediction_type) in of_width.items() if prediction_type in ("", predicts)]
    if config.generation and fitting and config.generation not in fitting:
        raise InputError(
            f"teacher: {config.teacher} takes text states of {width} channels and predicts {predicts}, as Stable "
            f"Diffusion {fitting[0]}, and these settings are for {config.generation}; name the variant {fitting[0]} "
            "in --config, or take any teacher with --config.generation="
        )
