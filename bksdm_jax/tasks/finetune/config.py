"""A fine-tuning run's settings, and their checks; nothing here imports JAX."""

import dataclasses
import operator
from typing import TYPE_CHECKING

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, whole_number
from bksdm_jax.data.options import SourceOptions, require_options
from bksdm_jax.models.choices import require_attention_name, require_norms_name, require_remat
from bksdm_jax.pipelines.config import (
    LORA_LAYOUTS,
    LORA_MAY_CHANGE,
    LoraOptions,
    SaveOptions,
    require_loras,
    require_save,
)
from bksdm_jax.pipelines.generations import GENERATIONS
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pruning.removal import removed_blocks
from bksdm_jax.sampling.config import SamplerConfig, require_text
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig, TrainerConfig, require_trainer_settings

if TYPE_CHECKING:
    from bksdm_jax.diffusion.schedule import ScheduleConfig

_WATCHED = ("log_every", "profile_step", "stack_dump_seconds", "replay", "evaluate_first", "sheets")
_KEPT = ("checkpoint_every", "keep_checkpoints", "keep_every", "without_room", "most_skipped")
_COMPUTED = ("accumulation", "fsdp", "attention", "remat", "norms", "conv_layout", "workers", "topology", "plan")
_SAVED = ("format", "save_dtype", "save_weights", "safety_checker", "adapter.layout")
MAY_CHANGE = ("steps", *_WATCHED, *_KEPT, *_COMPUTED, *_SAVED, "revision", *LORA_MAY_CHANGE, "prior.folder")
"""Keys that don't affect the trained weights and may differ when a run continues; what they name is recorded too."""
MAY_CHANGE_AND_IS_NOTED = ("optimizer.learning_rate",)
"""Those that do, and may."""


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """LoRAs that are trained instead of the weights.

    Attributes:
        rank: of the U-Net's; 0: the weights themselves are trained.
        alpha: updates are scaled by alpha / rank; 0: alpha is the rank.
        modules: the dense layers and convolutions of the U-Net that get one, by the ends of their names in Diffusers.
        text_rank, text_alpha, text_modules: the same for the text encoder, in Transformers; rank 0: as the U-Net's.
        layout: of the file: `kohya`, which most tools read, or `diffusers`.
    """

    rank: int = 0
    alpha: float = 0.0
    modules: tuple[str, ...] = ("to_q", "to_v")
    text_rank: int = 0
    text_alpha: float = 0.0
    text_modules: tuple[str, ...] = ("q_proj", "v_proj")
    layout: str = "kohya"


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """Prior preservation (Ruiz et al. 2023, section 3.2): images of the subject's class keep what the model knows.

    Attributes:
        weight: of the loss on class images; 0: there are none.
        prompt: of the class images, such as `a photo of a dog`.
        images: how many class images are made, in `class_images/` of the workdir.
        model: what makes them: as `model`; empty: `model` itself, before it is trained.
        folder: class images that exist already, in any form that `data` can have, instead of made ones; `prompt` is the
            caption of those without one.
        steps, guidance_scale: of the sampler, which is the model's own.
        batch_size: images per sampling call and device.
    """

    weight: float = 0.0
    prompt: str = ""
    images: int = 200
    model: str = ""
    folder: str = ""
    steps: int = 50
    guidance_scale: float = 7.5
    batch_size: int = 4


