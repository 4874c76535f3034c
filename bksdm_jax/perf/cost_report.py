"""The cost of one image (text encoder, U-Net, decoder) for a teacher and its students."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.precision import compute_dtype, exact_products
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.cost.table import image_table
from bksdm_jax.cost.timing import arbitrary_weights, time_program
from bksdm_jax.models.clip import CLIPTextEncoder, clip_text_parameter_shapes
from bksdm_jax.models.unet import UNet, parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.models.vae import VAE, vae_parameter_shapes
from bksdm_jax.perf.config import CostConfig, require_cost
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.sampling.text_to_image import require_resolution


def cost_report(config: CostConfig) -> str:
    """The table of a teacher and its students, with `latency` also their networks' times.

    Raises `InputError` for settings that can't be used and pipelines that can't be read.
    """
    require_cost(config)
    if config.generation:
        teacher = stable_diffusion(config.generation)
    else:
        source = dataclasses.replace(config.source(config.pipeline), any_prediction=True)
        teacher = find_model(source, networks=()).architectures
    names = [name.replace("+", ",") for name in config.students.split(",") if name.strip()]
    models = {"teacher": teacher}
    with waiting("planning the students", QUIET):
        for name in names or _possible(teacher.denoiser):
            plan = plan_removal(teacher.denoiser, removed_blocks(name))
            models[name] = teacher.with_denoiser(plan.student)
    resolution = config.resolution or teacher.resolution
    size = resolution // teacher.factor
    require_resolution(resolution, teacher)
    with waiting("counting", QUIET):
        table = image_table(models, size, config.steps)
    lines = [
        table,
        f"image: {resolution}x{resolution} pixels, text encoder once, U-Net {config.steps} times, decoder once "
        "(guidance doubles the first two; PNDM calls the U-Net once more)",
    ]
    if config.latency:
        lines += ["", _latencies(models, size, config)]
    return "\n".join(lines)


def _possible(teacher: UNetConfig) -> list[str]:
    """The presets whose removed blocks this teacher has."""
    found = []
    for name, preset in PRESETS.items():
        with contextlib.suppress(InputError):
            if plan_removal(teacher, preset.removed).removed:
                found.append(name)
    return found


def _latencies(models: Mapping[str, Architectures], size: int, config: CostConfig) -> str:
    """Milliseconds of one call of each network at batch 1; all models share the teacher's text encoder and decoder."""
    teacher, dtype = next(iter(models.values())), compute_dtype(config.dtype)
    text, vae = teacher.configs["text_encoder"], teacher.configs["vae"]
    tokens = np.zeros((1, text.max_length), np.int32)
    latents = np.zeros((1, size, size, teacher.denoiser.in_channels), dtype)
    inputs = latents, np.full(1, 500, np.int32), {"context": np.zeros((1, text.max_length, text.width), dtype)}

    def milliseconds(what: str, module: object, shapes: object, *inputs: Any, **options: str) -> float:
        program, weights = functools.partial(module.apply, **options), {"params": arbitrary_weights(shapes, dtype)}
        return time_program(what, program, weights, *inputs, repeats=config.repeats) * 1e3

    with exact_products(config.dtype):
        encoding = milliseconds("text encoder", CLIPTextEncoder(text, dtype), clip_text_parameter_shapes(text), tokens)
        decoding = milliseconds("decoder", VAE(vae, dtype), vae_parameter_shapes(vae), latents, method="decode")
        lines = [
            f"milliseconds on {jax.devices()[0].device_kind}, {config.dtype}, batch 1, median of {config.repeats} "
            f"(text encoder {encoding:,.1f}, decoder {decoding:,.1f})",
            f"{'':<12}{'U-Net call':>14}{'left':>8}{'image':>14}{'left':>8}",
        ]
        first: tuple[float, float] | None = None
        for name, networks in models.items():
            unet = networks.denoiser
            call = milliseconds(f"U-Net of {name}", UNet(unet, dtype), parameter_shapes(unet), *inputs)
            image = encoding + config.steps * call + decoding
            first = first or (call, image)
            lines.append(f"{name:<12}{call:>14,.1f}{call / first[0]:>8.1%}{image:>14,.1f}{image / first[1]:>8.1%}")
    return "\n".join(lines)
