"""The package from Python: load a pipeline, prune it, generate images, save it.

The names are those of `bksdm_jax` itself, and do what the binaries do.
"""

import collections
import dataclasses
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError, shown, whole_number
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.base.workdir import is_used
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.config import LoraOptions, PartsConfig, SaveConfig
from bksdm_jax.pipelines.embedded import TEACHER, teacher_folder
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.lora import open_loras, with_loras
from bksdm_jax.pipelines.model_card import CardFacts, parent_name
from bksdm_jax.pipelines.parts import with_parts
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.config import InitOptions
from bksdm_jax.pruning.prune import card_facts, find_initial_weights, pruned
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal
from bksdm_jax.sampling.config import MOST_SEED, SamplerConfig
from bksdm_jax.sampling.engine import Batch, Engine
from bksdm_jax.sampling.images import Images, Init, images_to_begin_from

__all__ = ["Images", "InputError", "Pipeline", "Student", "generate", "load", "prune", "save"]

_PER_DEVICE = 4  # images of a call
_REMEMBERED = 4  # engines; each has a copy of its pipeline's weights on the devices
_ENGINES: collections.OrderedDict[tuple[int, int, str], Engine] = collections.OrderedDict()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student(Pipeline):
    """A pruned pipeline, not trained.

    Attributes:
        plan: which blocks it keeps, and which of the teacher's blocks each comes from.
        facts: what its model card says.
    """

    plan: RemovalPlan
    facts: CardFacts

    def with_denoiser(self, config: UNetConfig, params: Mapping[str, Any]) -> Pipeline:
        """A copy with another U-Net, of which the model card would be untrue; raises as `Pipeline.with_denoiser`."""
        return Pipeline(**_fields(self)).with_denoiser(config, params)


def load(
    name: str | Path,
    *,
    revision: str = "",
    variant: str = "",
    tokenizer: str = "",
    prediction: str = "",
    allow_non_finite: bool = False,
    vae: str = "",
    clip_skip: int = 0,
    embeddings: Sequence[str] = (),
    lora: Sequence[str | Path] = (),
    allow_unplaced_lora: bool = False,
) -> Pipeline:
    """Loads a pipeline with its weights.

    Args:
        name: a folder in Diffusers' layout, a single file, an id on the hub, or `shapes_teacher`; a `Path` is always a
            folder or file.
        revision, variant, tokenizer, prediction: as in `ModelSource`, where `prediction` is its `prediction_type`.
        allow_non_finite: use weights that hold NaN or infinities, with a warning; `save` then writes them too.
        vae, clip_skip, embeddings: other parts, as in `PartsConfig`.
        lora, allow_unplaced_lora: LoRAs to merge, as in `LoraOptions`.

    Raises:
        InputError: the model doesn't exist, is incomplete or unsupported, or an option, part or LoRA doesn't apply.
    """
    name = str(name.expanduser().absolute()) if isinstance(name, Path) else name
    embeddings = (embeddings,) if isinstance(embeddings, str) else tuple(embeddings)
    source = ModelSource(name, revision, variant, tokenizer, prediction, allow_non_finite=allow_non_finite)
    found = find_model(source)
    named = (lora,) if isinstance(lora, str | Path) else lora
    options = LoraOptions(lora=tuple(map(str, named)), allow_unplaced_lora=allow_unplaced_lora)
    loras = open_loras(options, found.architectures, allow_non_finite)
    return with_parts(with_loras(found.read(), loras), PartsConfig(vae=vae, clip_skip=clip_skip, embeddings=embeddings))


def prune(
    pipeline: Pipeline, student: str = "bk_small", *, init: str = "teacher", seed: int = 0, block_scores: str = ""
) -> Student:
    """Removes blocks of a pipeline's U-Net; the pipeline itself stays as it is.

    Args:
        pipeline: the teacher.
        student: a preset (`sd`, `bk_base`, `bk_small`, `bk_tiny`, `no_mid`), a comma-separated list of blocks to
            remove, by Diffusers' names, or a criterion and a size, such as `taylor:482M`.
        init: the initial weights: `teacher`'s of the remaining blocks, `random`, or a pipeline with such a U-Net.
        seed: of random weights, in [0, 2^32).
        block_scores: for a criterion: the workdir of `launch.analyse`, or its `blocks.json`.

    Raises:
        InputError: an unknown name, an invalid list of blocks, weights that don't fit, or a pipeline that is a student.
    """
    if isinstance(pipeline, Student):
        raise InputError("prune: the pipeline is a student; prune its teacher, with all blocks in one list")
    whole_number("prune", "seed", seed, 0, MOST_SEED)
    unet = pipeline.architectures.denoiser
    plan = plan_removal(unet, removed_from(unet, student, block_scores))
    options = InitOptions(student_init=init, allow_non_finite=pipeline.allow_non_finite)
    made = pruned(pipeline, find_initial_weights(plan, options), seed)
    return Student(**_fields(made), plan=plan, facts=card_facts(_name(pipeline), plan, init, {}))


