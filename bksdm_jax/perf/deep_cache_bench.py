"""What DeepCache saves, and how far its images are from the exact ones."""

import dataclasses

import jax
import numpy as np

from bksdm_jax.base.errors import whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.base.progress import Progress
from bksdm_jax.models.unet_table import cuts
from bksdm_jax.perf.config import BenchConfig
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.engine import Batch, Engine

_INTERVALS = (0, 2, 3, 5)
_PROMPTS = (
    "a small red circle",
    "a large blue square at the bottom right on a white background",
    "a large green triangle at the top left",
    "a small yellow circle at the top left and a large red square at the bottom right",
)
_ROW = "{:<10}{:>6}{:>14}{:>10}{:>12}{:>14}"


def bench_deep_cache(config: BenchConfig) -> str:
    """Returns a table: seconds per image for intervals of full calls, the speed-up, and differences of the images.

    Differences are mean and largest, in levels of 255, over four captions of the shapes world from the same noise.
    Raises `InputError` for settings that can't be used.
    """
    compute_dtype(config.dtype)
    whole_number("config", "repeats", config.repeats)
    pipeline = load_pipeline(config.model)
    networks = pipeline.architectures
    cut = 1 if config.cut < 0 else config.cut
    whole_number("config", "cut", cut, 0, len(cuts(networks.denoiser)) - 1)
    sampler = SamplerConfig(
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        resolution=networks.resolution,
        sampler="scheduler",
        attention=config.attention,
        norms=config.norms,
        deep_cache_cut=cut,
    )
    lines = [
        f"{config.model}, {config.steps} steps, {config.dtype}, on {jax.devices()[0].device_kind}",
        _ROW.format("full calls", "cut", "s per image", "speed-up", "mean diff", "largest diff"),
    ]
    exact, slowest = None, 0.0
    count = len(_PROMPTS) * jax.local_device_count()
    batch = Batch(tuple(range(count)), _PROMPTS * jax.local_device_count())
    for interval in _INTERVALS:
        engine = Engine(pipeline, dataclasses.replace(sampler, deep_cache=interval), config.dtype, len(_PROMPTS))
        with Progress(f"batches, full calls 1 in {interval or 1}", 1 + config.repeats) as progress:
            for made in engine.make([batch] * (1 + config.repeats)):
                images = made.images.astype(int)
                progress.advance()
        seconds = float(np.median(engine.seconds)) / count
        if exact is None:
            exact, slowest = images, seconds
        off = np.abs(images - exact)
        name, number = (f"1 in {interval}", str(cut)) if interval else ("all", "-")
        cells = (f"{seconds:.3f}", f"{slowest / seconds:.2f}", f"{off.mean():.2f}", str(off.max()))
        lines.append(_ROW.format(name, number, *cells))
    return "\n".join(lines)