@dataclasses.dataclass(frozen=True)
class FinetunePlanConfig:
    """Settings for `launch.plan` only.

    Attributes:
        generation: if no model is given, the Stable Diffusion generation: v1, v2_base or v2.
        student: plan for this student of the model: a preset (bk_base, bk_small, bk_tiny, no_mid), or a comma-separated
            list of removed blocks; empty: for the model itself.
        price: of one chip for an hour, in any currency; 0: unknown.
        largest: find the largest batch, by a second compilation.
        confirm: compile for the largest batch too.
    """

    generation: str = "v1"
    student: str = ""
    price: float = 0.0
    largest: bool = True
    confirm: bool = False


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainerConfig, ModelOptions, LoraOptions, SaveOptions, SourceOptions):
    """A fine-tuning run: DreamBooth or LoRA; see `TrainerConfig` for the trainer's settings.

    Attributes:
        model: what is fine-tuned: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        data: images in any form that `launch.prepare` reads, `shapes_world/NAME`, or cached latents of
            `launch.prepare`.
        caption: of every image that has none: DreamBooth's prompt of the subject, such as `a photo of sks dog`.
        task: what is trained; leave it as it is.
        split: of the data; data without splits are `train`.
        skip_unusable: leave out pairs that can't be used.
        text_encoder: train the text encoder too.
        only: of the U-Net, train these modules alone, by the ends of their names in Diffusers, such as `attn2.to_k`;
            empty: all.
        save_dtype: `float32`, `float16` or `bfloat16`; empty: of a LoRA float16; of a pipeline float32 for trained
            networks, the others as they are.
        adapter, prior, sheets, plan: groups of settings.
        resolution: pixels.
        flip: mirror half of the images.
        random_crop: crop at a random position along the long side instead of the centre.
        cache_latents: encode all images before the first update, and keep their latents in memory (128 KiB for an
            image of 512 pixels, as much again with `flip`).
        crops: random crops of each image that are encoded, if latents are kept.
        workers: processes that read and decode images; 0: use threads.
        caption_dropout: share of images whose caption is replaced by the empty one.
        noise_offset: scale of a normal number per image and channel that is added to the noise; commonly 0.1.
        min_snr_gamma: above 0, each image's loss is weighed by its noise level (Hang et al. 2023, section 3.4);
            commonly 5.
        attention: of the U-Net: auto, xla, chunked, cudnn or cudnn_padded (NVIDIA), flash or splash (TPU).
        remat: what the backward pass recomputes: none, products, attention, blocks or full.
        norms: who computes the sums of group normalisation of the U-Net: xla, or pallas (kernels for NVIDIA GPUs).
        topology: TPUs to plan for, such as `v4:1x1x1`; empty: this machine's devices. For `launch.plan` only.
    """

    model: str
    data: str
    task: str = "finetune"
    split: str = "train"
    skip_unusable: bool = False
    steps: int = dataclasses.field(default=800, kw_only=True)
    batch_size: int = dataclasses.field(default=1, kw_only=True)
    dtype: str = dataclasses.field(default="bfloat16", kw_only=True)
    save_weights: str = dataclasses.field(default="raw", kw_only=True)
    optimizer: OptimizerConfig = dataclasses.field(default=OptimizerConfig(ema_decay=0.0), kw_only=True)
    text_encoder: bool = True
    only: tuple[str, ...] = ()
    adapter: AdapterConfig = AdapterConfig()
    prior: PriorConfig = PriorConfig()
    resolution: int = 512
    flip: bool = False
    random_crop: bool = False
    cache_latents: bool = True
    crops: int = 8
    workers: int = 0
    caption_dropout: float = 0.0
    noise_offset: float = 0.0
    min_snr_gamma: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    norms: str = "xla"
    sheets: SampleGridConfig = SampleGridConfig()
    topology: str = ""
    plan: FinetunePlanConfig = FinetunePlanConfig()

    def grid_sampler(self, schedule: "ScheduleConfig") -> SamplerConfig:
        """The sampler of the sample grids."""
        return self.sheets.sampler(schedule, self.resolution, self.seed, self.attention, self.norms)


def require_finetune(config: FinetuneConfig) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range; reads no files."""
    _require_settings(config)
    if config.prior.weight and not config.prior.prompt and not config.prior.folder:
        raise InputError(
            "prior.prompt: empty; give the prompt of class images, such as "
            '--config.prior.prompt="a photo of a dog", or set prior.weight to 0'
        )


def require_finetune_plan(config: FinetuneConfig) -> None:
    """The same for `launch.plan`, which needs neither a model nor a prompt."""
    _require_settings(config)
    finite_number("config", "plan.price", config.plan.price, 0)
    if not config.model:
        known_name("config", "plan.generation", config.plan.generation, GENERATIONS)
    if config.plan.student:
        removed_blocks(config.plan.student)


def _require_settings(config: FinetuneConfig) -> None:
    require_trainer_settings(config)
    require_loras(config)
    require_save(config.save_config())
    require_attention_name(config.attention)
    require_remat(config.remat)
    require_norms_name(config.norms)
    require_options(config)
    for key in ("resolution", "crops"):
        whole_number("config", key, getattr(config, key))
    for key in ("workers", "sheets.every", "sheets.steps", "adapter.rank", "adapter.text_rank"):
        whole_number("config", key, operator.attrgetter(key)(config), 0)
    for key in ("caption_dropout", "noise_offset", "min_snr_gamma", "adapter.alpha", "adapter.text_alpha"):
        most = 1 if key == "caption_dropout" else float("inf")
        finite_number("config", key, operator.attrgetter(key)(config), 0, most)
    if any(not isinstance(prompt, str) for prompt in config.sheets.prompts):
        raise InputError(f"sheets.prompts: {shown(config.sheets.prompts)}; expected strings")
    if config.save_weights == "ema" and not config.optimizer.ema_decay:
        raise InputError("save_weights: 'ema', but optimizer.ema_decay is 0, so there is no moving average; use raw")
    for key in ("caption", "prior.prompt"):
        require_text(key, operator.attrgetter(key)(config))
    _require_adapter(config)
    _require_prior(config.prior)


def _require_adapter(config: FinetuneConfig) -> None:
    adapter = config.adapter
    known_name("config", "adapter.layout", adapter.layout, LORA_LAYOUTS)
    if adapter.text_rank and not adapter.rank:
        raise InputError(f"adapter.text_rank: {adapter.text_rank}, but adapter.rank is 0: all weights are trained")
    if adapter.rank and config.only:
        raise InputError("only: a LoRA's modules are adapter.modules; leave only empty, or set adapter.rank to 0")
    chosen = {"only": config.only, "adapter.modules": adapter.modules, "adapter.text_modules": adapter.text_modules}
    for key, names in chosen.items():
        if any(not isinstance(name, str) or not name for name in names):
            raise InputError(f"{key}: {shown(names)}; expected ends of modules' names, such as to_q")


def _require_prior(prior: PriorConfig) -> None:
    finite_number("config", "prior.weight", prior.weight, 0)
    for key in ("images", "steps", "batch_size"):
        whole_number("config", f"prior.{key}", getattr(prior, key))
    finite_number("config", "prior.guidance_scale", prior.guidance_scale, 0)
