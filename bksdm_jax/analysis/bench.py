"""One U-Net call and one guided image, timed on the present device with arbitrary weights."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bksdm_jax.analysis.cost import NOTHING, Cost, unet_cost
from bksdm_jax.analysis.pipeline_cost import decoder_cost, stable_diffusion, text_encoder_cost
from bksdm_jax.analysis.timing import Timing, arbitrary_weights, time_program
from bksdm_jax.dtypes import compute_dtype, exact_products
from bksdm_jax.errors import known_name, whole_number
from bksdm_jax.models.clip import clip_text_parameter_shapes
from bksdm_jax.models.presets import TEACHERS
from bksdm_jax.models.unet import UNet, parameter_shapes
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.text_to_image import SamplerConfig, make_generate
from bksdm_jax.pruning.plan import plan_removal, removed_blocks
from bksdm_jax.weights.pipeline import Architectures

PEAKS = {
    "NVIDIA A100": {"bfloat16": 312e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12},
    "NVIDIA H200 NVL": {"bfloat16": 835e12},
    "NVIDIA H200": {"bfloat16": 989e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},  # v5p
    "TPU v6 lite": {"bfloat16": 918e12},
}
"""Beginning of a device's kind -> number format -> FLOP/s of its dense matrix units, by the makers' data sheets.

The first that fits counts.
"""


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to time.

    Attributes:
        what: `unet`, a U-Net call and an image; or `data`, the reading of data, of which `resolution` and `repeats` are
            the only settings.
        generation: `v1` or `v2`.
        student: a preset, or a comma-separated list of removed blocks; `sd`: the teacher.
        batch_size: images.
        dtype: of the computations.
        resolution: pixels.
        steps: PNDM steps of the image; 0: time the U-Net only.
        guidance_scale: above 1 the U-Net sees every image twice.
        repeats: timed calls.
        attention: of the U-Net, a key of `attention.IMPLEMENTATIONS`.
    """

    what: str = "unet"
    generation: str = "v1"
    student: str = "sd"
    batch_size: int = 1
    dtype: str = "float32"
    resolution: int = 512
    steps: int = 25
    guidance_scale: float = 7.5
    repeats: int = 5
    attention: str = "auto"


def bench(config: BenchConfig) -> str:
    """Times and returns the table: compile time, median, images per second, FLOP/s and share of the device's peak.

    Raises:
        InputError: a setting that can't be used.
    """
    known_name("config", "generation", config.generation, TEACHERS)
    for key, least in (("batch_size", 1), ("resolution", 8), ("steps", 0), ("repeats", 1)):
        whole_number("config", key, getattr(config, key), least)
    dtype = compute_dtype(config.dtype)
    models = stable_diffusion(config.generation)
    unet = plan_removal(models.unet, removed_blocks(config.student)).student
    networks = dataclasses.replace(models, unet=unet)
    sampler = SamplerConfig(max(config.steps, 1), config.guidance_scale, config.resolution, attention=config.attention)
    generate = make_generate(networks, sampler, dtype)
    size = config.resolution // models.vae.factor
    each = sum(unet_cost(unet, size).values(), NOTHING)
    params = {"unet": arbitrary_weights(parameter_shapes(unet), dtype)}
    lines = [
        f"{config.student} of SD {config.generation}, batch {config.batch_size}, {config.dtype}, "
        f"{config.resolution}x{config.resolution} pixels, on {jax.devices()[0].device_kind}",
        _HEADING.format("", "compiling", "median", "images/s", "TFLOP/s", "of peak"),
    ]
    with exact_products(config.dtype):
        timing = time_program(
            "U-Net calls",
            _unet_call(UNet(unet, dtype, config.attention)),
            params["unet"],
            *_inputs(config, networks, size),
            repeats=config.repeats,
        )
        lines.append(_row("U-Net call", timing, config, each))
        if config.steps:
            params["vae"] = arbitrary_weights(vae_parameter_shapes(models.vae), dtype)
            params["text_encoder"] = arbitrary_weights(clip_text_parameter_shapes(models.text_encoder), dtype)
            tokens = np.zeros((config.batch_size, models.text_encoder.max_length), np.int32)
            numbers = np.arange(config.batch_size, dtype=np.uint32)
            timing = time_program("images", generate, params, tokens, tokens[0], numbers, repeats=config.repeats)
            calls = (config.steps + 1) * (2 if config.guidance_scale > 1 else 1)
            whole = text_encoder_cost(models.text_encoder) + each.times(calls) + decoder_cost(models.vae, size)
            lines.append(_row(f"image, {config.steps} steps", timing, config, whole))
    return "\n".join(lines)


def _unet_call(unet: UNet) -> Any:
    def call(params: Any, latents: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, latents, timesteps, context)

    return call


def _inputs(config: BenchConfig, networks: Architectures, size: int) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((config.batch_size, size, size, networks.unet.in_channels), np.float32)
    text = networks.text_encoder
    context = generator.standard_normal((config.batch_size, text.max_length, text.width), np.float32)
    dtype = compute_dtype(config.dtype)
    return latents.astype(dtype), np.full(config.batch_size, 500, np.int32), context.astype(dtype)


_HEADING = "{:<18}{:>12}{:>12}{:>12}{:>12}{:>10}"


def _row(name: str, timing: Timing, config: BenchConfig, each: Cost) -> str:
    rate = 2 * each.full_macs * config.batch_size / timing.median
    kind = jax.devices()[0].device_kind
    peak = next((peaks.get(config.dtype) for start, peaks in PEAKS.items() if kind.startswith(start)), None)
    cells = (
        f"{timing.compiling:.1f} s",
        f"{timing.median * 1e3:,.1f} ms",
        f"{config.batch_size / timing.median:.3g}",
        f"{rate / 1e12:.3g}",
        f"{rate / peak:.1%}" if peak else "-",
    )
    return _HEADING.format(name, *cells)
