"""A distillation run's settings, and their checks; nothing here imports JAX."""

import dataclasses
import operator
from typing import TYPE_CHECKING

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, whole_number
from bksdm_jax.data.options import SourceOptions, require_options
from bksdm_jax.models.choices import require_attention_name, require_norms_name, require_remat
from bksdm_jax.pipelines.config import LORA_MAY_CHANGE, LoraOptions, SaveOptions, require_loras, require_save
from bksdm_jax.pipelines.generations import GENERATIONS, TEACHERS
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pruning.config import InitOptions, require_student
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.tasks.distill.features import SOURCES
from bksdm_jax.training.config import (
    SampleGridConfig,
    ScoringConfig,
    TrainerConfig,
    require_scoring,
    require_trainer_settings,
    usual_sampler,
)

if TYPE_CHECKING:
    from bksdm_jax.diffusion.schedule import ScheduleConfig
    from bksdm_jax.pipelines.pipeline import Architectures

_EVALUATED = ("evaluate_first", "sheets", "validation", "evaluators", "scoring")
_WATCHED = ("log_every", "profile_step", "stack_dump_seconds", "replay", *_EVALUATED)
_KEPT = ("checkpoint_every", "keep_checkpoints", "keep_every", "without_room", "most_skipped")
_COMPUTED = ("accumulation", "fsdp", "attention", "remat", "norms", "conv_layout", "workers", "topology", "plan")
_NAMED = ("revision", "block_scores", *LORA_MAY_CHANGE)  # what they name is recorded too
_SAVED = ("format", "save_dtype", "save_weights", "safety_checker")
MAY_CHANGE = ("steps", "skip_unusable", *_WATCHED, *_KEPT, *_COMPUTED, *_SAVED, *_NAMED)
"""Keys that don't affect the trained weights and may differ when a run continues."""
MAY_CHANGE_AND_IS_NOTED = ("optimizer.learning_rate",)
"""Those that do, and may."""


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights and options of the loss; with output and feature both 0 the teacher isn't run.

    Attributes:
        task, output, feature: weight of this term.
        min_snr_gamma: above 0, the task term weighs each image by its noise level (Hang et al. 2023, section
            3.4); commonly 5.
        feature_source: which features are compared: `stages`, or `self_attention` (as in KOALA).
        feature_scales: `NAME=WEIGHT` for a student's feature, or for all features of a stage, such as
            `up_blocks.3=0.5`; the last match counts, and the default is 1.
    """

    task: float = 1.0
    output: float = 1.0
    feature: float = 1.0
    min_snr_gamma: float = 0.0
    feature_source: str = "stages"
    feature_scales: tuple[str, ...] = ()

    def require_valid(self) -> None:
        """Raises `InputError` with the key of a bad weight or source; `weighted_pairs` checks `feature_scales`."""
        for field in dataclasses.fields(self):
            if isinstance(field.default, float):
                finite_number("config", f"loss.{field.name}", getattr(self, field.name), 0)
        known_name("config", "loss.feature_source", self.feature_source, SOURCES)

    @property
    def distils(self) -> bool:
        """Whether the teacher is needed."""
        return self.output != 0 or self.feature != 0


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
class DistillConfig(TrainerConfig, ModelOptions, LoraOptions, InitOptions, SaveOptions, SourceOptions):
    """A distillation run; see `TrainerConfig` for the trainer's settings.

    Defaults are the reference run's (section 4 of the paper).

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        student: a preset (bk_base, bk_small, bk_tiny, no_mid), a comma-separated list of removed blocks, or a criterion
            and a size, such as `taylor:482M` (parameters) or `taylor:217G` (multiply-adds).
        data: images with captions in any form that `launch.prepare` reads, a TFDS dataset that it wrote, of images or
            of cached latents, or `shapes_world/demo`.
        split: of the data; data without splits are `train`.
        skip_unusable: leave out pairs that can't be used; a damaged image is replaced by the next one, and
            `skipped.csv` lists it.
        generation: the Stable Diffusion generation that the settings are for, v1, v2_base or v2: teachers of another
            one are rejected, and `launch.plan` uses its networks if no teacher is given; empty: any.
        examples: train on the first `examples` only; 0: on all.
        resolution: pixels.
        flip: mirror half of the images.
        random_crop: crop at a random position along the long side instead of the centre.
        workers: processes that read and decode images; 0: use threads.
        caption_dropout: share of images whose caption is replaced by the empty one.
        noise_offset: scale of a normal number per image and channel that is added to the noise; commonly 0.1.
        attention: of the U-Nets: auto, xla, chunked, cudnn or cudnn_padded (NVIDIA), flash or splash (TPU).
        remat: what the backward pass recomputes: none, products, attention, blocks or full.
        norms: who computes the sums of group normalisation of the U-Nets: xla, or pallas (kernels for NVIDIA GPUs).
        topology: TPUs to plan for, such as `v4:2x2x4`; empty: this machine's devices. For `launch.plan` only.
        evaluators: metrics of the images that the moving average makes, such as clip_score; they go to `scores.csv`.
        loss, validation, sheets, scoring, plan: groups of settings.
    """

    teacher: str
    student: str
    data: str
    split: str = "train"
    skip_unusable: bool = False
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
    norms: str = "xla"
    validation: ValidationConfig = ValidationConfig()
    evaluators: tuple[str, ...] = ()
    scoring: ScoringConfig = ScoringConfig()
    topology: str = ""
    plan: PlanConfig = PlanConfig()

    def grid_sampler(self, schedule: "ScheduleConfig") -> SamplerConfig:
        """The sampler of the sample grids."""
        return self.sheets.sampler(schedule, self.resolution, self.seed, self.attention, self.norms)

    def scoring_sampler(self, schedule: "ScheduleConfig") -> SamplerConfig:
        """The sampler of the images that `evaluators` score."""
        return SamplerConfig(
            steps=self.scoring.steps,
            guidance_scale=self.scoring.guidance_scale,
            resolution=self.resolution,
            sampler=self.scoring.sampler or usual_sampler(schedule),
            seed=self.scoring.seed,
            attention=self.attention,
            norms=self.norms,
        )


def require_settings(config: DistillConfig) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range; reads no files."""
    require_trainer_settings(config)
    require_student(config.student, config.block_scores)
    require_loras(config)
    require_save(config.save_config())
    require_attention_name(config.attention)
    require_remat(config.remat)
    require_norms_name(config.norms)
    if config.generation:
        known_name("config", "generation", config.generation, GENERATIONS)
    whole_number("config", "resolution", config.resolution)
    require_options(config)
    for key in ("examples", "workers", "sheets.every", "sheets.steps", "validation.every", "validation.images"):
        whole_number("config", key, operator.attrgetter(key)(config), 0)
    if any(not isinstance(prompt, str) for prompt in config.sheets.prompts):
        raise InputError(f"sheets.prompts: {shown(config.sheets.prompts)}; expected strings")
    config.loss.require_valid()
    require_scoring(config.scoring, config.evaluators)
    finite_number("config", "caption_dropout", config.caption_dropout, 0, 1)
    finite_number("config", "noise_offset", config.noise_offset, 0)


def require_plan(config: DistillConfig) -> None:
    """The same for `launch.plan`, which needs no teacher."""
    require_settings(config)
    finite_number("config", "plan.price", config.plan.price, 0)
    if not config.teacher:
        known_name("config", "generation", config.generation, GENERATIONS)


def require_generation(config: DistillConfig, teacher: "Architectures") -> None:
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
