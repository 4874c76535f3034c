"""The settings of `launch.bench` and `launch.cost`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, known_name, whole_number
from bksdm_jax.models.choices import require_attention_name, require_norms_name, require_remat
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pruning.removal import removed_blocks

BENCHES = ("unet", "update", "finetune", "data", "deep_cache", "checkpoints", "scores", "scores_beside")
"""Names of benchmarks."""


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time.

    Attributes:
        what: `unet`: a U-Net call and an image; `update`: a distillation update; `finetune`: a fine-tuning update of
            U-Net and text encoder; `data`: reading data, which depends on `resolution` and `repeats` only;
            `deep_cache`: images of `model` with DeepCache; `checkpoints`: saving the student's training state;
            `scores`: `repeats` batches through the networks of FID, Inception score and CLIP score; `scores_beside`:
            PyTorch's too.
        generation: `v1` or `v2`.
        student: a preset, or a comma-separated list of removed blocks; `sd`: the teacher.
        widths: channels of the U-Net's stages; empty: Stable Diffusion's. With them, `finetune` has a text encoder of
            one layer.
        batch_size: images.
        dtype: of the computations.
        resolution: pixels.
        steps: PNDM steps of the image; 0: time the U-Net only.
        guidance_scale: above 1 the U-Net processes every image twice.
        cut: of a U-Net call with a cached deep feature (`UNet.shallow`), which is timed too; -1: none, or 1 for
            `deep_cache`.
        model: for `deep_cache`: pipeline folder, single file, hub id, or `shapes_teacher`.
        repeats: timed calls.
        checkpoint_every: for `checkpoints`: updates between them.
        seconds_per_update: for `checkpoints`: of the run that is interrupted by them.
        attention: of the U-Net: auto, xla, chunked, cudnn (NVIDIA) or flash (TPU).
        remat: what the update's backward pass recomputes: none, products, attention, blocks or full.
        norms: who computes the sums of group normalisation of the U-Net: xla, or pallas (kernels for NVIDIA GPUs).
        rank: for `finetune`: of LoRAs; 0: all weights are trained.
    """

    what: str = "unet"
    generation: str = "v1"
    student: str = "sd"
    widths: tuple[int, ...] = ()
    batch_size: int = 1
    dtype: str = "float32"
    resolution: int = 512
    steps: int = 25
    guidance_scale: float = 7.5
    cut: int = -1
    model: str = "shapes_teacher"
    repeats: int = 5
    checkpoint_every: int = 1000
    seconds_per_update: float = 1.0
    attention: str = "auto"
    remat: str = "none"
    norms: str = "xla"
    rank: int = 0


def require_bench(config: BenchConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used."""
    known_name("config", "what", config.what, BENCHES)
    known_name("config", "generation", config.generation, TEACHERS)
    removed_blocks(config.student)
    require_dtype(config.dtype)
    require_attention_name(config.attention)
    require_remat(config.remat)
    require_norms_name(config.norms)
    for key, least in (("batch_size", 1), ("resolution", 8), ("steps", 0), ("repeats", 1), ("cut", -1), ("rank", 0)):
        whole_number("config", key, getattr(config, key), least)
    if config.rank and config.what != "finetune":
        raise InputError(f"rank: {config.rank}, but what is {config.what}; only finetune has LoRAs")


@dataclasses.dataclass(frozen=True)
class CostConfig(ModelOptions):
    """What to count.

    Attributes:
        generation: Stable Diffusion `v1` or `v2`; or give a pipeline.
        pipeline: a folder, single file or id on the hub, of which only the configs are read.
        students: presets, or lists of removed blocks (separated by `+` within one list), separated by commas; empty:
            every preset.
        resolution: pixels; 0: the U-Net's own.
        steps: U-Net calls per image.
        latency: time the networks on this device.
        dtype: of the timed computations.
        repeats: timed calls.
    """

    generation: str = ""
    pipeline: str = ""
    resolution: int = 0
    steps: int = 25
    students: str = ""
    latency: bool = False
    dtype: str = "float32"
    repeats: int = 5


def require_cost(config: CostConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used."""
    if bool(config.generation) == bool(config.pipeline):
        raise InputError("generation: give either generation (v1 or v2, as the config's variant) or pipeline")
    if config.generation:
        known_name("config", "generation", config.generation, TEACHERS)
    for name in filter(None, config.students.split(",")):
        removed_blocks(name.replace("+", ","))
    for key, least in (("resolution", 0), ("steps", 1), ("repeats", 1)):
        whole_number("config", key, getattr(config, key), least)
    require_dtype(config.dtype)
