"""A distillation run's settings, and their checks."""

import dataclasses
import operator

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.diffusion.schedule import ScheduleConfig
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
from bksdm_jax.training.scoring import ScoringConfig, require_scoring

_EVALUATED = ("sheets", "validation", "evaluators", "scoring")
_WATCHED = ("log_every", "checkpoint_every", "keep_checkpoints", "profile_step", *_EVALUATED)
_COMPUTED = ("accumulation", "fsdp", "attention", "remat", "workers", "topology", "plan")
_SAVED = ("format", "save_dtype", "save_weights", "safety_checker")
MAY_CHANGE = ("steps", *_WATCHED, *_COMPUTED, *_SAVED, "revision")  # the teacher's folder is recorded, with its commit
"""Keys that don't affect the trained weights and may differ when a run continues."""


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """Losses on held-out images.

    Attributes:
        every: optimiser updates between validations; 0: once at the end.
        images: number of images, rounded up to whole micro-batches; 0: no validation.
        split: of the TFDS dataset; empty: `validation` or `heldout` if it has one.
    """

    every: int = 1000
    images: int = 512
    split: str = ""


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Settings for `launch.plan` only.

    Attributes:
        cached: plan for cached latents rather than images.
        price: of one chip for an hour, in any currency; 0: unknown.
        largest: find the largest batch, by a second compilation.
        confirm: compile for the largest batch too.
    """

    cached: bool = True
    price: float = 0.0
    largest: bool = True
    confirm: bool = False


@dataclasses.dataclass(frozen=True)
class DistillConfig(TrainerConfig, ModelOptions, InitOptions, SaveOptions):
    """A distillation run; see `TrainerConfig` for the trainer's settings.

    Defaults are the reference run's (section 4 of the paper).

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        student: a preset, or a comma-separated list of removed blocks.
        data: image folder with `metadata.csv`, folder of a TFDS dataset with `image` and `text` or with cached latents,
            or `shapes_world/demo`.
        split: of the TFDS dataset.
        generation: the Stable Diffusion generation, a key of `GENERATIONS`, that the settings are for: teachers of
            another one are rejected, and `launch.plan` uses its networks if no teacher is given; empty: any.
        examples: train on the first `examples` only; 0: on all.
        resolution: pixels.
        flip: mirror half of the images.
        random_crop: crop at a random position along the long side instead of the centre.
        workers: processes that read and decode images; 0: use threads.
        caption_dropout, noise_offset: see `Augmentation`.
        attention: of the U-Nets, a key of `attention.IMPLEMENTATIONS`.
        remat: what the backward pass recomputes, a key of `remat.POLICIES`.
        topology: TPUs to plan for, such as `v4:2x2x4`; empty: this machine's devices. For `launch.plan` only.
        evaluators: metrics of the images that the moving average makes, keys of `METRICS`; they go to `scores.csv`.
        loss, validation, sheets, scoring, plan: see `LossWeights`, `ValidationConfig`, `SampleGridConfig`,
            `ScoringConfig`, `PlanConfig`.
        revision, variant, tokenizer, prediction: of the teacher, see `ModelSource`.
        student_init, init_revision, init_variant: the student's initial weights, see `InitOptions`.
        format, save_dtype, safety_checker: of the final `model/`, see `SaveConfig`.
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
    evaluators: tuple[str, ...] = ()
    scoring: ScoringConfig = ScoringConfig()
    topology: str = ""
    plan: PlanConfig = PlanConfig()

    def grid_sampler(self, schedule: ScheduleConfig) -> SamplerConfig:
        """The sampler of the sample grids: PNDM, or DDIM where PNDM isn't defined."""
        return SamplerConfig(
            steps=self.sheets.steps,
            guidance_scale=self.sheets.guidance_scale,
            resolution=self.resolution,
            sampler=_usual_sampler(schedule),
            seed=self.seed,
            attention=self.attention,
        )

    def scoring_sampler(self, schedule: ScheduleConfig) -> SamplerConfig:
        """The sampler of the images that `evaluators` score."""
        return SamplerConfig(
            steps=self.scoring.steps,
            guidance_scale=self.scoring.guidance_scale,
            resolution=self.resolution,
            sampler=self.scoring.sampler or _usual_sampler(schedule),
            seed=self.scoring.seed,
            attention=self.attention,
        )


def _usual_sampler(schedule: ScheduleConfig) -> str:
    return "ddim" if schedule.zero_snr or schedule.prediction_type == "sample" else "pndm"


def require_settings(config: DistillConfig) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range; reads no files."""
    require_trainer_settings(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_remat(config.remat)
    if config.generation:
        known_name("config", "generation", config.generation, GENERATIONS)
    whole_number("config", "resolution", config.resolution)
    for key in ("examples", "workers", "sheets.every", "sheets.steps", "validation.every", "validation.images"):
        whole_number("config", key, operator.attrgetter(key)(config), 0)
    if any(not isinstance(prompt, str) for prompt in config.sheets.prompts):
        raise InputError(f"sheets.prompts: {config.sheets.prompts}; expected strings")
    config.loss.require_valid()
    require_scoring(config.scoring, config.evaluators)
    finite_number("config", "caption_dropout", config.caption_dropout, 0, 1)
    finite_number("config", "noise_offset", config.noise_offset, 0)


def require_generation(config: DistillConfig, teacher: Architectures) -> None:
    """Raises `InputError` if the settings are for another generation than the teacher's.

    The width of the text states distinguishes SD 1.x from 2.x, and the prediction type the two sizes of 2.x; teachers
    of other widths are accepted.
    """
    width, predicts = teacher.denoiser.context_width, teacher.schedule.prediction_type
    of_width = {name: pair for name, pair in GENERATIONS.items() if TEACHERS[pair[0]]["cross_attention_dim"] == width}
    fitting = [name for name, (_, prediction_type) in of_width.items() if prediction_type in ("", predicts)]
    if config.generation and fitting and config.generation not in fitting:
        raise InputError(
            f"teacher: {config.teacher} has text states of {width} channels and predicts {predicts}, like Stable "
            f"Diffusion {fitting[0]}, but these settings are for {config.generation}; use the variant {fitting[0]} "
            "in --config, or accept any teacher with --config.generation="
        )