def generate(
    pipeline: Pipeline,
    prompts: str | Sequence[str],
    *,
    steps: int = 25,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    sampler: str = "scheduler",
    eta: float = 0.0,
    seed: int = 0,
    negative_prompt: str = "",
    height: int = 0,
    width: int = 0,
    dtype: str = "float32",
    batch_size: int = 0,
    init: Init | None = None,
    strength: float = 0.8,
    teacher: Pipeline | None = None,
    switch_at: int = 0,
    deep_cache: int = 0,
    decode: str = "whole",
) -> Images:
    """Generates an image for each prompt.

    The noise of image i depends on `seed` and i alone. The first call with some settings compiles; the next ones reuse
    that, whatever their `prompts`, `seed`, `negative_prompt` and contents of `init`, if a batch has as many images. Up
    to four compiled settings are kept, each with its pipeline's weights on the devices, while the pipeline exists.

    Args:
        pipeline: the model; its arrays must not be changed.
        prompts: one or more; a prompt can be repeated for several images.
        steps: of the sampler, as Diffusers counts them, 1 or more.
        guidance_scale: of classifier-free guidance, 0 or more; values up to 1 switch it off.
        guidance_rescale, eta: as in `SamplerConfig`, both in [0, 1].
        sampler: a key of `SAMPLERS`, or `scheduler`: the model's own.
        seed: in [0, 2^32).
        negative_prompt: what guidance steers away from.
        height, width: in pixels, multiples of the autoencoder's factor up to 4096; 0: the model's own, or `init`'s.
        dtype: of the networks' computations, `float32` or `bfloat16`.
        batch_size: images of a call on each device; 0: as many as the prompts need, up to 4.
        init: images to begin from: one, or one for each prompt; resized if height or width says so.
        strength: how much of the noise `init` gets, in (0, 1].
        teacher, switch_at: a pipeline whose U-Net makes the first `switch_at` steps.
        deep_cache: DeepCache's interval; 0: off.
        decode: `whole`, or `slices` or `tiles` for less memory.

    Returns:
        `Images`, N of them in the order of the prompts: `arrays` uint8 [N, height, width, 3].

    Raises:
        InputError: a setting is out of range or doesn't fit the model, a prompt or an image can't be used, or a made
            image isn't finite.
    """
    texts = _texts(prompts)
    whole_number("generate", "seed", seed, 0, MOST_SEED)
    whole_number("generate", "batch_size", batch_size, 0)
    compute_dtype(dtype)
    for key, value in (("height", height), ("width", width)):
        whole_number("generate", key, value, 0)
    begins = None
    if init is not None:
        begins = images_to_begin_from(init, height, width, len(texts), pipeline.architectures.factor)
    devices = jax.local_device_count()
    per_device = batch_size or min(_PER_DEVICE, -(-len(texts) // devices))
    config = SamplerConfig(
        steps=steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        resolution=pipeline.architectures.resolution,
        height=0 if begins is not None else height,  # the engine goes by the images
        width=0 if begins is not None else width,
        sampler=sampler,
        eta=eta,
        switch_at=switch_at,
        deep_cache=deep_cache,
        decode=decode,
    )
    engine = _engine(pipeline, config, dtype, per_device, None if begins is None else strength, teacher)
    batches = _batches(texts, begins, engine.per_call, seed, _text("negative_prompt", negative_prompt))
    return Images(np.concatenate([made.images for made in engine.make(batches)]), texts)


def save(
    pipeline: Pipeline,
    folder: str | Path,
    *,
    format: str = "safetensors",
    dtype: str = "",
    safety_checker: bool = True,
) -> Path:
    """Writes a pipeline to a new folder; with a `Student` go its model card and `removal_plan.json`.

    Args:
        pipeline: what to write.
        folder: doesn't exist, or is empty.
        format, dtype, safety_checker: as in `SaveConfig`.

    Returns:
        the path of the model, which `load` takes: the folder, or the single file in it.

    Raises:
        InputError: the folder is used or can't be written, or the format can't express the pipeline.
    """
    folder = Path(folder).expanduser()
    if is_used(folder):
        raise InputError(f"{folder}: exists already; choose a new folder")
    config = SaveConfig(format, dtype, safety_checker)
    if isinstance(pipeline, Student):
        plan = {"removal_plan.json": pipeline.plan.to_json()}
        return write_pipeline(folder, pipeline, config, pipeline.facts, plan, replace=False)
    return write_pipeline(folder, pipeline, config, replace=False)


def _fields(pipeline: Pipeline) -> dict[str, Any]:
    return {field.name: getattr(pipeline, field.name) for field in dataclasses.fields(Pipeline)}


def _name(pipeline: Pipeline) -> str:
    """The pipeline's name for a public card."""
    return TEACHER if pipeline.path == teacher_folder() else parent_name(str(pipeline.path))


def _texts(prompts: str | Sequence[str]) -> tuple[str, ...]:
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not texts:
        raise InputError("prompts: empty; expected one or more")
    return tuple(_text("prompts", text) for text in texts)


def _text(key: str, text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{key}: {shown(text)}; expected text")
    return text


def _batches(
    texts: tuple[str, ...], begins: np.ndarray | None, per_call: int, seed: int, negative: str
) -> Iterator[Batch]:
    for start in range(0, len(texts), per_call):
        own = range(start, min(start + per_call, len(texts)))
        init = None if begins is None else begins[own.start : own.stop]
        yield Batch(tuple(own), texts[own.start : own.stop], init, seed=seed, negative_prompt=negative)


def _engine(
    pipeline: Pipeline,
    config: SamplerConfig,
    dtype: str,
    batch_size: int,
    strength: float | None,
    teacher: Pipeline | None,
) -> Engine:
    """The engine of a pipeline and settings: one that is remembered, or a new one."""
    key = (id(pipeline), id(teacher), repr((config, dtype, batch_size, strength)))
    if key not in _ENGINES:
        while len(_ENGINES) >= _REMEMBERED:
            _ENGINES.popitem(last=False)
        _ENGINES[key] = Engine(pipeline, config, dtype, batch_size, strength=strength, teacher=teacher)
        for owner in (pipeline, teacher):
            if owner is not None:
                weakref.finalize(owner, _forget, id(owner)).atexit = False
    _ENGINES.move_to_end(key)
    return _ENGINES[key]


def _forget(owner: int) -> None:
    """Drops the engines of a pipeline that is gone; another may get its `id`."""
    for key in [key for key in _ENGINES if owner in key[:2]]:
        del _ENGINES[key]
