"""Compares a pipeline in PyTorch Diffusers and in this package: each network, and images from the same noise."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import logging
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import write_json
from bksdm_jax.base.images import grid, save_png
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.precision import cast_frozen, exact_products
from bksdm_jax.base.progress import waiting
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.diffusion.samplers import kind_of, sampler_calls
from bksdm_jax.formats.missing_blocks import has_missing_blocks
from bksdm_jax.interop.components import (
    Difference,
    decoder_difference,
    difference,
    encoder_difference,
    text_encoder_difference,
    unet_difference,
)
from bksdm_jax.interop.config import CompareConfig, require_compare
from bksdm_jax.pipelines.config import SaveConfig
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import generate_images, make_generate, starting_noise
from bksdm_jax.sampling.text_to_image import require_resolution

_LEVELS = 2.0  # of 255, by which a pixel may differ
_CLASSES = {  # kind of sampler -> Diffusers' class, of those without noise in their steps
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "pndm": PNDMScheduler,
    "unipc": UniPCMultistepScheduler,
}


@one_run()
def parity(config: CompareConfig, workdir: Path) -> list[Difference]:
    """Writes `differences.json` and, if `steps` isn't 0, `images.png` with PyTorch's images above ours.

    Both sides compute in float32. Pipelines that PyTorch can't read directly (Flax folders, single files) are converted
    by this package first, so the comparison doesn't cover reading them.

    Returns:
        a difference for each network, and for the images in levels of 255.

    Raises:
        InputError: a setting, file or folder can't be used.
    """
    require_compare(config)
    pipeline = load_pipeline(config.source(config.model))
    networks = pipeline.architectures
    if has_missing_blocks(networks.denoiser):
        raise InputError(f"model: {pipeline.path}: single blocks are missing, and PyTorch Diffusers has no such U-Net")
    resolution = config.resolution or networks.resolution
    require_resolution(resolution, networks)
    if config.steps:
        sampler = SamplerConfig(
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            resolution=resolution,
            sampler=config.sampler,
            seed=config.seed,
        )
        generate = jax.jit(make_generate(networks, sampler))
        kind = kind_of(config.sampler, networks.schedule)
        if kind not in _CLASSES or sampler_calls(config.sampler, networks.schedule, config.steps).noisy:
            raise InputError(f"sampler: {config.sampler} adds noise of its own; compare with one that doesn't")
    record = dataclasses.asdict(config) | {"model": str(pipeline.path)}
    require_same(workdir, record, ())
    claim(workdir, record)
    with _in_pytorch(pipeline, config.variant, config.sampler) as theirs, exact_products("float32"):
        params = cast_frozen(pipeline.params, np.dtype(np.float32))
        found = _networks(pipeline, theirs, params, config, resolution)
        if config.steps:
            ours, expected = _images(pipeline, theirs, params, config, sampler, generate)
            save_png(workdir / "images.png", grid([expected, ours]))
            levels = difference("image (levels)", ours, expected.astype(np.float32))
            found.append(dataclasses.replace(levels, tolerance=_LEVELS))
    write_json(workdir / "differences.json", [dataclasses.asdict(one) | {"within": one.within} for one in found])
    return found


def difference_table(found: list[Difference]) -> str:
    """The differences as text, each with its tolerance."""
    lines = [f"{'':<16}{'largest':>12}{'mean':>12}{'of outputs to':>15}{'tolerance':>12}"]
    for one in found:
        row = f"{one.what:<16}{one.largest:>12.3g}{one.mean:>12.3g}{one.scale:>15.4g}{one.tolerance:>12.3g}"
        lines.append(f"{row}  {'within' if one.within else 'BEYOND'}")
    return "\n".join(lines)


@contextlib.contextmanager
def _in_pytorch(pipeline: Pipeline, variant: str, sampler: str) -> Iterator[StableDiffusionPipeline]:
    """The pipeline in PyTorch, in float32, on a GPU if there is one; `sampler` is as in `CompareConfig`."""
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    with tempfile.TemporaryDirectory() as scratch, waiting("loading in PyTorch"):
        try:
            theirs = _loaded(pipeline.path, variant)
        except (OSError, ValueError) as error:  # a Flax folder, a single file, or older names of files
            logging.info("%s: PyTorch can't read it (%s); compared with a copy", pipeline.path, in_short(error))
            theirs = _loaded(write_pipeline(Path(scratch) / "model", pipeline, SaveConfig(dtype="float32")), "")
    if sampler != SCHEDULER and (sampler != pipeline.schedule.sampler or SAMPLERS[sampler][1]):
        kind, options = SAMPLERS[sampler]
        options = dict(options)
        if spacing := options.pop("sigma_spacing", ""):
            options[f"use_{spacing}_sigmas"] = True
        theirs.scheduler = _CLASSES[kind].from_config(theirs.scheduler.config, **options)
    theirs.set_progress_bar_config(disable=True)
    yield theirs.to("cuda" if torch.cuda.is_available() else "cpu")


def _loaded(path: Path, variant: str) -> StableDiffusionPipeline:
    """Diffusers' pipeline; raises `OSError` or `ValueError` if it can't read the folder."""
    if path.is_file() or any(path.rglob("*.msgpack")):
        raise ValueError("a single file" if path.is_file() else "Flax weights")
    return StableDiffusionPipeline.from_pretrained(
        path, variant=variant or None, torch_dtype=torch.float32, safety_checker=None, local_files_only=True
    )


def _networks(
    pipeline: Pipeline, theirs: StableDiffusionPipeline, params: dict[str, Any], config: CompareConfig, resolution: int
) -> list[Difference]:
    generator = np.random.default_rng(config.seed)
    prompts = list(config.prompts)
    tokens = pipeline.caption_inputs(prompts)["tokens"]
    expected = theirs.tokenizer(prompts, padding="max_length", max_length=tokens.shape[1], truncation=True).input_ids
    if not np.array_equal(tokens, expected):
        raise InputError(f"{pipeline.path}: PyTorch's tokenizer and this package's give different tokens")
    configs = pipeline.architectures.configs
    unet, vae, text = (configs[name] for name in ("unet", "vae", "text_encoder"))
    size, count = resolution // vae.factor, len(prompts)
    latents = generator.standard_normal((count, size, size, unet.in_channels), np.float32)
    context = generator.standard_normal((count, tokens.shape[1], unet.context_width), np.float32)
    timesteps = np.linspace(1, pipeline.schedule.train_steps - 1, count).astype(np.int32)
    images = generator.uniform(-1, 1, (1, resolution, resolution, vae.in_channels)).astype(np.float32)
    found = []
    for what, compared, inputs in (
        ("text encoder", text_encoder_difference, (theirs.text_encoder, text, params["text_encoder"], tokens)),
        ("U-Net", unet_difference, (theirs.unet, unet, params["unet"], latents, timesteps, context)),
        ("VAE decoder", decoder_difference, (theirs.vae, vae, params["vae"], latents[:1])),
        ("VAE encoder", encoder_difference, (theirs.vae, vae, params["vae"], images)),
    ):
        with waiting(f"comparing {what}"):
            found.append(compared(*inputs))
        if not np.isfinite([found[-1].largest, found[-1].scale]).all():
            raise InputError(f"{pipeline.path}: outputs of the {what} aren't finite, so they can't be compared")
    return found


def _images(
    pipeline: Pipeline,
    theirs: StableDiffusionPipeline,
    params: dict[str, Any],
    config: CompareConfig,
    sampler: SamplerConfig,
    generate: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Our and PyTorch's images, uint8 [N, H, W, 3], from the same noise."""
    prompts = list(config.prompts)
    with waiting("images by this package"):
        numbered = list(enumerate(prompts))
        made = generate_images(generate, params, pipeline.caption_inputs, sampler, numbered, len(prompts))
        ours = np.stack([image for _, image in made])
    shape = pipeline.architectures.latent_shape(sampler.resolution)
    noise = np.array(starting_noise(sampler.seed, jnp.arange(len(prompts), dtype=jnp.uint32), shape))
    with waiting("images by PyTorch"):
        expected = theirs(
            prompts,
            height=sampler.resolution,
            width=sampler.resolution,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)).to(theirs.device),
            output_type="np",
        ).images
    return ours, np.round(expected * 255).astype(np.uint8)
