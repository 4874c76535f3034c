"""Sampling as one call: pipeline folder and prompts in, a folder of images out."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import write_json
from bksdm_jax.base.images import save_png
from bksdm_jax.base.precision import cast_frozen, compute_dtype, exact_products
from bksdm_jax.base.progress import Progress, waiting
from bksdm_jax.base.workdir import claim, require_same, require_same_parts
from bksdm_jax.data.tables import Prompt, read_prompts, write_table
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.pipelines.families import CaptionInputs
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pipelines.tokenizer import MOST_LETTERS
from bksdm_jax.sampling.text_to_image import Generate, SamplerConfig, generate_images, make_generate

_MODEL = "model_sha256"
_MAY_CHANGE = ("batch_size", "prompts")  # the texts themselves are recorded


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig, ModelOptions):
    """What to sample; see `SamplerConfig` for the sampler's settings.

    Attributes:
        model: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        prompts, prompt: a `.txt` or `.csv` file of prompts, or a single prompt; give one of the two.
        batch_size: images per program call; in float32 it changes an image only by rounding.
        resolution: pixels; 0: the model's own.
        dtype: of the networks' computations, `float32` or `bfloat16`.
        revision, variant, tokenizer, prediction: of the model, see `ModelSource`.
    """

    model: str
    prompts: str = ""
    prompt: str = ""
    batch_size: int = 4
    resolution: int = 0
    sampler: str = "scheduler"
    dtype: str = "float32"


def sample(config: SampleConfig, workdir: Path) -> int:
    """Writes `images/000000.png`, ... and, once all exist, `metadata.csv` (`file_name,text`).

    Images of an interrupted call are kept. The `file_name` of prompts from a `.csv` becomes the table's third column,
    `source`. `timing.json` holds `seconds_per_image`, the median over this call's program calls, without compiling.
    Returns the number of images; raises `InputError` for a setting, file or folder that can't be used, and then writes
    nothing.
    """
    if bool(config.prompts) == bool(config.prompt):
        raise InputError("prompts: give either prompts (a .txt or .csv file) or one prompt")
    prompts = read_prompts(config.prompts) if config.prompts else [Prompt(config.prompt)]
    longest = max(prompts, key=lambda prompt: len(prompt.text)).text
    if len(longest) > MOST_LETTERS:
        raise InputError(f"prompts: {longest[:40]!r}... has {len(longest)} characters; the limit is {MOST_LETTERS}")
    dtype = compute_dtype(config.dtype)
    whole_number("config", "batch_size", config.batch_size)
    pipeline = load_pipeline(config.source(config.model))
    networks = pipeline.architectures
    sampler = dataclasses.replace(config, resolution=config.resolution or networks.resolution)
    generate = jax.jit(make_generate(networks, sampler, dtype))
    record = dataclasses.asdict(config) | {
        "model": str(pipeline.path.resolve()),
        _MODEL: pipeline.identity(),
        "texts": [prompt.text for prompt in prompts],
    }
    require_same(workdir, record, (*_MAY_CHANGE, _MODEL))
    require_same_parts(workdir, _MODEL, record[_MODEL], "model")
    claim(workdir, record)
    images = workdir / "images"
    images.mkdir(exist_ok=True)
    missing = [(i, prompt.text) for i, prompt in enumerate(prompts) if not (images / _name(i)).exists()]
    params, caption_inputs = jax.device_put(cast_frozen(pipeline.params, dtype)), pipeline.caption_inputs
    del pipeline  # its copy of the weights
    with exact_products(config.dtype):
        if missing:
            with waiting("compiling the sampler"):
                generate = _compiled(generate, params, caption_inputs([""]), config.batch_size)
        made = generate_images(generate, params, caption_inputs, sampler, missing, config.batch_size)
        with Progress("images", len(prompts), len(prompts) - len(missing)) as progress:
            _save(made, workdir, config.batch_size, progress)
    _write_table(workdir / "metadata.csv", prompts)
    return len(prompts)


def _save(made: Iterator[tuple[int, np.ndarray]], workdir: Path, batch_size: int, progress: Progress) -> None:
    """Writes each image as it comes, and `timing.json` after each program call."""
    calls = []
    last = time.perf_counter()
    for position, (index, image) in enumerate(made):
        if position % batch_size == 0:
            calls.append(time.perf_counter() - last)
            timing = {"batch_size": batch_size, "seconds_per_image": float(np.median(calls)) / batch_size}
            write_json(workdir / "timing.json", timing)
        save_png(workdir / "images" / _name(index), image)
        progress.advance()
        last = time.perf_counter()


def _compiled(generate: Any, params: dict[str, Any], empty: CaptionInputs, batch_size: int) -> Generate:
    """`generate`, compiled; `empty` are the inputs of one empty caption."""
    captions = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), empty)
    keys = jax.eval_shape(image_keys, 0, jax.ShapeDtypeStruct((batch_size,), jnp.uint32))
    return generate.lower(params, captions, empty, keys).compile()


def _name(index: int) -> str:
    return f"{index:06d}.png"


def _write_table(path: Path, prompts: list[Prompt]) -> None:
    columns = 3 if any(prompt.source for prompt in prompts) else 2
    rows = [(f"images/{_name(index)}", prompt.text, prompt.source) for index, prompt in enumerate(prompts)]
    write_table(path, ("file_name", "text", "source")[:columns], [row[:columns] for row in rows])
