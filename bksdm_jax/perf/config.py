"""The settings of `launch.bench` and `launch.cost`; nothing here imports JAX."""

import dataclasses
import os
import shlex
from pathlib import Path

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, in_short, known_name, shown, whole_number
from bksdm_jax.base.paths import local_path
from bksdm_jax.models.choices import require_attention_name, require_norms_name, require_remat
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pruning.removal import removed_blocks
from bksdm_jax.training.config import require_conv_layout

BENCHES = ("unet", "update", "finetune", "data", "deep_cache", "checkpoints", "scores", "scores_beside")
"""Names of benchmarks."""
MEASURED = ("unet", "update", "finetune")
"""Those that time compiled programs, with their rates."""
_LEAST = {"batch_size": 1, "resolution": 8, "steps": 0, "repeats": 1, "cut": -1, "rank": 0, "beside_timeout": 1}


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
        repeats: timed calls; once one by one, and once pipelined, each issued without waiting for the former.
        checkpoint_every: for `checkpoints`: updates between them.
        seconds_per_update: for `checkpoints`: of the run that is interrupted by them.
        attention: of the U-Net: auto, xla, chunked, cudnn or cudnn_padded (NVIDIA), flash or splash (TPU).
        remat: what the update's backward pass recomputes: none, products, attention, blocks or full.
        norms: who computes the sums of group normalisation of the U-Net: xla, or pallas (kernels for NVIDIA GPUs).
        conv_layout: for updates: how the weights of convolutions lie in memory: hwio, or ohwi, as cuDNN reads them.
        rank: for `finetune`: of LoRAs; 0: all weights are trained.
        profile: for `unet` (the image or, with 0 steps, the call), `update` and `finetune`: a folder for a trace of a
            few more calls, which is kept for TensorBoard or Perfetto; prints the time of their kernels by kind. Empty:
            none.
        beside: for the same: another program's command line, which runs first and to its end; the last line of JSON
            that it prints has to give `images_per_s`, or `median_s` of a batch. Empty: none.
        beside_timeout: seconds that it may take.
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
    conv_layout: str = "hwio"
    rank: int = 0
    profile: str = ""
    beside: str = ""
    beside_timeout: int = 3600


def require_bench(config: BenchConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used."""
    known_name("config", "what", config.what, BENCHES)
    known_name("config", "generation", config.generation, TEACHERS)
    removed_blocks(config.student)
    require_dtype(config.dtype)
    require_attention_name(config.attention)
    require_remat(config.remat)
    require_norms_name(config.norms)
    require_conv_layout(config.conv_layout)
    for key, least in _LEAST.items():
        whole_number("config", key, getattr(config, key), least)
    if config.rank and config.what != "finetune":
        raise InputError(f"rank: {config.rank}, but what is {config.what}; only finetune has LoRAs")
    if config.conv_layout != BenchConfig.conv_layout and config.what not in ("update", "finetune"):
        raise InputError(f"conv_layout: {config.conv_layout}, but what is {config.what}; only for update and finetune")
    for key in ("profile", "beside"):
        if getattr(config, key) and config.what not in MEASURED:
            known = ", ".join(MEASURED)
            raise InputError(f"{key}: {shown(getattr(config, key))}, but what is {config.what}; only for {known}")
    if config.profile:
        require_trace_folder(config.profile)
    if config.beside:
        split_command(config.beside)


def require_trace_folder(name: str) -> Path:
    """The folder for a trace; raises `InputError` unless it is missing, empty, or holds nothing but JAX's traces."""
    if "://" in name:
        raise InputError(f"profile: {name!r}; expected a local or mounted folder")
    folder = local_path("profile", name)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"profile: {folder} is a file; expected a folder")
    try:
        others = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise InputError(f"profile: {folder} can't be read ({in_short(error)})") from error
    if others and others != ["plugins"]:
        other = next(name for name in others if name != "plugins")
        raise InputError(f"profile: {folder} holds {shown(other)}; expected a new folder, or one of earlier traces")
    return folder


def make_trace_folder(name: str) -> Path:
    """Makes the folder of `require_trace_folder`; raises `InputError` if it can't be written."""
    folder = require_trace_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"profile: {folder} can't be made ({in_short(error)})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"profile: {folder} can't be written; choose another folder")
    return folder


def split_command(command: str) -> list[str]:
    """The arguments of a command line; raises `InputError` if there are none or a quotation isn't closed."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise InputError(f"beside: {shown(command)} is no command line ({in_short(error)})") from error
    if not arguments:
        raise InputError(f"beside: {shown(command)}; expected a command line")
    return arguments


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
